"""Rasters read window by window on one grid, with gaps filled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from terramind_plugin.errors import ConfigError, DataError, counted
from terramind_plugin.model.modalities import Modality, find
from terramind_plugin.raster.bands import bands_of_date, check_dated_names, find_bands
from terramind_plugin.raster.complete import GDAL_ERRORS, reason_of
from terramind_plugin.raster.georeference import Grid, check_georeference
from terramind_plugin.raster.missing import read_pixels, refuse_complex
from terramind_plugin.raster.netcdf import raster_name
from terramind_plugin.raster.paths import is_remote, raster_path
from terramind_plugin.raster.thumbnail import Thumbnail
from terramind_plugin.raster.values import check_classes, warn_of_units
from terramind_plugin.raster.warped import WarpedRaster
from terramind_plugin.system.parallel import usable

SMALL_INTEGERS = ("uint8", "int8", "uint16", "int16")
"""Types of values that `Source.keep_type` keeps."""
TOLERANCE = 0.01
"""Maximum distance in pixels between two grids that count as the same."""
THREADS = min(16, usable())
"""Number of threads that decode blocks of a file: few cores decode windows more slowly than a GPU uses them."""
MOST_CACHE = 2**30
"""Maximum size in bytes of the cache of decoded blocks, which the next row of windows uses again."""
PREVIEW_TILE = 1024
"""Maximum height and width in pixels of a window that is read for a preview."""


@dataclass(frozen=True)
class Expected:
    """Bands and units that a raster must have."""

    name: str
    """Name of the modality, for messages."""
    bands: tuple[str, ...]
    """Names of the bands to read, in order. Of a file that does not name its bands, only their number is checked."""
    fill: tuple[float, ...]
    """Fill value of pixels without data, for each band."""
    file_bands: tuple[str, ...] = ()
    """Names of the file's bands, if they differ from `bands` and the file does not name them."""
    classes: int = 0
    """Number of classes if values are class ids; 0 otherwise."""
    scale: float = 1.0
    """Factor that converts the values of the file, after `offset` is added, to the units of the modality."""
    offset: float = 0.0
    """Number added to the values of the file."""
    dated: bool = False
    """True if the file may hold several dates, each with these bands."""
    by_band: bool = False
    """True if a file of several dates holds all dates of a band together, not all bands of a date."""
    keep_missing: bool = False
    """True if a date without data in a window stays NaN there, instead of being filled."""

    @classmethod
    def of(cls, modality: Modality, file_bands: Sequence[str] = ()) -> Expected:
        """Return the bands and units of a modality. Gaps get the pre-training mean, or class 0, which means no data.

        Args:
            modality: Modality of the file.
            file_bands: Names of the file's bands, if their order differs from the modality's.

        Raises:
            ConfigError: The modality is a text and has no raster.
        """
        if not modality.bands:
            raise ConfigError(f"{modality.name} is not an image, so it cannot be read from a file.")
        fill = (0.0,) if modality.kind == "classes" else modality.mean
        return cls(modality.name, modality.band_names, fill, tuple(file_bands), len(modality.class_names))


class FilledPixels(NamedTuple):
    """Pixels of a raster whose gaps are filled."""

    values: NDArray[Any]
    """Values [bands, H, W], gaps filled: float32, or the type of the file, see `Source.keep_type`."""
    valid: NDArray[np.bool_]
    """Mask [H, W], True where some band was measured."""


class Source:
    """A raster that is read on a grid. A raster on another grid is warped while it is read.

    One thread at a time may use it.

    Args:
        path: The raster.
        expected: Bands and units that the raster must have.
        grid: Grid on which it is read; None for its own grid.
        threads: Number of threads that decode blocks. They do not survive a fork: a forked process that reads would
            wait for them forever.
        warn: Whether to warn of values that look like those of another unit.

    Raises:
        DataError: The raster cannot be opened, has other bands, or does not overlap the grid.
    """

    def __init__(
        self, path: str | Path, expected: Expected, grid: Grid | None = None, threads: int = 1, *, warn: bool = True
    ) -> None:
        self.path = raster_path(path)
        self.expected = expected
        if not is_remote(path) and not self.path.is_file():
            raise DataError(f"There is no file {path}.")
        try:
            with rasterio.Env(GDAL_NUM_THREADS=threads):
                self._file = rasterio.open(raster_name(path, expected.name, expected.file_bands or expected.bands))
        except GDAL_ERRORS as error:
            raise DataError(f"{path} cannot be read as a raster: {reason_of(error)}") from error
        try:
            refuse_complex(path, self._file.dtypes)
            check_georeference(self._file)
            bands, self.dates = _find_dates(path, expected, self._file.descriptions)
        except DataError:
            self._file.close()
            raise
        self.native = Grid(self._file.height, self._file.width, self._file.crs or CRS(), self._file.transform)
        self.grid = grid or self.native
        self.indexes = [index + 1 for index in bands]
        self.warped = not self._matches(self.grid)
        self._raster: Any = self._warp() if self.warped else self._file
        self._fill = np.array(expected.fill * self.dates, dtype=np.float32)[:, None, None]
        self._warned = not warn
        self.before: Callable[[int, int], object] = lambda first, last: None
        """Function called before rows are read, with the first row and the row after the last one."""
        self._thumbnail: Thumbnail | None = None
        self._undeclared = 0
        self._counted = _Counted()
        self.keep_type = False
        """Whether windows without gaps keep the type of a file of small integers, instead of becoming float32."""
        self.measured: NDArray[np.bool_] = np.ones(self.dates, bool)
        """Whether each date had data in the window that was read last."""

    def _matches(self, grid: Grid) -> bool:
        own = self.native
        if own.crs != grid.crs and not (own.crs and grid.crs):
            raise DataError(
                f"{self.path} has the CRS {own.crs or 'none'}, but the first input has {grid.crs or 'none'}. "
                "Give both a CRS, e.g. with gdal_edit.py -a_srs."
            )
        if own.crs == grid.crs and own.shape == grid.shape and grid.distance(own) <= TOLERANCE:
            return True
        if not own.crs:
            raise DataError(
                f"{self.path} has {own.height} x {own.width} pixels, but the first input has {grid.height} x "
                f"{grid.width}, and without a CRS they cannot be aligned. Give both a CRS, or cut them to one size."
            )
        return False

    def _warp(self) -> WarpedRaster:
        """Return the raster on the grid, NaN where it has no data."""
        left, bottom, right, top = self.grid.bounds
        here = (min(left, right), min(bottom, top), max(left, right), max(bottom, top))
        try:
            there = transform_bounds(self.native.crs, self.grid.crs, *self._file.bounds)
        except GDAL_ERRORS as error:
            raise DataError(f"{self.path} cannot be warped to {self.grid.crs}: {reason_of(error)}") from error
        if there[0] >= here[2] or there[2] <= here[0] or there[1] >= here[3] or there[3] <= here[1]:
            raise DataError(
                f"{self.path} does not overlap the first input: it covers {_shown(there)}, the first input covers "
                f"{_shown(here)} in {self.grid.crs}. Check its CRS, {self.native.crs}."
            )
        resampling = Resampling.nearest if self.expected.classes else Resampling.bilinear
        return WarpedRaster(self._file, self.grid, resampling)

    def read(self, row: int, column: int, height: int, width: int) -> FilledPixels:
        """Return a window that starts inside the image; beyond its lower and right edges it is mirrored.

        Args:
            row: First row.
            column: First column.
            height: Number of rows.
            width: Number of columns.

        Raises:
            DataError: A block cannot be read, or values are not class ids.
        """
        inside = min(height, self.grid.height - row), min(width, self.grid.width - column)
        part = self._read(row, column, inside, inside)
        self._gather(row, column, inside, part)
        beyond = ((0, height - inside[0]), (0, width - inside[1]))
        if not any(after for _, after in beyond):
            return part
        return FilledPixels(np.pad(part.values, ((0, 0), *beyond), mode="reflect"), np.pad(part.valid, beyond))

    def preview(self, size: tuple[int, int], bands: Sequence[int]) -> FilledPixels:
        """Return the whole image at a reduced size, by nearest-neighbour resampling.

        Args:
            size: Height and width in pixels.
            bands: Positions of the bands to read among the expected bands.

        Raises:
            DataError: As in `read`.
        """
        if self._reduces_itself:
            return self._read(0, 0, self.grid.shape, size, bands)
        thumbnail = self._thumbnail
        if thumbnail is None or (thumbnail.size, thumbnail.bands) != (size, list(bands)):
            thumbnail = Thumbnail(self.grid.shape, size, bands)
        # Block by block, because GDAL would otherwise decode each block again for each band.
        tall, wide = (max(PREVIEW_TILE // side, 1) * side for side in self._raster.block_shapes[0])
        for top in range(0, self.grid.height, tall):
            for left in range(0, self.grid.width, wide):
                inside = min(tall, self.grid.height - top), min(wide, self.grid.width - left)
                if thumbnail.lacks(top, left, *inside):
                    thumbnail.add(top, left, *self._read(top, left, inside, inside, bands))
        return FilledPixels(thumbnail.values, thumbnail.valid)

    @property
    def _reduces_itself(self) -> bool:
        """Return whether GDAL can make a reduced image without reading the whole image."""
        return not self.warped and bool(self._file.overviews(1))

    def _gather(self, row: int, column: int, inside: tuple[int, int], part: FilledPixels) -> None:
        """Copy the pixels of a preview from a window that was read."""
        thumbnail = self._thumbnail
        if thumbnail is not None and thumbnail.lacks(row, column, *inside):
            thumbnail.add(row, column, part.values[thumbnail.bands], part.valid)

    def _read(
        self,
        row: int,
        column: int,
        inside: tuple[int, int],
        size: tuple[int, int],
        bands: Sequence[int] | None = None,
    ) -> FilledPixels:
        """Return some bands of a window that lies inside the image, resampled to a size."""
        indexes = self.indexes if bands is None else [self.indexes[band] for band in bands]
        self.before(row, row + inside[0])
        try:
            window = Window(column, row, inside[1], inside[0])
            reduced: dict[str, Any] = {} if size == inside else {"out_shape": (len(indexes), *size)}
            pixels = read_pixels(self._raster, indexes, window=window, **reduced)
            if bands is None and not self.warped:
                new = self._counted.add(window)
                if pixels.undeclared and new is not None:
                    self._undeclared += read_pixels(self._raster, indexes, window=new).undeclared
        except GDAL_ERRORS as error:
            raise DataError(
                f"{self.path}: rows {row} to {row + inside[0] - 1}, columns {column} to {column + inside[1] - 1} "
                f"cannot be read: {reason_of(error).rstrip('.')}. The file may be damaged or incomplete: copy or "
                "download it again."
            ) from error
        known = None if pixels.missing is None else ~pixels.missing
        values = pixels.values
        keeps = self.keep_type and bands is None and known is None and values.dtype.name in SMALL_INTEGERS
        if not keeps:
            with np.errstate(over="ignore"):  # numbers too large for float32 count as missing
                values = values.astype(np.float32, copy=False)
        measured = values if known is None else values[known]
        expected = self.expected
        if expected.classes:
            check_classes(self.path, expected.name, measured, expected.classes)
        elif not self._warned and measured.size and (modality := find(expected.name)) is not None:
            self._warned = True
            in_units = (measured + np.float32(expected.offset)) * np.float32(expected.scale)
            whole = size == inside == self.grid.shape or self._file.dtypes[0] in ("uint8", "int8")
            warn_of_units(self.path, modality, in_units, all_values=whole, scale=expected.scale)
        self.measured = np.ones(self.dates, bool)
        if known is None:
            return FilledPixels(values, np.ones(values.shape[1:], bool))
        fill = self._fill if bands is None else self._fill[list(bands)]
        if bands is None:
            self.measured = np.asarray(known.reshape(self.dates, -1).any(axis=1))
        return FilledPixels(np.where(known, values, fill), np.asarray(known.any(axis=0)))

    def keep_rows(self, height: int, size: tuple[int, int] | None = None, bands: Sequence[int] = ()) -> None:
        """Prepare for reading windows in rows of windows, from top to bottom.

        Args:
            height: Height of the windows.
            size: Height and width of a later preview, whose pixels are gathered while windows are read.
            bands: Positions of the bands of the preview.
        """
        if self.warped:
            self._raster.keep_rows(height, len(self.indexes), MOST_CACHE)
        if size is not None and not self._reduces_itself:
            self._thumbnail = Thumbnail(self.grid.shape, size, bands)

    def cache_bytes(self, height: int) -> int:
        """Return the size in bytes of the decoded blocks that GDAL must keep so that no block is decoded twice.

        Args:
            height: Height of the windows.
        """
        tall, wide = self._file.block_shapes[0]
        block: int = tall * wide * sum(np.dtype(name).itemsize for name in self._file.dtypes)
        blocks = 0 if self.warped else ((height - 1) // tall + 2) * -(-self._file.width // wide)
        return max(min(blocks * block, MOST_CACHE), (THREADS + 1) * block)

    @property
    def undeclared(self) -> int:
        """Return the number of undeclared missing pixels so far: NaN, infinite or far from 0.

        A pixel of two windows counts once if windows are read in rows of windows, from top to bottom.
        """
        return self._raster.undeclared if self.warped else self._undeclared

    def close(self) -> None:
        """Close the file and drop its blocks."""
        if self.warped:
            self._raster.close()
        self._file.close()


@dataclass
class _Counted:
    """Record of the part of an image that windows have covered, one row of windows after the other."""

    row: int = -1
    above: int = 0
    """Image row up to which earlier rows of windows reach."""
    below: int = 0
    """Image row up to which this row of windows reaches."""
    right: int = 0
    """Column up to which this row of windows reaches."""

    def add(self, window: Window) -> Window | None:
        """Add a window, and return the part of it that was not covered before, or None."""
        row, column, height, width = window.row_off, window.col_off, window.height, window.width
        if row != self.row:
            self.row, self.above, self.right = row, self.below, 0
        top, left, bottom, right = max(row, self.above), max(column, self.right), row + height, column + width
        self.below, self.right = max(bottom, self.below), max(right, self.right)
        return Window(left, top, right - left, bottom - top) if top < bottom and left < right else None


def _find_dates(path: object, expected: Expected, names: Sequence[str | None]) -> tuple[list[int], int]:
    """Return the positions in the file of the bands to read, date after date, and the number of dates.

    Raises:
        DataError: The file has other bands.
    """
    stored = expected.file_bands or expected.bands
    count = len(stored)
    whole = len(names) % count == 0
    if not expected.dated or len(names) == count or (any(names) and not whole):
        return find_bands(str(path), expected.name, names, expected.bands, expected.file_bands), 1
    if not whole:
        raise DataError(
            f"{path} has {counted(len(names), 'band')}, not a multiple of the {count} of one date of {expected.name}: "
            f"{', '.join(stored)}."
        )
    check_dated_names(str(path), expected.name, names, stored, by_band=expected.by_band)
    read = find_bands(str(path), expected.name, [None] * count, expected.bands, expected.file_bands)
    dates = len(names) // count
    orders = [bands_of_date(count, dates, date, by_band=expected.by_band) for date in range(dates)]
    return [order[band] for order in orders for band in read], dates


def _shown(bounds: Sequence[float]) -> str:
    return " ".join(f"{number:.6g}" for number in bounds)
