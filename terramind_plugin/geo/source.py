"""Rasters read window by window on one grid, with gaps filled."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import MaskFlags, Resampling
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as transform_positions
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from terramind_plugin.errors import ConfigError, DataError, one_line
from terramind_plugin.geo.rows import RowBuffer
from terramind_plugin.geo.thumbnail import Thumbnail
from terramind_plugin.modalities import Modality, find
from terramind_plugin.raster.paths import is_remote, raster_path
from terramind_plugin.units import other_unit

logger = logging.getLogger("terramind_plugin")

TOLERANCE = 0.01
"""Largest distance, in pixels, between two grids that count as one."""
MOST_ROWS = 2**30
"""Bytes of rows that are kept at most."""
PREVIEW_TILE = 1024
"""Height and width, at most, of what is read at once for a preview."""


@dataclass(frozen=True)
class Grid:
    """Size and place of an image."""

    height: int
    width: int
    crs: CRS
    transform: Affine

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    def centre(self) -> tuple[float, float] | None:
        """Return longitude and latitude of the middle in degrees, or None if there is no CRS."""
        if not self.crs:
            return None
        x, y = locate(self.transform, self.width / 2, self.height / 2)
        (longitude,), (latitude,) = transform_positions(self.crs, "EPSG:4326", [x], [y])[:2]
        return longitude, latitude

    def distance(self, other: Grid) -> float:
        """Return how far, in pixels of this one, the corners of two grids of one CRS are apart."""
        corners = [(0, 0), (self.width, 0), (0, self.height)]
        moved = [locate(~self.transform, *locate(other.transform, *corner)) for corner in corners]
        return float(max(np.hypot(x - column, y - row) for (column, row), (x, y) in zip(corners, moved, strict=True)))


def locate(transform: Affine, x: float, y: float) -> tuple[float, float]:
    """Return the coordinates of a position in pixels."""
    # Written out: the operator that applies a transform is `*` in affine 2 and `@` in affine 3.
    return transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f


@dataclass(frozen=True)
class Expected:
    """What a raster has to hold."""

    name: str
    """Of the modality, for messages."""
    bands: tuple[str, ...]
    """Names of the bands to read, in order; only their number counts where the file does not name its own."""
    fill: tuple[float, ...]
    """Number for pixels without data, by band."""
    file_bands: tuple[str, ...] = ()
    """Names of the file's bands, where they are others than those to read."""
    classes: int = 0
    """Number of class ids, if values are class ids."""

    @classmethod
    def of(cls, modality: Modality) -> Expected:
        """Return what a file of a modality holds; gaps take the pre-training mean, or class 0, which is no data.

        Raises:
            ConfigError: The modality is a text and has no raster.
        """
        if not modality.bands:
            raise ConfigError(f"{modality.name} is no image, so it cannot be read from a file.")
        fill = (0.0,) if modality.kind == "classes" else modality.mean
        return cls(modality.name, modality.band_names, fill, classes=len(modality.class_names))


class Part(NamedTuple):
    """A window of a raster."""

    values: NDArray[np.float32]
    """[bands, H, W], gaps filled."""
    valid: NDArray[np.bool_]
    """[H, W], True where some band was measured."""


class Source:
    """A raster that is read on a grid, warped to it while reading if it lies on another one.

    It may be used by one thread at a time.

    Args:
        path: The raster.
        expected: What it has to hold.
        grid: Where to read it; None for its own grid.
        threads: That decode blocks. They do not survive a fork: one that reads after it waits for them forever.

    Raises:
        DataError: It cannot be opened, has other bands, or no place on the grid.
    """

    def __init__(self, path: str | Path, expected: Expected, grid: Grid | None = None, threads: int = 1) -> None:
        self.path = raster_path(path)
        self.expected = expected
        if not is_remote(path) and not self.path.is_file():
            raise DataError(f"There is no file {path}.")
        try:
            with rasterio.Env(GDAL_NUM_THREADS=threads):
                self._file = rasterio.open(str(path))
        except RasterioError as error:
            raise DataError(f"{path} cannot be read as a raster: {one_line(error)}") from error
        if any(name.startswith("complex") for name in self._file.dtypes):
            self._file.close()
            raise DataError(f"{path} holds complex numbers, expected real ones: of radar, take the intensity.")
        self.native = Grid(self._file.height, self._file.width, self._file.crs or CRS(), self._file.transform)
        self.grid = grid or self.native
        self.indexes = [index + 1 for index in find_bands(self.path, expected, self._file.descriptions)]
        self.warped = not self._matches(self.grid)
        self._raster = self._warp() if self.warped else self._file
        self._fill = np.array(expected.fill, dtype=np.float32)[:, None, None]
        self._warned = False
        self._rows: RowBuffer | None = None
        self._thumbnail: Thumbnail | None = None

    def _matches(self, grid: Grid) -> bool:
        own = self.native
        if own.crs != grid.crs and not (own.crs and grid.crs):
            raise DataError(
                f"{self.path} has CRS {own.crs or 'none'}, the first input has {grid.crs or 'none'}. "
                "Give both a CRS, e.g. with gdal_edit.py -a_srs."
            )
        if own.crs == grid.crs and own.shape == grid.shape and grid.distance(own) <= TOLERANCE:
            return True
        if not own.crs:
            raise DataError(
                f"{self.path} has {own.height} x {own.width} pixels, the first input has {grid.height} x {grid.width}, "
                "and without a CRS none can be warped to the other. Give both a CRS, or cut them to one size."
            )
        return False

    def _warp(self) -> WarpedVRT:
        """Return the raster on the grid, with a mask where it has no data."""
        left, bottom = locate(self.grid.transform, 0, self.grid.height)
        right, top = locate(self.grid.transform, self.grid.width, 0)
        here = (min(left, right), min(bottom, top), max(left, right), max(bottom, top))
        try:
            there = transform_bounds(self.native.crs, self.grid.crs, *self._file.bounds)
            if there[0] >= here[2] or there[2] <= here[0] or there[1] >= here[3] or there[3] <= here[1]:
                raise DataError(
                    f"{self.path} does not overlap the first input: it covers {_shown(there)}, that {_shown(here)} in "
                    f"{self.grid.crs}. Check its CRS, {self.native.crs}."
                )
            flags = self._file.mask_flag_enums[0]
            nodata = self._file.nodata
            if nodata is None and self._file.dtypes[0].startswith("float"):
                nodata = float("nan")
            return WarpedVRT(
                self._file,
                crs=self.grid.crs,
                transform=self.grid.transform,
                height=self.grid.height,
                width=self.grid.width,
                resampling=Resampling.nearest if self.expected.classes else Resampling.bilinear,
                src_nodata=nodata,
                nodata=nodata,
                # Without a value for no data, an alpha band says where the file ends.
                add_alpha=nodata is None and MaskFlags.alpha not in flags,
            )
        except RasterioError as error:
            raise DataError(f"{self.path} cannot be warped to {self.grid.crs}: {one_line(error)}") from error

    def read(self, row: int, column: int, height: int, width: int) -> Part:
        """Return a window that starts inside the image; what reaches beyond it, below or right, is its mirror image.

        Args:
            row: First row.
            column: First column.
            height: Rows.
            width: Columns.

        Raises:
            DataError: A block cannot be read, or values are no class ids.
        """
        inside = min(height, self.grid.height - row), min(width, self.grid.width - column)
        part = self._read(row, column, inside, inside)
        beyond = ((0, height - inside[0]), (0, width - inside[1]))
        if not any(after for _, after in beyond):
            return part
        return Part(np.pad(part.values, ((0, 0), *beyond), mode="reflect"), np.pad(part.valid, beyond))

    def preview(self, size: tuple[int, int], bands: Sequence[int]) -> Part:
        """Return the whole image at a reduced size, each pixel the nearest one.

        Args:
            size: Height and width in pixels.
            bands: Positions of the bands to read, among those expected.

        Raises:
            DataError: As in `read`.
        """
        if self._reduces_itself:
            return self._read(0, 0, self.grid.shape, size, bands)
        thumbnail = self._thumbnail
        if thumbnail is None or (thumbnail.size, thumbnail.bands) != (size, list(bands)):
            thumbnail = Thumbnail(self.grid.shape, size, bands)
        # Block by block: at once GDAL would decode each block again for each band.
        tall, wide = (max(PREVIEW_TILE // side, 1) * side for side in self._file.block_shapes[0])
        for top in range(0, self.grid.height, tall):
            for left in range(0, self.grid.width, wide):
                inside = min(tall, self.grid.height - top), min(wide, self.grid.width - left)
                wanted = thumbnail.wanted(top, left, *inside)
                if wanted is not None:
                    part = self._read(top, left, inside, inside, bands)
                    there = np.ix_(wanted[0] - top, wanted[1] - left)
                    thumbnail.add(top, left, *inside, part.values[:, there[0], there[1]], part.valid[there])
        return Part(thumbnail.values, thumbnail.valid)

    @property
    def _reduces_itself(self) -> bool:
        """Whether GDAL gives a reduced image without reading all of it, or has to warp it."""
        return self.warped or bool(self._file.overviews(1))

    def _gather(self, first: int, last: int) -> None:
        """Take pixels for a preview from rows that are held."""
        thumbnail, rows = self._thumbnail, self._rows
        window = first, 0, last - first, self.grid.width
        if thumbnail is not None and rows is not None and (wanted := thumbnail.wanted(*window)) is not None:
            part = self._fill_gaps(*rows.pick(thumbnail.bands, *wanted), thumbnail.bands)
            thumbnail.add(*window, *part)

    def _read(
        self,
        row: int,
        column: int,
        inside: tuple[int, int],
        size: tuple[int, int],
        bands: Sequence[int] | None = None,
    ) -> Part:
        """Return some bands of a window that lies inside the image, at some size."""
        indexes = self.indexes if bands is None else [self.indexes[band] for band in bands]
        try:
            known: NDArray[np.bool_] | None
            if self._rows is not None and bands is None and size == inside:
                values, known = self._rows.window(row, column, *inside)
            else:
                masked = self._raster.read(
                    indexes,
                    window=Window(column, row, inside[1], inside[0]),
                    out_shape=(len(indexes), *size),
                    masked=True,
                    out_dtype="float32",
                )
                values = masked.data
                known = ~np.ma.getmaskarray(masked) & np.isfinite(values)
        except RasterioError as error:
            raise DataError(
                f"{self.path}: rows {row} to {row + inside[0] - 1}, columns {column} to {column + inside[1] - 1} "
                f"cannot be read: {one_line(error)}. The file may be damaged or incomplete; copy or download it again."
            ) from error
        measured = values if known is None else values[known]
        if self.expected.classes:
            self._check_classes(measured)
        elif not self._warned and measured.size:
            self._warned = True
            warn_of_units(self.path, self.expected.name, measured)
        return self._fill_gaps(values, known, bands)

    def _fill_gaps(
        self, values: NDArray[np.float32], known: NDArray[np.bool_] | None, bands: Sequence[int] | None
    ) -> Part:
        """Return values with their own number where they are not known; None for known everywhere."""
        if known is None:
            return Part(values, np.ones(values.shape[1:], bool))
        fill = self._fill if bands is None else self._fill[list(bands)]
        return Part(np.where(known, values, fill), np.asarray(known.any(axis=0)))

    def _check_classes(self, values: NDArray[np.float32]) -> None:
        classes = self.expected.classes
        wrong = np.unique(values[(values != np.round(values)) | (values < 0) | (values >= classes)])
        if wrong.size:
            found = ", ".join(f"{value:g}" for value in wrong[:5])
            raise DataError(
                f"{self.path}: class ids of {self.expected.name} are whole numbers from 0 to {classes - 1}, found "
                f"{found}. Map what is missing to 0, or declare it as nodata of the file."
            )

    def keep_rows(self, height: int, size: tuple[int, int] | None = None, bands: Sequence[int] = ()) -> None:
        """Keep the rows of windows that are read one after the other, row by row of windows, top to bottom.

        Args:
            height: Of the windows.
            size: Of a preview that will be asked for, so that it is gathered on the way.
            bands: Of the preview.
        """
        rows = RowBuffer(self._raster, self.indexes, height, self._gather)
        # Blocks may be as large as the image; then GDAL keeps what it can.
        self._rows = rows if rows.values.nbytes <= MOST_ROWS else None
        if size is not None and not self._reduces_itself:
            self._thumbnail = Thumbnail(self.grid.shape, size, bands)

    @property
    def block_bytes(self) -> int:
        """Bytes of a decoded block of all bands of the file: GDAL decodes it again where it cannot keep them."""
        height, width = self._file.block_shapes[0]
        return height * width * sum(np.dtype(name).itemsize for name in self._file.dtypes)

    def forget_rows(self) -> None:
        """Free the memory of the rows."""
        self._rows = None

    def close(self) -> None:
        """Close the file and forget its rows."""
        self.forget_rows()
        if self.warped:
            self._raster.close()
        self._file.close()


def find_bands(path: Path, expected: Expected, names: Sequence[str | None]) -> list[int]:
    """Return for each band that is to be read its position in the file.

    Args:
        path: For the message.
        expected: What is to be read.
        names: Descriptions of the file's bands, None where it has none.

    Raises:
        DataError: The file has not these bands.
    """
    keys = [None if name is None else _band_key(expected.name, name) for name in names]
    wanted = [_band_key(expected.name, name) for name in expected.bands]
    if set(wanted) <= set(keys):
        return [keys.index(key) for key in wanted]
    stored = [_band_key(expected.name, name) for name in expected.file_bands]
    if stored and len(names) == len(stored) and set(wanted) <= set(stored):
        return [stored.index(key) for key in wanted]
    if len(names) == len(wanted):
        return list(range(len(names)))
    missing = [name for name, key in zip(expected.bands, wanted, strict=True) if key not in keys]
    raise DataError(
        f"{path} has {len(names)} band{'s' if len(names) > 1 else ''}, {expected.name} has {len(wanted)}: "
        f"{', '.join(expected.bands)}."
        + (f" Missing: {', '.join(missing)}." if any(names) and len(missing) < len(wanted) else "")
        + " Give a file with these bands, or name its bands in their descriptions."
    )


def _band_key(modality: str, name: str) -> str:
    """Return one spelling for all names of a band."""
    entry = find(modality)
    position = None if entry is None else entry.find_band(name)
    return name.strip().upper() if entry is None or position is None else entry.bands[position].name


def warn_of_units(path: Path, name: str, values: NDArray) -> None:
    """Say so where values look like those of another unit: the model would take them for a very odd place.

    Args:
        path: For the message.
        name: Of the modality.
        values: At least one.
    """
    modality = find(name)
    if modality is None:
        return
    guess = other_unit(modality, values)
    if guess:
        logger.warning("%s: its values look like %s. Expected: %s.", path, guess, modality.units)


def _shown(bounds: Sequence[float]) -> str:
    return " ".join(f"{number:.6g}" for number in bounds)
