"""What TerraTorch sees of the data: data module, data set, transforms, writer of predictions."""
