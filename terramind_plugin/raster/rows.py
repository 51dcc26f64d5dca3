"""Rows of a raster kept while windows go down it, so that no block is read and decoded twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from terramind_plugin.parallel import usable
from terramind_plugin.raster.missing import add_odd, find_declared, has_mask, has_odd, is_odd, nodata_of

CHUNK = 8 * 2**20
"""Bytes that are read at once, about: GDAL keeps what it decodes of them, so they must be few."""
BLOCKS = min(4, usable())
"""Blocks that are read at once however large they are: each is decoded by a thread."""


class RowBuffer:
    """The rows of a row of windows, and those below that come with the same blocks.

    Args:
        raster: An open raster of rasterio, or a `WarpedRaster`.
        indexes: Numbers of the bands, from 1.
        height: Of the windows in pixels.
        on_rows: Called with the first and last-plus-one of rows that were read and are held now.
    """

    def __init__(
        self, raster: Any, indexes: list[int], height: int, on_rows: Callable[[int, int], object] = lambda *rows: None
    ) -> None:
        self.raster = raster
        self.indexes = indexes
        self.on_rows = on_rows
        self._tall, self._wide = raster.block_shapes[indexes[0] - 1]
        rows = min(height + self._tall - 1, raster.height)
        dtype = np.result_type(*(raster.dtypes[index - 1] for index in indexes))
        self.values = np.empty((len(indexes), rows, raster.width), dtype)
        self.mask = np.empty((rows, raster.width), bool) if has_mask(raster, indexes[0]) else None
        self.first = self.last = 0
        each = self._tall * self._wide * len(indexes) * dtype.itemsize
        self._step = self._wide * max(BLOCKS, CHUNK // each)
        self._nodata = nodata_of(raster, indexes)
        self.odd = False
        """Whether some value that was read is missing without being declared: most files have none to look for."""
        self.undeclared = 0
        """Number of pixels read so far that have such a value."""

    def window(
        self, row: int, column: int, height: int, width: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
        """Return values [bands, height, width] and where there is data, of the same shape; None for everywhere.

        Args:
            row: First row.
            column: First column.
            height: Rows; with the first they lie inside the raster.
            width: Columns, likewise.

        Raises:
            RasterioError: A block cannot be read.
        """
        if row < self.first or row + height > self.last:
            self._move(row, row + height)
        here = slice(row - self.first, row - self.first + height), slice(column, column + width)
        return self._data(self.values[:, *here], here, range(len(self.indexes)))

    def pick(
        self, bands: Sequence[int], rows: NDArray, columns: NDArray
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
        """Return the same of some bands at some rows that are held, and some columns."""
        here = np.ix_(rows - self.first, columns)
        return self._data(self.values[np.array(bands)[:, None, None], *here], here, bands)

    def _data(
        self, stored: NDArray, here: tuple[Any, ...], bands: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
        """Return values and where there is data; most windows have data everywhere, and a copy less counts."""
        with np.errstate(over="ignore"):  # what is too large for float32 is missing
            values = stored.astype(np.float32)
        mask = None if self.mask is None else self.mask[here]
        missing = find_declared(stored, [self._nodata[band] for band in bands], mask)
        if self.odd:
            odd = is_odd(stored)
            missing = odd if missing is None else odd | missing
        return values, None if missing is None or not missing.any() else ~missing

    def _move(self, first: int, last: int) -> None:
        """Hold the rows from a first to before a last one; what is there already is not read again."""
        stop = min(-(-last // self._tall) * self._tall, self.raster.height)
        begin = self.last if self.first <= first < self.last else first
        if begin > first:
            old = slice(first - self.first, self.last - self.first)
            for plane in [*self.values, *([self.mask] if self.mask is not None else [])]:
                plane[: begin - first] = plane[old]  # band by band: NumPy copies what overlaps
        self.first = self.last = first
        for top in (begin, *range((begin // self._tall + 1) * self._tall, stop, self._tall)):
            tall = min(self._tall - top % self._tall, stop - top)
            for left in range(0, self.raster.width, self._step):
                self._read(top, left, tall, min(self._step, self.raster.width - left))
        self.last = stop
        self.on_rows(begin, stop)

    def _read(self, top: int, left: int, height: int, width: int) -> None:
        window = Window(left, top, width, height)
        here = slice(top - self.first, top - self.first + height), slice(left, left + width)
        self.raster.read(self.indexes, window=window, out=self.values[:, *here])
        if self.mask is not None:
            self.mask[here] = self.raster.read_masks(self.indexes[0], window=window) > 0
        if has_odd(values := self.values[:, *here]):
            self.odd = True
            declared = find_declared(values, self._nodata, None if self.mask is None else self.mask[here])
            self.undeclared += add_odd(values, declared)[1]
