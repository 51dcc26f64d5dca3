"""Data sets on disk: the files of each sample, splits, classes, statistics, checks; free of TerraTorch."""
