"""The one place where versions are written."""

__version__ = "0.2.0"
NUMERICS = 3
"""Version of what the models compute. Raise it when numbers change: caches and interrupted runs then start anew."""
