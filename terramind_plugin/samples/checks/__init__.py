"""Checks of files, values and labels that need neither a model nor TerraTorch."""
