"""GeoTIFF files: read with NaN for what is missing, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.io import MemoryFile
from rasterio.transform import Affine

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.files import write_bytes
from terramind_plugin.raster.complete import GDAL_ERRORS, reason_of
from terramind_plugin.raster.missing import FAR, read_pixels

_TILE = 256
_DTYPES = ("uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")


def is_geotiff(path: Any) -> bool:
    """Whether a path, which may be something else, names a GeoTIFF."""
    return isinstance(path, str | Path) and str(path).lower().endswith((".tif", ".tiff"))


class Image(NamedTuple):
    """A raster that was read."""

    values: NDArray[np.floating[Any]]
    """[bands, H, W], NaN where missing; float32, or float64 for numbers that need it."""
    descriptions: tuple[str | None, ...]
    """Names of the bands in the file."""
    undeclared: int
    """Number of pixels that are missing though the file does not say so."""
    far: bool
    """Whether some of them are infinite or far from 0."""


def read_image(path: str | Path, is_value: Callable[[float | None], bool] = lambda nodata: False) -> Image:
    """Return all bands of a raster, with NaN where values are missing, see `terramind_plugin.raster.missing`.

    Args:
        path: Of the file.
        is_value: Whether the file's nodata value is a value like others; then the file declares no gaps.

    Raises:
        DataError: It holds complex numbers.
        RasterioError: It cannot be read.
    """
    with rasterio.open(path) as raster:
        pixels = read_pixels(raster, declared=not is_value(raster.nodata))
        descriptions = raster.descriptions
    wide = pixels.values.astype(np.result_type(pixels.values.dtype, np.float32), copy=False)
    far = bool(pixels.undeclared) and bool((np.abs(pixels.values) > FAR).any())
    if pixels.missing is not None:
        wide[pixels.missing] = np.nan
    return Image(wide, descriptions, pixels.undeclared, far)


def read_with_gaps(
    path: str | Path, is_value: Callable[[float | None], bool] = lambda nodata: False
) -> NDArray[np.floating[Any]]:
    """Return the values of `read_image` alone.

    Args:
        path: As there.
        is_value: As there.

    Raises:
        DataError: As there.
        RasterioError: As there.
    """
    return read_image(path, is_value).values


def parse_color(color: str) -> tuple[int, int, int, int]:
    """Return red, green, blue and alpha (0 to 255) of a colour written as '#rrggbb'.

    Args:
        color: The colour.

    Raises:
        ConfigError: It is not written that way.
    """
    digits = color.removeprefix("#")
    try:
        if len(digits) != 6:
            raise ValueError
        red, green, blue = bytes.fromhex(digits)
    except ValueError:
        raise ConfigError(f"Cannot read the colour '{color}'; write it as '#rrggbb', e.g. '#419bdf'.") from None
    return red, green, blue, 255


def _creation_options(array: NDArray) -> dict[str, Any]:
    """Return GDAL creation options: deflate with a predictor for the type, tiles for images larger than one."""
    options: dict[str, Any] = {"compress": "deflate", "predictor": 3 if array.dtype.kind == "f" else 2}
    if array.itemsize == 1:
        options["predictor"] = 1  # class ids: differences of neighbours do not compress better
    if min(array.shape[1:]) >= _TILE:
        options |= {"tiled": True, "blockxsize": _TILE, "blockysize": _TILE}
    return options


def _check(path: Path, array: NDArray, descriptions: Sequence[str], units: Sequence[str], colormap: object) -> None:
    """Raise DataError unless the array can be written as described."""
    if array.ndim != 3 or 0 in array.shape:
        raise DataError(
            f"{path}: got an array of shape {array.shape}, expected [bands, height, width], none of them 0."
        )
    if array.dtype.name not in _DTYPES:
        raise DataError(f"{path}: cannot store values of type {array.dtype}; convert to one of {', '.join(_DTYPES)}.")
    for what, given in (("descriptions", descriptions), ("units", units)):
        if given and len(given) != len(array):
            raise DataError(f"{path}: got {len(given)} {what} for {len(array)} bands; give one for each band or none.")
    if colormap is not None and (len(array) != 1 or array.dtype.name not in ("uint8", "uint16")):
        raise DataError(
            f"{path}: a colour table needs one band of type uint8 or uint16, got {len(array)} of {array.dtype}."
        )


def write_geotiff(
    path: str | Path,
    array: NDArray,
    *,
    crs: object,
    transform: Affine,
    descriptions: Sequence[str] = (),
    units: Sequence[str] = (),
    nodata: float | None = None,
    colormap: Mapping[int, tuple[int, int, int, int]] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write an image as a GeoTIFF that appears under its name only when it is complete.

    The file is deflate-compressed without loss and tiled from 256 pixels on. Equal arguments give equal bytes.

    Args:
        path: Where to write; its folder must exist. An existing file is replaced.
        array: Values, [bands, height, width], of an integer type of 8 to 32 bits or a float type.
        crs: Coordinate reference system, anything that rasterio reads, e.g. 'EPSG:32646'.
        transform: From pixel corners to coordinates in `crs`.
        descriptions: Name of each band, or nothing.
        units: Unit of each band, or nothing.
        nodata: Value that stands for a missing one; readers that mask turn it into NaN.
        colormap: Red, green, blue, alpha (0 to 255) of each value of a one-band image.
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
        raise DataError(f"{path}: cannot read the CRS {crs!r}; write it like 'EPSG:32646'. ({error})") from error
    bands, height, width = array.shape
    profile = {
        "driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": array.dtype.name,
        "crs": system, "transform": transform, "nodata": nodata,
    }  # fmt: skip
    try:
        # In memory: GDAL does not say that a disk is full when it closes a file, and neither does rasterio.
        with MemoryFile() as memory:
            with memory.open(**profile, **_creation_options(array)) as file:
                for number, name in enumerate(descriptions, start=1):
                    file.set_band_description(number, name)
                if units:
                    file.units = tuple(units)
                if colormap is not None:
                    file.write_colormap(1, dict(colormap))
                if tags:
                    file.update_tags(**tags)
                # Values last, so that a file that was cut off lacks values: GDAL reads one that lacks tags.
                file.write(np.ascontiguousarray(array))
            write_bytes(path, memory.getbuffer())
    except GDAL_ERRORS as error:
        raise DataError(f"{path} cannot be written: {reason_of(error)}. Is the disk full?") from error
