"""TerraMind as a TerraTorch backbone: images by modality in, tokens of each layer out."""
