"""A flooded landscape and what the sensors see of it: noise -> terrain -> land cover -> optics, radar -> chip."""
