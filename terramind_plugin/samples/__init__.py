"""What a data set is on disk: which file belongs to which sample, splits, classes, statistics. No TerraTorch."""
