"""Opening rasters: what GDAL reads, and zarr.zip chips as rasters in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rasterio
from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from terramind_plugin.raster.paths import is_zarr
from terramind_plugin.shards.chips import read_zarr_chip


def open_raster(path: str | Path) -> Any:
    """Return an open raster as rasterio does; a zarr.zip chip becomes a raster in memory.

    Args:
        path: A file, a URL, or one of GDAL's virtual paths.

    Raises:
        RasterioError: GDAL cannot open the file.
        DataError: The file is no zarr group that can be read.
    """
    if not is_zarr(path):
        return rasterio.open(path)
    chip = read_zarr_chip(path)
    count, height, width = chip.values.shape
    crs = None if chip.crs is None else CRS.from_user_input(chip.crs)
    memory = MemoryFile()
    with memory.open(
        driver="GTiff",
        count=count,
        height=height,
        width=width,
        dtype=chip.values.dtype.name,
        crs=crs,
        transform=Affine.identity() if chip.transform is None else Affine(*chip.transform),
        nodata=chip.nodata,
        interleave="band",
    ) as raster:
        raster.write(chip.values)
        for number, name in enumerate(chip.names, start=1):
            if name is not None:
                raster.set_band_description(number, name)
    opened = memory.open()
    opened.memory = memory  # it ends with the last reference to it
    return opened
