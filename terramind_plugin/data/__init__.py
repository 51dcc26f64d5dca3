"""Data: the data module for TerraTorch, checks of what it reads, and the embedded simulated data set."""
