"""Chips from files, as what the models take: standard bands, no gaps, sizes they can patch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.transform import Affine
from rasterio.warp import transform as transform_positions

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.modalities import Modality

logger = logging.getLogger("terramind_plugin")

TOLERANCE = 0.1
"""Largest distance, in pixels, between the grids of inputs that count as one."""


@dataclass(frozen=True)
class Chip:
    """One modality of one place."""

    path: Path
    modality: Modality
    values: NDArray
    """[bands, H, W] float32 in the modality's units, or class ids [1, H, W] int64; gaps are filled."""
    valid: NDArray
    """Boolean [H, W], True where some band was measured."""
    crs: CRS
    transform: Affine

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.values.shape[1], self.values.shape[2]

    def measured(self) -> NDArray:
        """Return the values with NaN, or class 0, where no band was measured."""
        missing = 0 if self.modality.kind == "classes" else np.nan
        return np.where(self.valid, self.values, missing)

    def centre(self) -> tuple[float, float] | None:
        """Return longitude and latitude of the middle in degrees, or None if the file has no CRS."""
        if not self.crs:
            return None
        height, width = self.size
        x, y = _locate(self.transform, width / 2, height / 2)
        (longitude,), (latitude,) = transform_positions(self.crs, "EPSG:4326", [x], [y])[:2]
        return longitude, latitude


def read_chip(path: str | Path, modality: Modality) -> Chip:
    """Return a chip with gaps filled: by the mean of the pre-training data, or by class 0, which is no data.

    Bands are taken in the order of the modality; where the file names all of them, in whatever order, by name.

    Args:
        path: A raster with the modality in its units.
        modality: What it shows.

    Raises:
        ConfigError: The modality is a text and has no raster.
        DataError: The file cannot be read, has other bands, no data, or values that are no class ids.
    """
    path = Path(path)
    if not modality.bands:
        raise ConfigError(f"{path}: {modality.name} is no image, so it cannot be read from a file.")
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    try:
        with rasterio.open(path) as raster:
            masked = raster.read(masked=True)
            names, crs, transform = raster.descriptions, raster.crs, raster.transform
    except RasterioError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} cannot be read as a raster: {reason}") from error
    order = _band_order(path, modality, names, len(masked))
    values = np.asarray(masked.data[order], dtype=np.float64)
    known = ~np.ma.getmaskarray(masked)[order] & np.isfinite(values)
    if not known.any():
        raise DataError(f"{path} holds no data: every pixel is missing.")
    if modality.kind == "classes":
        filled = _class_ids(path, modality, np.where(known, values, 0))
    else:
        _warn_of_units(path, modality, values[known])
        filled = np.where(known, values, np.array(modality.mean)[:, None, None]).astype(np.float32)
    return Chip(path, modality, filled, np.asarray(known.any(axis=0)), crs or CRS(), transform)


def _band_order(path: Path, modality: Modality, names: Sequence[str | None], count: int) -> list[int]:
    """Return for each band of the modality its position in the file."""
    expected = len(modality.bands)
    found = [modality.find_band(name) for name in names]
    if set(found) >= set(range(expected)):
        return [found.index(band) for band in range(expected)]
    if count == expected:
        return list(range(count))
    raise DataError(
        f"{path} has {count} band{'s' if count > 1 else ''}, {modality.name} has {expected}: "
        f"{', '.join(modality.band_names)}. Give a file with these bands, or another --modality."
    )


def _class_ids(path: Path, modality: Modality, values: NDArray) -> NDArray:
    classes = len(modality.class_names)
    wrong = np.unique(values[(values != np.round(values)) | (values < 0) | (values >= classes)])
    if wrong.size:
        found = ", ".join(f"{value:g}" for value in wrong[:5])
        raise DataError(
            f"{path}: class ids of {modality.name} are whole numbers from 0 to {classes - 1}, found {found}. "
            "Map what is missing to 0, or declare it as nodata of the file."
        )
    return values.astype(np.int64)


def _warn_of_units(path: Path, modality: Modality, values: NDArray) -> None:
    """Say so where values look like those of another unit: the model would take them for a very odd place."""
    guess = ""
    if modality.name in ("S2L2A", "S2L1C") and values.max() <= 10:
        guess = "reflectance that was not multiplied by 10000"
    elif modality.name in ("S1GRD", "S1RTC") and values.min() >= 0:
        guess = "linear power, not decibels"
    elif modality.name == "RGB" and values.max() <= 1:
        guess = "colours from 0 to 1, not 0 to 255"
    low, high = modality.valid_range
    outside = float(np.mean((values < low) | (values > high)))
    if not guess and outside > 0.5:
        guess = f"another unit: {outside:.0%} of them are outside {low:g} to {high:g}"
    if guess:
        logger.warning("%s: its values look like %s. Expected: %s.", path, guess, modality.units)


def check_grid(first: Chip, other: Chip) -> None:
    """Check that two inputs lie on one grid.

    Args:
        first: The chip whose grid counts.
        other: A further input.

    Raises:
        DataError: Size, CRS or position differ.
    """
    hint = "Resample it to that grid, e.g. with gdalwarp."
    if first.size != other.size:
        shown = " x ".join(map(str, other.size)), " x ".join(map(str, first.size))
        raise DataError(f"{other.path} has {shown[0]} pixels, {first.path} has {shown[1]}. {hint}")
    if first.crs != other.crs:
        raise DataError(f"{other.path} has CRS {other.crs or 'none'}, {first.path} has {first.crs or 'none'}. {hint}")
    height, width = first.size
    corners = [(0, 0), (width, 0), (0, height)]
    moved = [_locate(~first.transform, *_locate(other.transform, *corner)) for corner in corners]
    distance = max(np.hypot(x - column, y - row) for (column, row), (x, y) in zip(corners, moved, strict=True))
    if not distance <= TOLERANCE:
        raise DataError(f"{other.path} lies {distance:.3g} pixels away from the grid of {first.path}. {hint}")


def _locate(transform: Affine, x: float, y: float) -> tuple[float, float]:
    # Written out: the operator that applies a transform is `*` in affine 2 and `@` in affine 3.
    return transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f


def pad(values: NDArray, multiple: int) -> NDArray:
    """Return an image [bands, H, W] continued by its mirror image, below and to the right, to whole patches.

    Args:
        values: The image.
        multiple: Height and width of a patch.
    """
    height, width = values.shape[-2:]
    return np.pad(values, ((0, 0), (0, -height % multiple), (0, -width % multiple)), mode="reflect")
