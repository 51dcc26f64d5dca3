"""Rows of a raster kept while windows go down it, so that no block is read and decoded twice."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.windows import Window

CHUNK = 8 * 2**20
"""Bytes that are read at once, about: GDAL keeps what it decodes of them, so they must be few."""


class RowBuffer:
    """All rows of the blocks that a row of windows touches.

    Args:
        raster: An open raster of rasterio.
        indexes: Numbers of the bands, from 1.
        height: Of the windows in pixels.
    """

    def __init__(self, raster: Any, indexes: list[int], height: int) -> None:
        self.raster = raster
        self.indexes = indexes
        self._tall, self._wide = raster.block_shapes[indexes[0] - 1]
        rows = min((-(-(height - 1) // self._tall) + 1) * self._tall, raster.height)
        dtype = np.result_type(*(raster.dtypes[index - 1] for index in indexes))
        self.values = np.empty((len(indexes), rows, raster.width), dtype)
        flags = raster.mask_flag_enums[indexes[0] - 1]
        has_mask = MaskFlags.per_dataset in flags or MaskFlags.alpha in flags
        self.mask = np.empty((rows, raster.width), bool) if has_mask else None
        self.first = self.last = 0
        each = self._tall * self._wide * len(indexes) * dtype.itemsize
        self._step = self._wide * max(1, CHUNK // each)
        nodata = [raster.nodatavals[index - 1] for index in indexes]
        # NaN needs no comparison, and what the type cannot hold cannot be there.
        self._nodata = [None if value is None or dtype.type(value) != value else dtype.type(value) for value in nodata]

    def window(self, row: int, column: int, height: int, width: int) -> tuple[NDArray, NDArray[np.bool_]]:
        """Return values [bands, height, width], float32, and a boolean of the same shape, True where there is data.

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
        stored = self.values[:, *here]
        values = stored.astype(np.float32)
        known = np.isfinite(values)
        for band, nodata in enumerate(self._nodata):
            if nodata is not None:
                known[band] &= stored[band] != nodata
        if self.mask is not None:
            known &= self.mask[here]
        return values, known

    def _move(self, first: int, last: int) -> None:
        """Hold the rows from a first to before a last one; what is there already is not read again."""
        start = first // self._tall * self._tall
        stop = min(-(-last // self._tall) * self._tall, self.raster.height)
        keep = max(self.last - start, 0) if self.first <= start else 0
        if keep:
            old = slice(start - self.first, self.last - self.first)
            for plane in [*self.values, *([self.mask] if self.mask is not None else [])]:
                plane[:keep] = plane[old]  # band by band: NumPy copies what overlaps
        self.first = self.last = start
        for top in range(start + keep, stop, self._tall):
            for left in range(0, self.raster.width, self._step):
                self._read(top, left, min(self._tall, stop - top), min(self._step, self.raster.width - left))
        self.last = stop

    def _read(self, top: int, left: int, height: int, width: int) -> None:
        window = Window(left, top, width, height)
        here = slice(top - self.first, top - self.first + height), slice(left, left + width)
        self.values[:, *here] = self.raster.read(self.indexes, window=window)
        if self.mask is not None:
            self.mask[here] = self.raster.read_masks(self.indexes[0], window=window) > 0
