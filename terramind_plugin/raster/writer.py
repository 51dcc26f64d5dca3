"""Writing complete GeoTIFFs: images in memory, and layers of any size, row by row."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import CRSError
from rasterio.io import MemoryFile
from rasterio.transform import Affine
from rasterio.windows import Window

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.raster.complete import GDAL_ERRORS, Rows, check_complete, check_overviews, reason_of
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.system.files import completing, flush_to_disk, temporary, write_bytes

TILE = 256
"""Height and width of a tile in pixels."""
SMALLEST_OVERVIEW = 256
"""Height and width in pixels of a square; overviews are added until the image fits into it."""
FASTEST = 1
"""Fastest level of deflate."""
DTYPES = ("uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")
COG_PREDICTORS = {1: "NO", 2: "STANDARD", 3: "FLOATING_POINT"}
"""Names of the predictors in GDAL's COG driver."""

Color = tuple[int, int, int, int]
"""Red, green, blue and alpha, from 0 to 255."""


@dataclass(frozen=True)
class Layer:
    """Description of one GeoTIFF of a result."""

    ending: str
    """End of the file's name, after the name of the scene."""
    dtype: str
    descriptions: tuple[str, ...]
    """Names of the bands."""
    units: str
    nodata: float | None
    colormap: Mapping[int, Color] | None = None
    """Colours of class ids; None for continuous values."""
    modality: str | None = None
    """Name in the modality table, if the layer is a modality."""
    class_names: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    """Further tags."""
    scales: tuple[float, ...] = ()
    """Factor of each band that converts stored to true values; empty for 1."""
    half: bool = False
    """Whether float32 values that float16 can represent are stored with 16 bits."""
    tile: int | None = None
    """Height and width of a tile in pixels, small if there are many bands; None for 256 (512 in a COG)."""
    noisy: bool = False
    """Whether values are similar to noise, which is slow to compress and hardly gets smaller."""

    @property
    def bytes_per_pixel(self) -> int:
        """Return the size of a pixel with all bands in bytes."""
        return len(self.descriptions) * np.dtype(self.dtype).itemsize


def write_geotiff(
    path: str | Path,
    array: NDArray[Any],
    *,
    crs: object,
    transform: Affine,
    descriptions: Sequence[str] = (),
    units: Sequence[str] = (),
    nodata: float | None = None,
    colormap: Mapping[int, Color] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write an image as a GeoTIFF that appears under its name only when it is complete.

    The file is deflate-compressed without loss, and tiled if it has 256 pixels or more. Equal arguments give equal
    bytes.

    Args:
        path: Where to write; its folder must exist. An existing file is replaced.
        array: Values [bands, height, width], of an integer type of 8 to 32 bits or a float type.
        crs: Coordinate reference system in any form that rasterio accepts, e.g. 'EPSG:32646'.
        transform: Transform from pixel corners to coordinates in `crs`.
        descriptions: Name of each band; may be empty.
        units: Unit of each band; may be empty.
        nodata: Value that marks missing values.
        colormap: Colour of each value of a one-band image.
        tags: Further metadata of the file.

    Raises:
        DataError: The array does not fit the description or has another type, the CRS cannot be read, the folder
            does not exist, or the file cannot be written.
    """
    path = Path(path)
    _check(path, array, descriptions, units, colormap)
    if not path.parent.is_dir():
        raise DataError(f"Cannot write {path}: the folder {path.parent} does not exist; create it first.")
    try:
        system = CRS.from_user_input(crs)
    except CRSError as error:
        raise DataError(f"{path}: cannot read the CRS {crs!r}; write it as in 'EPSG:32632'. ({error})") from error
    layer = Layer("", array.dtype.name, tuple(descriptions), "", nodata, colormap, tags=tags or {})
    grid = Grid(array.shape[1], array.shape[2], system, transform)
    try:
        # Made in memory, because GDAL does not report a full disk when it closes a file.
        with MemoryFile() as memory:
            _write_rows(memory.name, lambda first, last: array[:, first:last], layer, grid, len(array), units)
            write_bytes(path, memory.getbuffer())
    except GDAL_ERRORS as error:
        raise DataError(f"{path} cannot be written: {reason_of(error)}. Is the disk full?") from error


def _check(
    path: Path, array: NDArray[Any], descriptions: Sequence[str], units: Sequence[str], colormap: object
) -> None:
    """Raise a DataError unless the array can be written as described."""
    if array.ndim != 3 or 0 in array.shape:
        raise DataError(f"{path}: got an array of shape {array.shape}, expected [bands, height, width], all above 0.")
    if array.dtype.name not in DTYPES:
        raise DataError(f"{path}: cannot store values of type {array.dtype}; convert to one of {', '.join(DTYPES)}.")
    for what, given in (("descriptions", descriptions), ("units", units)):
        if given and len(given) != len(array):
            raise DataError(f"{path}: got {len(given)} {what} for {len(array)} bands; give one for each band or none.")
    if colormap is not None and (len(array) != 1 or array.dtype.name not in ("uint8", "uint16")):
        raise DataError(
            f"{path}: a colour table needs one band of type uint8 or uint16, got {len(array)} of {array.dtype}."
        )


def write_layer(
    path: Path, rows: Rows, layer: Layer, grid: Grid, tags: Mapping[str, str], *, cog: bool = False
) -> None:
    """Write a layer of any size with overviews; the file appears under its name only when it is complete.

    Equal arguments give equal bytes.

    Args:
        path: Where to write; its folder must exist. An existing file is replaced.
        rows: Function of two row numbers: the rows from the first number to before the second, [bands, rows, width].
        layer: Description of the file.
        grid: Size and position of the image.
        tags: Further metadata.
        cog: Write a Cloud-Optimized GeoTIFF.

    Raises:
        DataError: The file cannot be written, or not completely.
    """
    count = len(layer.descriptions)
    layer = replace(layer, tags={**tags, **layer.tags})
    try:
        with completing(path) as partial, temporary(path) as tiles:
            target = tiles if cog else partial
            _write_rows(target, rows, layer, grid, count, [layer.units] * count, compressed=not (cog and layer.noisy))
            check_complete(target, rows, overviews=0)
            factors = overview_factors(grid)
            if factors:
                # The file is closed before: if the disk fills up, GDAL can crash on an open file.
                with rasterio.open(target, "r+") as file:
                    file.build_overviews(factors, Resampling.average if layer.colormap is None else Resampling.mode)
                check_overviews(target, len(factors))
            if cog:
                options: dict[str, Any] = {"bigtiff": "if_safer", "overviews": "force_use_existing"}
                options |= {"blocksize": layer.tile or 2 * TILE, "compress": "deflate"}
                options["predictor"] = COG_PREDICTORS[_predictor(layer)]
                options |= {"level": FASTEST} if layer.noisy else {}
                with _small_blocks():
                    rasterio.shutil.copy(tiles, partial, driver="COG", **options)
                check_complete(partial, rows, len(factors))
            with open(partial, "rb") as file:
                flush_to_disk(file.fileno())  # GDAL hides errors of network file systems when it closes a file
    except GDAL_ERRORS as error:
        raise DataError(
            f"{path} cannot be written: {reason_of(error)}. Is the disk full? Make room in {path.parent} and run the "
            "same command again: finished parts are kept."
        ) from error


@contextmanager
def _small_blocks() -> Iterator[None]:
    """Hide GDAL's advice to use blocks of at least 128 pixels in a COG: with many bands they would be huge."""
    log = logging.getLogger("rasterio._env")

    def other(record: logging.LogRecord) -> bool:
        return "BLOCKSIZE" not in record.getMessage()

    log.addFilter(other)
    try:
        yield
    finally:
        log.removeFilter(other)


def overview_factors(grid: Grid) -> list[int]:
    """Return the reduction factor of each overview of an image; an empty list for a small image."""
    factors = [2] if max(grid.shape) > SMALLEST_OVERVIEW else []
    while factors and max(grid.shape) / factors[-1] > SMALLEST_OVERVIEW:
        factors.append(2 * factors[-1])
    return factors


def _predictor(layer: Layer) -> int:
    """Return the predictor of the compression; none for class ids, whose differences do not compress better."""
    dtype = np.dtype(layer.dtype)
    if layer.noisy:
        return 1
    if dtype.kind == "f":
        return 1 if layer.half else 3  # GDAL 3.11 and later have no predictor for half precision
    return 1 if layer.colormap is not None or dtype.itemsize == 1 else 2


def _write_rows(
    target: str | Path,
    rows: Rows,
    layer: Layer,
    grid: Grid,
    count: int,
    units: Sequence[str],
    *,
    compressed: bool = True,
) -> None:
    """Write all values and tags to a new file, tile row by tile row."""
    profile = {
        "driver": "GTiff", "count": count, "height": grid.height, "width": grid.width, "dtype": layer.dtype,
        "crs": grid.crs, "transform": grid.transform, "nodata": layer.nodata,
        "bigtiff": "if_safer",
    }  # fmt: skip
    if compressed:
        profile |= {"compress": "deflate", "predictor": _predictor(layer)}
    if layer.half:
        profile["nbits"] = 16
    tile = layer.tile or TILE
    if min(grid.shape) >= tile:
        profile |= {"tiled": True, "blockxsize": tile, "blockysize": tile}
    with rasterio.open(target, "w", **profile) as file:
        # Tags first: in a truncated file GDAL notices missing values, but not missing tags.
        if layer.descriptions:
            file.descriptions = layer.descriptions
        if units:
            file.units = tuple(units)
        if layer.scales:
            file.scales = layer.scales
        if layer.colormap is not None:
            file.write_colormap(1, dict(layer.colormap))
        file.update_tags(**layer.tags)
        for first in range(0, grid.height, tile):
            last = min(first + tile, grid.height)
            file.write(np.ascontiguousarray(rows(first, last)), window=Window(0, first, grid.width, last - first))


def parse_color(color: str) -> Color:
    """Return red, green, blue and alpha (0 to 255) of a colour written as '#rrggbb'.

    Raises:
        ConfigError: The text has another format.
    """
    digits = color.removeprefix("#")
    try:
        if len(digits) != 6:
            raise ValueError
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        raise ConfigError(f"Cannot read the colour '{color}'; write it as '#rrggbb', e.g. '#419bdf'.") from None
    return red, green, blue, 255
