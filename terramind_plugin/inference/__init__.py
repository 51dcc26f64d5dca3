"""From raster to raster: a model runs over windows, whose results are blended and written; stopped runs resume."""
