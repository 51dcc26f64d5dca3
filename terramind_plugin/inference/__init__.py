"""From raster to raster: windows through a model, blended, written as they are finished, resumed after a stop."""
