"""GeoTIFFs larger than memory: tiled, compressed, with overviews, written row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from rasterio.windows import Window

from terramind_plugin.errors import DataError, one_line
from terramind_plugin.files import completing
from terramind_plugin.geo.source import Grid

BLOCK = 256
"""Height and width of a tile."""
SMALLEST_OVERVIEW = 256
"""Overviews are added until the image fits into so many pixels."""

Color = tuple[int, int, int, int]
Rows = Callable[[int, int], NDArray]


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
        with completing(path) as partial:
            _write_tiles(partial, rows, layer, grid, tags)
            if cog:
                options = {"blocksize": BLOCK * 2, "bigtiff": "if_safer", "overviews": "force_use_existing"}
                with completing(partial) as optimised:
                    rasterio.shutil.copy(partial, optimised, driver="COG", **options, **_compression(layer))
            _check_complete(partial, layer, grid, rows)
    except (RasterioError, OSError) as error:
        reason = one_line(error)
        raise DataError(
            f"{path} cannot be written: {reason}. Is the disk full? Make room in {path.parent} and run the same "
            "command again; what is finished is kept."
        ) from error


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
    classes = layer.colormap is not None
    with rasterio.open(path, "w", **profile, **_compression(layer)) as file:
        for first in range(0, grid.height, BLOCK):
            last = min(first + BLOCK, grid.height)
            file.write(rows(first, last), window=Window(0, first, grid.width, last - first))
        file.descriptions = layer.descriptions
        file.units = (layer.units,) * count
        if layer.colormap is not None:
            file.write_colormap(1, dict(layer.colormap))
        else:
            file.scales, file.offsets = (1.0,) * count, (0.0,) * count
        file.update_tags(**{**tags, **layer.tags})
        factors = [2]
        while max(grid.shape) / factors[-1] > SMALLEST_OVERVIEW:
            factors.append(2 * factors[-1])
        if max(grid.shape) > SMALLEST_OVERVIEW:
            file.build_overviews(factors, Resampling.mode if classes else Resampling.average)


def _check_complete(path: Path, layer: Layer, grid: Grid, rows: Rows) -> None:
    """Read the last tiles again: a full disk shows only here, where the end of the file was never written.

    Raises:
        DataError: They are not what was written.
    """
    first = (grid.height - 1) // BLOCK * BLOCK
    with rasterio.open(path) as file:
        written = file.read(window=Window(0, first, grid.width, grid.height - first))
        overviews = file.overviews(1)
    if overviews:
        with rasterio.open(path, overview_level=len(overviews) - 1) as file:
            file.read()
    if not np.array_equal(written, rows(first, grid.height), equal_nan=layer.dtype.startswith("float")):
        raise OSError("the end of the file is not what was written")
