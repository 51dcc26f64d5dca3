"""The data classes that TerraTorch uses: data module, data set, transforms, writer of predictions."""
