"""Chips from files, as what the models take: standard bands, no gaps, sizes they can patch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import Modality
from terramind_plugin.raster.source import Expected, Grid, Source


@dataclass(frozen=True)
class Chip:
    """One modality of one place."""

    path: Path
    modality: Modality
    values: NDArray
    """[bands, H, W] float32 in the modality's units, or class ids [1, H, W] int64; gaps are filled."""
    valid: NDArray
    """Boolean [H, W], True where some band was measured."""
    grid: Grid
    undeclared: int = 0
    """Number of pixels that are missing though the file does not say so."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.grid.shape

    def measured(self) -> NDArray:
        """Return the values with NaN, or class 0, where no band was measured."""
        missing = 0 if self.modality.kind == "classes" else np.nan
        return np.where(self.valid, self.values, missing)


def read_chip(path: str | Path, modality: Modality, grid: Grid | None = None) -> Chip:
    """Return a chip with gaps filled: by the mean of the pre-training data, or by class 0, which is no data.

    Bands are taken in the order of the modality; where the file names all of them, in whatever order, by name.

    Args:
        path: A raster with the modality in its units.
        modality: What it shows.
        grid: Where to read it, warped if it lies on another grid; None for its own.

    Raises:
        ConfigError: The modality is a text and has no raster.
        DataError: The file cannot be read, has other bands, no data, or values that are no class ids.
    """
    source = Source(path, Expected.of(modality), grid)
    values, valid = source.read(0, 0, *source.grid.shape)
    undeclared = source.undeclared
    source.close()
    if not valid.any():
        raise DataError(f"{path} holds no data: every pixel is missing.")
    if modality.kind == "classes":
        values = values.astype(np.int64)
    return Chip(source.path, modality, values, valid, source.grid, undeclared)


def pad(values: NDArray, multiple: int) -> NDArray:
    """Return an image [bands, H, W] continued by its mirror image, below and to the right, to whole patches.

    Args:
        values: The image.
        multiple: Height and width of a patch.
    """
    height, width = values.shape[-2:]
    return np.pad(values, ((0, 0), (0, -height % multiple), (0, -width % multiple)), mode="reflect")
