"""Rasters on disk: what counts as missing, files that are written whole or not at all. No model code."""
