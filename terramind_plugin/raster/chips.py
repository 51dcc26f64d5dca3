"""Small rasters read as a whole: chips as models expect them, and images with NaN for gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import Modality
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.raster.missing import FAR, Pixels
from terramind_plugin.raster.reader import Expected, Source


@dataclass(frozen=True)
class Chip:
    """A chip of one modality."""

    path: Path
    modality: Modality
    values: NDArray[Any]
    """Values [bands, H, W] float32 in the modality's units, or class ids [1, H, W] int64; gaps are filled."""
    valid: NDArray[Any]
    """Boolean [H, W], True where some band was measured."""
    grid: Grid
    """Grid of the whole raster."""
    undeclared: int = 0
    """Number of missing pixels that the file does not declare."""

    @property
    def size(self) -> tuple[int, int]:
        """Return the height and width in pixels."""
        height, width = self.values.shape[-2:]
        return height, width

    def measured(self) -> NDArray[Any]:
        """Return the values with NaN, or class 0, where no band was measured."""
        missing = 0 if self.modality.kind == "classes" else np.nan
        return np.where(self.valid, self.values, missing)


def read_chip(
    path: str | Path,
    modality: Modality,
    *,
    side: int | None = None,
    multiple: int = 1,
    bands: Sequence[str] = (),
) -> Chip:
    """Return a chip whose gaps are filled with the mean of the pre-training data, or with class 0 (no data).

    Bands are read by name if the file names all of them, and otherwise in the order of the modality.

    Args:
        path: A raster with the modality in its units.
        modality: Modality that the raster shows.
        side: Maximum height and width in pixels; of a larger raster, the middle is read. None to read the whole raster.
        multiple: Number of which height and width become multiples, by adding mirrored pixels.
        bands: Names of the file's bands, if they are in another order and the file does not name them.

    Raises:
        ConfigError: The modality is a text and has no raster.
        DataError: The file cannot be read, has other bands, no data, or values that are not class ids.
    """
    source = Source(path, Expected.of(modality, bands))
    try:
        height, width = (min(length, side or length) for length in source.grid.shape)
        row, column = (source.grid.height - height) // 2, (source.grid.width - width) // 2
        values, valid = source.read(row, column, -(-height // multiple) * multiple, -(-width // multiple) * multiple)
    finally:
        source.close()
    if not valid.any():
        where = "pixel" if (height, width) == source.grid.shape else "pixel of its middle"
        raise DataError(f"{path} holds no data: every {where} is missing.")
    if modality.kind == "classes":
        values = values.astype(np.int64)
    return Chip(source.path, modality, values, valid, source.grid, source.undeclared)


class Image(NamedTuple):
    """All bands of a raster."""

    values: NDArray[np.floating[Any]]
    """Values [bands, H, W], NaN where missing; float32, or float64 where numbers need it."""
    descriptions: tuple[str | None, ...]
    """Names of the bands in the file."""
    undeclared: int
    """Number of missing pixels that the file does not declare."""
    far: bool
    """True if some undeclared missing pixels are infinite or far from 0."""


def mark_gaps(pixels: Pixels, descriptions: tuple[str | None, ...]) -> Image:
    """Return pixels with NaN where values are missing.

    Args:
        pixels: Pixels of a raster; they are not changed.
        descriptions: Names of the raster's bands.
    """
    marked = pixels.missing is not None
    wide = pixels.values.astype(np.result_type(pixels.values.dtype, np.float32), copy=marked)
    far = bool(pixels.undeclared) and bool((np.abs(pixels.values) > FAR).any())
    if marked:
        wide[pixels.missing] = np.nan
    return Image(wide, descriptions, pixels.undeclared, far)
