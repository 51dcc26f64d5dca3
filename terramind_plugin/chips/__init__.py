"""What a model makes of one chip: reconstructed, or imagined in other modalities, as GeoTIFFs and a picture."""
