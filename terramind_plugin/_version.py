"""Versions of the package and of its numerics."""

__version__ = "0.2.0"
NUMERICS = 3
"""Version of the computed numbers. Raise it when they change, so that caches and interrupted runs start again."""
