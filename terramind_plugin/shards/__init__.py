"""TerraMesh and data sets of its layout: tar shards of zipped zarr groups, read without zarr and webdataset."""
