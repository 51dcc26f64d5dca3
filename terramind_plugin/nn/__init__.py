"""Shapes and math of the model: no files, no Lightning, no TerraTorch."""
