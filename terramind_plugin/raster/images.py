"""Open images of a data set: a raster, or its decoded copy in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from terramind_plugin.raster.missing import Pixels, find_missing, needs_mask, nodata_of, read_pixels, refuse_complex

Slices = tuple[slice, slice]
"""Rows and columns of a window."""
Buffer = Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]
"""Function of a shape and a type that returns an array whose content may be overwritten."""


class OpenImage(Protocol):
    """An image that can be read window by window."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the numbers of bands, rows and columns."""

    @property
    def descriptions(self) -> tuple[str | None, ...]:
        """Return the names of the bands in the file."""

    @property
    def nodata(self) -> float | None:
        """Return the nodata value of the first band."""

    def read(self, window: Slices | None = None, *, declared: bool = True, buffer: Buffer | None = None) -> Pixels:
        """Return values [bands, h, w] in the type of the file, and their gaps.

        Args:
            window: Rows and columns; None for all.
            declared: Whether to use the file's nodata values and masks.
            buffer: Makes the array for the values; None for a new array.

        Raises:
            DataError: The raster holds complex numbers.
            RasterioError: The raster cannot be read.
        """


class RasterImage:
    """A raster on disk.

    Args:
        raster: An open raster of rasterio.
    """

    def __init__(self, raster: Any) -> None:
        self._raster = raster
        self.shape: tuple[int, int, int] = (raster.count, raster.height, raster.width)
        self.descriptions: tuple[str | None, ...] = raster.descriptions
        self.nodata: float | None = raster.nodata

    def read(self, window: Slices | None = None, *, declared: bool = True, buffer: Buffer | None = None) -> Pixels:
        """Return values and gaps, see `OpenImage`."""
        refuse_complex(self._raster.name, self._raster.dtypes)
        options: dict[str, Any] = {}
        size = self.shape[1:]
        if window is not None:
            options["window"] = Window.from_slices(*window)
            size = tuple(part.stop - part.start for part in window)
        if buffer is not None and len(set(self._raster.dtypes)) == 1:
            options["out"] = buffer((self.shape[0], *size), np.dtype(self._raster.dtypes[0]))
        return read_pixels(self._raster, declared=declared, **options)


@dataclass(frozen=True)
class DecodedImage:
    """All values of a raster in the type of the file, with mask, nodata values and names of bands."""

    values: NDArray[Any]
    """Values [bands, H, W]."""
    mask: NDArray[np.bool_] | None
    """Mask [bands, H, W] of the file, True where it has data; None if nodata values alone tell what is missing."""
    nodatavals: tuple[float | None, ...]
    """Nodata value of each band."""
    dtypes: tuple[str, ...]
    """Type of each band."""
    descriptions: tuple[str | None, ...]
    """Names of the bands in the file."""
    whole: bool
    """True if no value is missing."""

    @classmethod
    def of(cls, raster: Any) -> DecodedImage:
        """Return the content of an open raster.

        Raises:
            DataError: The raster holds complex numbers.
            RasterioError: The raster cannot be read.
        """
        bands = list(raster.indexes)
        values = read_pixels(raster, declared=False).values
        mask = raster.read_masks(bands) > 0 if needs_mask(raster, bands) else None
        found = find_missing(values, nodata_of(raster.nodatavals, raster.dtypes, bands), mask)
        return cls(values, mask, raster.nodatavals, raster.dtypes, raster.descriptions, found.missing is None)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the numbers of bands, rows and columns."""
        count, height, width = self.values.shape
        return count, height, width

    @property
    def nodata(self) -> float | None:
        """Return the nodata value of the first band."""
        return self.nodatavals[0]

    def read(self, window: Slices | None = None, *, declared: bool = True, buffer: Buffer | None = None) -> Pixels:
        """Return values, which must not be changed, and gaps, see `OpenImage`."""
        part = (slice(None), *(window or ()))
        values = self.values[part]
        if self.whole:
            return Pixels(values, None, 0)
        if not declared:
            return find_missing(values)
        bands: Sequence[int] = range(1, len(values) + 1)
        return find_missing(
            values, nodata_of(self.nodatavals, self.dtypes, bands), None if self.mask is None else self.mask[part]
        )


@contextmanager
def open_image(name: str) -> Iterator[OpenImage]:
    """Yield an open raster.

    Args:
        name: Name by which GDAL opens it.

    Raises:
        RasterioError: The raster cannot be opened.
    """
    with rasterio.open(name) as raster:
        yield RasterImage(raster)
