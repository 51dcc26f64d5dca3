"""Zarr.zip chips: names by which GDAL opens them as rasters in memory."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from rasterio.crs import CRS
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from terramind_plugin.shards.chips import read_zarr_chip

KEPT = 32
"""Number of chips kept in memory: more than threads open at once, and small compared with a batch."""


def zarr_name(path: str | Path) -> str:
    """Return the name by which GDAL opens a zarr.zip chip: that of a raster in memory, with all dates and bands.

    Args:
        path: A .zarr.zip file.

    Raises:
        DataError: The file is damaged, or holds no image of real numbers.
        OSError: The file cannot be read.
    """
    stat = Path(path).stat()
    return str(_raster_of(str(path), stat.st_size, stat.st_mtime_ns).name)


@lru_cache(KEPT)
def _raster_of(path: str, size: int, changed: int) -> MemoryFile:
    """Return a chip as a GeoTIFF in memory, which exists as long as there is a reference to it."""
    chip = read_zarr_chip(path)
    count, height, width = chip.values.shape
    memory = MemoryFile()
    with memory.open(
        driver="GTiff",
        count=count,
        height=height,
        width=width,
        dtype=chip.values.dtype.name,
        crs=None if chip.crs is None else CRS.from_user_input(chip.crs),
        transform=Affine.identity() if chip.transform is None else Affine(*chip.transform),
        nodata=chip.nodata,
        interleave="band",
    ) as raster:
        raster.write(chip.values)
        for number, name in enumerate(chip.names, start=1):
            if name is not None:
                raster.set_band_description(number, name)
    return memory
