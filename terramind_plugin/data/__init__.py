"""The side of the data that TerraTorch sees: data module, data set, transforms, writer of predictions."""
