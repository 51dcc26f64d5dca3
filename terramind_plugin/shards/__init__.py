"""TerraMesh and data sets with its layout: tar shards of zipped Zarr groups, read without zarr or webdataset."""
