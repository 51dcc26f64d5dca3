"""Rasters: files, grids and windows. No model code."""
