"""Cache of results of frozen parts, on disk: keys, store, log."""
