"""A cache on disk of what frozen parts computed: keys, the store, what is logged."""
