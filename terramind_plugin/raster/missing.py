"""Missing values of rasters: one rule for everything that reads pixels.

A value is missing where it is not finite, where it is farther from 0 than `FAR`, or where the file says so: by its
nodata value, a mask, or an alpha band.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import MaskFlags

from terramind_plugin.errors import DataError

logger = logging.getLogger("terramind_plugin")

FAR = 1e30
"""Magnitude above which a number stands for no data: float rasters are often filled with -3.4e38 and not tagged."""
WIDE_INTEGERS = ("int64", "uint64")
"""Types whose nodata value rasterio does not return exactly, so that GDAL must compare."""


class Pixels(NamedTuple):
    """Values of a raster and their mask of missing values."""

    values: NDArray
    """Values [bands, H, W] in the type of the file; undefined where missing."""
    missing: NDArray[np.bool_] | None
    """Mask [bands, H, W], True where a value is missing; None if no value is missing."""
    undeclared: int
    """Number of pixels with an undeclared missing value: NaN, infinite or far from 0."""


def has_odd(values: NDArray) -> bool:
    """Return whether some value is not finite or farther from 0 than `FAR`; quicker than `is_odd`.

    Args:
        values: Numbers of any real type and shape.
    """
    if values.dtype.kind != "f" or not values.size:
        return False
    # Minimum and maximum of values with a NaN are NaN, for which both comparisons are false.
    bound = _bound(values)
    return not (values.min() >= -bound and values.max() <= bound)


def is_odd(values: NDArray) -> NDArray[np.bool_]:
    """Return a boolean array, True where a value is not finite or farther from 0 than `FAR`.

    Args:
        values: Numbers of any real type and shape.
    """
    if values.dtype.kind != "f":
        return np.zeros(values.shape, bool)
    with np.errstate(invalid="ignore"):
        return ~(np.abs(values) <= _bound(values))


def _bound(values: NDArray) -> Any:
    """Return `FAR` in the type of some numbers, or the largest number of a type that ends before."""
    kind = values.dtype.type
    return kind(min(FAR, float(np.finfo(kind).max)))


def nodata_of(raster: Any, bands: Sequence[int]) -> list[Any]:
    """Return the nodata value of some bands in their type, None for a band whose pixels cannot have one.

    Args:
        raster: An open raster of rasterio.
        bands: Numbers of the bands, counted from 1.
    """
    found: list[Any] = []
    for band in bands:
        value, dtype = raster.nodatavals[band - 1], np.dtype(raster.dtypes[band - 1])
        if value is None or dtype.name in WIDE_INTEGERS:
            found.append(None)
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            own = np.array(value, np.float64).astype(dtype)[()]
        found.append(own if dtype.kind == "f" or own == value else None)
    return found


def has_mask(raster: Any, band: int) -> bool:
    """Return whether GDAL must compute a band's mask: from a mask, an alpha band, or nodata of 64-bit integers.

    Args:
        raster: An open raster of rasterio.
        band: Number of the band, counted from 1.
    """
    flags = raster.mask_flag_enums[band - 1]
    wide = raster.dtypes[band - 1] in WIDE_INTEGERS and MaskFlags.nodata in flags
    return MaskFlags.per_dataset in flags or MaskFlags.alpha in flags or wide


def find_declared(
    values: NDArray, nodata: Sequence[Any], mask: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_] | None:
    """Return the mask of values that a file declares missing; None if there are none.

    Args:
        values: [bands, ...] of any real type.
        nodata: Nodata value of each band, from `nodata_of`.
        mask: Boolean that broadcasts to the values, True where the file has data; None for everywhere.
    """
    gaps = None
    if any(value is not None for value in nodata):
        gaps = np.zeros(values.shape, bool)
        for gap, plane, value in zip(gaps, values, nodata, strict=True):
            if value is not None:
                np.equal(plane, value, out=gap) if value == value else np.isnan(plane, out=gap)
    if mask is not None and not mask.all():
        gaps = ~np.broadcast_to(mask, values.shape) if gaps is None else gaps | ~mask
    return gaps if gaps is not None and gaps.any() else None


def read_pixels(raster: Any, bands: Sequence[int] | None = None, *, declared: bool = True, **window: Any) -> Pixels:
    """Return values and the mask of missing values.

    Args:
        raster: An open raster of rasterio.
        bands: Numbers of the bands, counted from 1; None for all.
        declared: Whether values that the file declares missing are missing; if not, they are ordinary values.
        window: `window` and `out_shape` of rasterio.

    Raises:
        DataError: The raster holds complex numbers.
        RasterioError: The raster cannot be read.
    """
    bands = list(raster.indexes) if bands is None else list(bands)
    refuse_complex(raster.name, raster.dtypes)
    values = raster.read(bands, **window)
    missing = None
    if declared:
        asked = any(has_mask(raster, band) for band in bands)
        mask = raster.read_masks(bands, **window) > 0 if asked else None
        missing = find_declared(values, nodata_of(raster, bands), mask)
    return Pixels(values, *add_odd(values, missing))


def add_odd(values: NDArray, declared: NDArray[np.bool_] | None) -> tuple[NDArray[np.bool_] | None, int]:
    """Return the mask of missing values including odd ones, and the number of pixels with undeclared odd values.

    Args:
        values: Values [bands, ...] of any real type.
        declared: Mask of `find_declared`.
    """
    if not has_odd(values):
        return declared, 0
    odd = is_odd(values)
    if declared is None:
        return odd, int(odd.any(axis=0).sum())
    return odd | declared, int((odd & ~declared).any(axis=0).sum())


def refuse_complex(path: object, dtypes: Iterable[object]) -> None:
    """Raise a DataError if a file holds complex numbers.

    Args:
        path: Name of the file.
        dtypes: Type of each band.
    """
    if any(np.dtype(str(dtype)).kind == "c" for dtype in dtypes):
        raise DataError(
            f"{path} holds complex numbers, expected real ones: of radar, take the intensity in decibels, "
            "10 * log10(abs(x) ** 2)."
        )


def warn_of_undeclared(path: str | Path, count: int) -> None:
    """Log a warning of undeclared missing pixels, if there are any.

    Args:
        path: The file.
        count: Number of these pixels.
    """
    if count:
        logger.warning("%s", describe_undeclared(path, count))


def describe_undeclared(path: str | Path, count: int) -> str:
    """Return a sentence about undeclared missing pixels.

    Args:
        path: The file.
        count: Number of these pixels.
    """
    pixels = "1 pixel is" if count == 1 else f"{count} pixels are"
    return (
        f"{path}: {pixels} not finite or beyond 1e30 and taken as missing. If that is meant, declare the number in the "
        "file: gdal_edit.py -a_nodata NUMBER."
    )
