"""Speed and memory beside TerraTorch's own TerraMind: `python -m bench`."""
