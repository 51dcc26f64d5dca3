"""A raster read on another grid, block by block, with gaps that do not leak into their neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import MaskFlags, Resampling
from rasterio.transform import Affine
from rasterio.warp import reproject
from rasterio.warp import transform as transform_positions
from rasterio.windows import Window

from terramind_plugin.raster.georeference import Grid, apply_affine, move_transform
from terramind_plugin.raster.missing import read_pixels

BLOCK = (256, 1024)
"""Height and width in pixels of a block that is warped at once. Fixed, so that results do not depend on the windows."""
LARGEST = 2**24
"""Maximum number of values that are read from the file at once. A block that needs more is warped in parts."""
KEPT = 8
"""Minimum number of warped blocks that are kept, because neighbouring windows share blocks."""
SAME_SIZE = 0.05
"""Relative difference up to which sizes of pixels count as the same, as in GDAL."""
SAMPLES = 21
"""Number of positions along each side of a block that are projected to find the pixels that the block needs."""


class WarpedRaster:
    """An open raster, read on another grid as float32 with NaN for gaps. It has the attributes of rasterio in use here.

    Missing values are set to NaN before warping, by the rule of `terramind_plugin.raster.missing`. GDAL's own virtual
    raster supports one nodata value and would mix other missing values, such as infinity, into their neighbours.

    Args:
        raster: An open raster of rasterio.
        grid: The other grid.
        resampling: Resampling method.
    """

    def __init__(self, raster: Any, grid: Grid, resampling: Resampling) -> None:
        self._raster = raster
        self._resampling = resampling
        self.crs, self.transform = grid.crs, grid.transform
        self.height, self.width = grid.shape
        self.name = raster.name
        self.indexes = raster.indexes
        self.block_shapes = [BLOCK] * raster.count
        self.dtypes = ("float32",) * raster.count
        self.nodatavals = (float("nan"),) * raster.count
        self.mask_flag_enums = ([MaskFlags.nodata],) * raster.count
        self._ratio = pixel_ratio(grid, raster.crs, raster.transform)
        self.undeclared = 0
        """Number of missing pixels, in the blocks read so far, that the file does not declare."""
        self._block = lru_cache(KEPT)(self._warp_block)

    def read(self, bands: Sequence[int], window: Window | None = None) -> NDArray[np.float32]:
        """Return a window [bands, height, width] that lies inside the grid.

        Args:
            bands: Numbers of the bands, counted from 1.
            window: Window of the grid; None for all.

        Raises:
            DataError: The file holds complex numbers.
            RasterioError: A block cannot be read.
        """
        window = Window(0, 0, self.width, self.height) if window is None else window
        top, left, height, width = window.row_off, window.col_off, window.height, window.width
        values = np.empty((len(bands), height, width), np.float32)
        tall, wide = BLOCK
        for row in range(top // tall * tall, top + height, tall):
            for column in range(left // wide * wide, left + width, wide):
                block = self._block(tuple(bands), row, column)
                first, last = max(row, top), min(row + block.shape[1], top + height)
                start, stop = max(column, left), min(column + block.shape[2], left + width)
                values[:, first - top : last - top, start - left : stop - left] = block[
                    :, first - row : last - row, start - column : stop - column
                ]
        return values

    def _warp_block(self, bands: tuple[int, ...], row: int, column: int) -> NDArray[np.float32]:
        height, width = min(BLOCK[0], self.height - row), min(BLOCK[1], self.width - column)
        block = np.full((len(bands), height, width), np.nan, np.float32)
        for top, left, tall, wide, window in self._parts(row, column, height, width, len(bands)):
            here = slice(top - row, top - row + tall), slice(left - column, left - column + wide)
            block[:, *here] = self._warp(bands, window, top, left, (tall, wide))
        block.flags.writeable = False
        return block

    def _parts(
        self, row: int, column: int, height: int, width: int, bands: int
    ) -> Iterator[tuple[int, int, int, int, Window]]:
        """Yield the parts of a block that overlap the raster, each with the window of the raster that it needs."""
        window = self._needed(row, column, height, width)
        if window is None:
            return
        if window.height * window.width * bands <= LARGEST or height * width == 1:
            yield row, column, height, width, window
        elif height >= width:
            yield from self._parts(row, column, height // 2, width, bands)
            yield from self._parts(row + height // 2, column, height - height // 2, width, bands)
        else:
            yield from self._parts(row, column, height, width // 2, bands)
            yield from self._parts(row, column + width // 2, height, width - width // 2, bands)

    def _needed(self, row: int, column: int, height: int, width: int) -> Window | None:
        """Return the window of the raster that a part of the grid needs; None if they do not overlap."""
        x, y = np.meshgrid(np.linspace(column, column + width, SAMPLES), np.linspace(row, row + height, SAMPLES))
        east, north = apply_affine(self.transform, x.ravel(), y.ravel())
        if self.crs != self._raster.crs:
            moved = transform_positions(self.crs, self._raster.crs, east.tolist(), north.tolist())
            east, north = np.asarray(moved[0]), np.asarray(moved[1])
        columns, rows = apply_affine(~self._raster.transform, east, north)
        known = np.isfinite(columns) & np.isfinite(rows)
        if not known.any():
            return None
        edges = []
        for positions, count, limit in (
            (rows[known], height, self._raster.height),
            (columns[known], width, self._raster.width),
        ):
            # In both directions GDAL uses as many source pixels as one pixel of the grid covers.
            margin = 4 + int(np.ceil(np.ptp(positions) / count))
            first, last = max(int(positions.min()) - margin, 0), min(int(np.ceil(positions.max())) + margin, limit)
            if first >= last:
                return None
            edges += [(first, last)]
        (top, bottom), (left, right) = edges
        return Window(left, top, right - left, bottom - top)

    def _warp(
        self, bands: tuple[int, ...], window: Window, top: int, left: int, shape: tuple[int, int]
    ) -> NDArray[np.float32]:
        pixels = read_pixels(self._raster, bands, window=window)
        with np.errstate(over="ignore"):  # numbers too large for float32 count as missing
            values = pixels.values.astype(np.float32)
        if pixels.missing is not None:
            values[pixels.missing] = np.nan
        warped = self._reproject(values, window, top, left, shape, self._resampling)
        if pixels.undeclared:
            assert pixels.missing is not None
            odd = np.ascontiguousarray(pixels.missing.any(axis=0), np.float32)[None]
            seen = self._reproject(odd, window, top, left, shape, Resampling.nearest)
            self.undeclared += int((seen == 1).sum())
        return warped

    def _reproject(
        self,
        values: NDArray[np.float32],
        window: Window,
        top: int,
        left: int,
        shape: tuple[int, int],
        resampling: Resampling,
    ) -> NDArray[np.float32]:
        result = np.full((len(values), *shape), np.nan, np.float32)
        reproject(
            values,
            result,
            src_crs=self._raster.crs,
            src_transform=move_transform(self._raster.transform, window.col_off, window.row_off),
            src_nodata=np.nan,
            dst_crs=self.crs,
            dst_transform=move_transform(self.transform, left, top),
            dst_nodata=np.nan,
            resampling=resampling,
            # A gap in one band is not a gap in the others.
            UNIFIED_SRC_NODATA="NO",
            **self._ratio,
        )
        return result

    def keep_rows(self, height: int, bands: int, most: int) -> None:
        """Keep the blocks of a row of windows, so that no block is warped again for the next row.

        Args:
            height: Height of the windows.
            bands: Number of bands.
            most: Maximum size of the kept blocks in bytes.
        """
        tall, wide = BLOCK
        row = ((height - 1) // tall + 2) * -(-self.width // wide)
        self._block = lru_cache(max(KEPT, min(row, most // (4 * bands * tall * wide))))(self._warp_block)

    def close(self) -> None:
        """Drop all blocks. The raster itself must be closed by the code that opened it."""
        self._block.cache_clear()


def pixel_ratio(grid: Grid, crs: Any, transform: Affine) -> dict[str, float]:
    """Return GDAL's options XSCALE and YSCALE: the size of a file's pixels in pixels of a grid, at the grid's middle.

    Without them GDAL compares the sizes of source and target window. In another UTM zone the source window of a block
    is rotated and therefore larger than the block. GDAL would infer finer pixels, and blur the result.

    Args:
        grid: The grid to warp to.
        crs: Coordinate reference system of the file.
        transform: Transform of the file.
    """
    column, row = grid.width / 2, grid.height / 2  # the middle, and one pixel to the right and below
    x, y = apply_affine(grid.transform, np.array([column, column + 1, column]), np.array([row, row, row + 1]))
    if crs != grid.crs:
        x, y = (np.array(found) for found in transform_positions(grid.crs, crs, x, y))
    columns, rows = apply_affine(~transform, x, y)
    sizes = [float(np.hypot(*(part[1:] - part[0]))) for part in (columns, rows)]
    if not np.all(np.isfinite(sizes)) or min(sizes) <= 0:
        return {}  # the middle lies outside the file's projection
    return {name: _snap(1 / size) for name, size in zip(("XSCALE", "YSCALE"), sizes, strict=True)}


def _snap(ratio: float) -> float:
    """Return 1 for a ratio close to 1: the scale of UTM differs by less than 1 % between zones."""
    return 1.0 if abs(ratio - 1) < SAME_SIZE else ratio
