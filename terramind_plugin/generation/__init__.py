"""From images, places and tokens of some modalities to those of others."""
