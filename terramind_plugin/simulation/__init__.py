"""Simulated flooded landscapes and their satellite images: noise -> terrain -> land cover -> optics, radar -> chip."""
