"""Cache on disk for the results of frozen parts."""
