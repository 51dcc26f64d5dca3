"""The rule for missing values that all reading of pixels uses.

A value is missing if it is not finite, if it is farther from 0 than `FAR`, or if the file declares it as missing by a
nodata value, a mask or an alpha band.
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
"""Magnitude above which a number means no data: float rasters are often filled with -3.4e38 without a nodata tag."""
WIDE_INTEGERS = ("int64", "uint64")
"""Types whose nodata value rasterio rounds, so that GDAL's mask is needed."""


class Pixels(NamedTuple):
    """Values of a raster and their gaps."""

    values: NDArray[Any]
    """Values [bands, H, W] in the type of the file; undefined where missing."""
    missing: NDArray[np.bool_] | None
    """Mask [bands, H, W], True where a value is missing; None if no value is missing."""
    undeclared: int
    """Number of pixels with an undeclared missing value: NaN, infinite or far from 0."""


def is_odd(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a boolean array, True where a number of any real type is not finite or farther from 0 than `FAR`."""
    if values.dtype.kind != "f":
        return np.zeros(values.shape, bool)
    with np.errstate(invalid="ignore"):
        return np.asarray(~(np.abs(values) <= _bound(values)))


def _bound(values: NDArray[Any]) -> Any:
    """Return `FAR`, or the largest number of the type where that is smaller."""
    kind = values.dtype.type
    return kind(min(FAR, float(np.finfo(kind).max)))


def read_pixels(
    raster: Any,
    bands: Sequence[int] | None = None,
    *,
    declared: bool = True,
    out: NDArray[Any] | None = None,
    **window: Any,
) -> Pixels:
    """Return values and the mask of missing values.

    Args:
        raster: An open raster of rasterio.
        bands: Numbers of the bands, counted from 1; None for all.
        declared: Whether to use the file's nodata values and masks. If not, pixels that they mark are ordinary values.
        out: Array for the values; None for a new array.
        window: Arguments `window` and `out_shape` of rasterio.

    Raises:
        DataError: The raster holds complex numbers.
        RasterioError: The raster cannot be read.
    """
    bands = list(raster.indexes) if bands is None else list(bands)
    refuse_complex(raster.name, raster.dtypes)
    values = raster.read(bands, **window, **({} if out is None else {"out": out}))
    if not declared:
        return find_missing(values)
    mask = raster.read_masks(bands, **window) > 0 if needs_mask(raster, bands) else None
    return find_missing(values, nodata_of(raster.nodatavals, raster.dtypes, bands), mask)


def find_missing(values: NDArray[Any], nodata: Sequence[Any] = (), mask: NDArray[np.bool_] | None = None) -> Pixels:
    """Return values with the mask of missing values.

    The minimum and maximum are looked at first, because most images have no gaps and then need no mask.

    Args:
        values: Values [bands, H, W] in the type of the file.
        nodata: Value of each band that means no data, from `nodata_of`; empty for none.
        mask: Mask [bands, H, W] of the file, True where it has data; None for everywhere.
    """
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    # Both are NaN if any number is, and no comparison with NaN is true.
    odd_there = values.dtype.kind == "f" and not (low >= -_bound(values) and high <= _bound(values))
    possible = odd_there or any(value is not None and low <= value <= high for value in nodata)
    missing = _find_declared(values, nodata if possible else (), mask)
    if not odd_there:
        return Pixels(values, missing, 0)
    odd = is_odd(values)
    if missing is None:
        return Pixels(values, odd, int(odd.any(axis=0).sum()))
    return Pixels(values, odd | missing, int((odd & ~missing).any(axis=0).sum()))


def nodata_of(nodatavals: Sequence[float | None], dtypes: Sequence[str], bands: Sequence[int]) -> list[Any]:
    """Return the nodata value of each band in its type; None if the band has none, or none that its type can hold.

    Args:
        nodatavals: Nodata value of each band of the file.
        dtypes: Type of each band of the file.
        bands: Numbers of the bands, counted from 1.
    """
    found: list[Any] = []
    for band in bands:
        value, dtype = nodatavals[band - 1], np.dtype(dtypes[band - 1])
        if value is None or dtype.name in WIDE_INTEGERS:
            found.append(None)
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            own = np.array(value, np.float64).astype(dtype)[()]
        found.append(own if dtype.kind == "f" or own == value else None)
    return found


def needs_mask(raster: Any, bands: Sequence[int]) -> bool:
    """Return whether GDAL's mask is needed: for a mask, an alpha band, or a 64-bit nodata value."""
    flags = raster.mask_flag_enums
    return any(
        MaskFlags.per_dataset in flags[band - 1]
        or MaskFlags.alpha in flags[band - 1]
        or (raster.dtypes[band - 1] in WIDE_INTEGERS and MaskFlags.nodata in flags[band - 1])
        for band in bands
    )


def _find_declared(
    values: NDArray[Any], nodata: Sequence[Any], mask: NDArray[np.bool_] | None
) -> NDArray[np.bool_] | None:
    """Return a mask of the values [bands, ...] that the file declares as missing; None if there are none.

    The mask is True where the file has data; None for everywhere.
    """
    gaps = None
    if any(value is not None for value in nodata):
        gaps = np.zeros(values.shape, bool)
        for gap, plane, value in zip(gaps, values, nodata, strict=True):
            if value is not None:
                np.equal(plane, value, out=gap) if value == value else np.isnan(plane, out=gap)
    if mask is not None and not mask.all():
        gaps = ~mask if gaps is None else gaps | ~mask
    return gaps if gaps is not None and gaps.any() else None


def refuse_complex(path: object, dtypes: Iterable[object]) -> None:
    """Raise a DataError if a file holds complex numbers.

    Args:
        path: Name of the file.
        dtypes: Type of each band.
    """
    if any(str(dtype).startswith("complex") for dtype in dtypes):  # NumPy knows no complex_int16
        raise DataError(
            f"{path} holds complex numbers, expected real ones. For radar, compute the intensity in decibels: "
            "10 * log10(abs(x) ** 2)."
        )


def warn_of_undeclared(path: str | Path, count: int) -> None:
    """Log a warning if a file has undeclared missing pixels."""
    if count:
        logger.warning("%s", describe_undeclared(path, count))


def describe_undeclared(path: str | Path, count: int) -> str:
    """Return a sentence on the number of undeclared missing pixels of a file."""
    pixels = "1 pixel is" if count == 1 else f"{count} pixels are"
    return (
        f"{path}: {pixels} not finite or beyond 1e30 and count as missing. If that is meant, declare the number in the "
        "file: gdal_edit.py -a_nodata NUMBER."
    )
