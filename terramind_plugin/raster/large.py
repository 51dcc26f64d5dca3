"""GeoTIFFs larger than memory: tiled, compressed, with overviews, written row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.enums import Resampling
from rasterio.windows import Window

from terramind_plugin.errors import DataError
from terramind_plugin.files import completing, flush_to_disk, temporary
from terramind_plugin.raster.complete import GDAL_ERRORS, Rows, check_complete, check_overviews, reason_of
from terramind_plugin.raster.source import Grid

BLOCK = 256
"""Height and width of a tile."""
SMALLEST_OVERVIEW = 256
"""Overviews are added until the image fits into so many pixels."""

Color = tuple[int, int, int, int]


@dataclass(frozen=True)
class Layer:
    """One file of a result."""

    ending: str
    """Of its name, behind that of the scene."""
    dtype: str
    descriptions: tuple[str, ...]
    """Name of each band."""
    units: str
    nodata: float
    colormap: Mapping[int, Color] | None = None
    """Colours of class ids; None for continuous values."""
    modality: str | None = None
    """Name in the modality table, if it is one."""
    class_names: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    """Further tags."""

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes of all bands of a pixel."""
        return len(self.descriptions) * np.dtype(self.dtype).itemsize


def write_large_geotiff(
    path: Path, rows: Rows, layer: Layer, grid: Grid, tags: Mapping[str, str], *, cog: bool = False
) -> None:
    """Write a GeoTIFF that appears under its name only when it is complete; equal arguments give equal bytes.

    Args:
        path: Where to write; its folder must exist. An existing file is replaced.
        rows: Returns the rows of the image from a first one to before a last one, [bands, rows, width].
        layer: What the file holds.
        grid: Its size and place.
        tags: Further metadata.
        cog: Write a Cloud-Optimized GeoTIFF.

    Raises:
        DataError: The file cannot be written, or not completely.
    """
    try:
        with completing(path) as partial, temporary(path) as tiles:
            target = tiles if cog else partial
            _write_tiles(target, rows, layer, grid, tags)
            check_complete(target, rows, overviews=0)
            factors = overview_factors(grid)
            if factors:
                _add_overviews(target, factors, layer)
                check_overviews(target, len(factors))
            if cog:
                options = {"blocksize": BLOCK * 2, "bigtiff": "if_safer", "overviews": "force_use_existing"}
                rasterio.shutil.copy(tiles, partial, driver="COG", **options, **_compression(layer))
                check_complete(partial, rows, len(factors))
            with open(partial, "rb") as file:
                flush_to_disk(file.fileno())  # GDAL hides what network file systems say when it closes a file
    except GDAL_ERRORS as error:
        reason = reason_of(error)
        raise DataError(
            f"{path} cannot be written: {reason}. Is the disk full? Make room in {path.parent} and run the same "
            "command again; what is finished is kept."
        ) from error


def overview_factors(grid: Grid) -> list[int]:
    """Return by how much each overview of an image is smaller; none are needed for a small one."""
    factors = [2] if max(grid.shape) > SMALLEST_OVERVIEW else []
    while factors and max(grid.shape) / factors[-1] > SMALLEST_OVERVIEW:
        factors.append(2 * factors[-1])
    return factors


def _compression(layer: Layer) -> dict[str, Any]:
    predictor = {"f": 3, "u": 2, "i": 2}[np.dtype(layer.dtype).kind]
    # Class ids: differences of neighbours do not compress better.
    return {"compress": "deflate", "predictor": 1 if layer.colormap is not None else predictor}


def _write_tiles(path: Path, rows: Rows, layer: Layer, grid: Grid, tags: Mapping[str, str]) -> None:
    count = len(layer.descriptions)
    profile = {
        "driver": "GTiff", "count": count, "height": grid.height, "width": grid.width, "dtype": layer.dtype,
        "crs": grid.crs, "transform": grid.transform, "nodata": layer.nodata,
        "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "bigtiff": "if_safer",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile, **_compression(layer)) as file:
        # Before the values, so that a file that was cut off lacks values: GDAL reads one that lacks tags.
        file.descriptions = layer.descriptions
        file.units = (layer.units,) * count
        if layer.colormap is not None:
            file.write_colormap(1, dict(layer.colormap))
        else:
            file.scales, file.offsets = (1.0,) * count, (0.0,) * count
        file.update_tags(**{**tags, **layer.tags})
        for first in range(0, grid.height, BLOCK):
            last = min(first + BLOCK, grid.height)
            file.write(rows(first, last), window=Window(0, first, grid.width, last - first))


def _add_overviews(path: Path, factors: list[int], layer: Layer) -> None:
    """Add overviews to a file that is closed and whole: where the disk fills up, GDAL can crash on an open one."""
    with rasterio.open(path, "r+") as file:
        file.build_overviews(factors, Resampling.average if layer.colormap is None else Resampling.mode)
