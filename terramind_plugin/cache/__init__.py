"""What frozen parts computed, kept on disk: keys, store, cached tokens and features."""
