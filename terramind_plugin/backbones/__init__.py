"""TerraMind as a TerraTorch backbone: it takes images by modality and returns tokens by layer."""
