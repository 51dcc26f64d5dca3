"""Rasters on disk: reading, writing, windows, missing values. No model code."""
