"""Properties of stored vectors of patches or windows: precision, footprints, dates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from terramind_plugin.inference.resume import FinishedRows
from terramind_plugin.raster.complete import GDAL_ERRORS
from terramind_plugin.raster.georeference import Grid, apply_affine
from terramind_plugin.raster.writer import Layer

DTYPES = ("float32", "float16", "int8")
"""Precisions of stored vectors."""
NO_VECTOR = -128
"""Value of int8 where there is no vector; true values lie between -127 and 127."""
STEPS = 127
"""Largest int8 value of a vector."""
LARGEST_HALF = float(np.finfo(np.float16).max)
MOST_AT_ONCE = 8 * 2**20
"""Approximate size in bytes of the vectors processed at once."""
FIRST_YEAR = 1972
"""Year of the first Landsat images: earlier numbers in names of files are not dates."""
DATE_TAGS = ("acquisition_date", "datetime", "date", "sensing_time", "product_start_time", "tifftag_datetime")
"""Tags of rasters with the date of an image, in lower case, the most reliable one first."""
_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)([-_:]?)(\d\d)\2(\d\d)(?!\d)")


@dataclass(frozen=True)
class Precision:
    """Type and scales of stored vectors."""

    dtype: str
    scales: tuple[float, ...] = ()
    """Factor of each dimension that converts int8 to true values; empty for other types."""

    @classmethod
    def fit(cls, dtype: str, partial: FinishedRows, layer: Layer) -> Precision:
        """Return the precision of one scene. The range of int8 is the largest value of each dimension.

        Args:
            dtype: One of `DTYPES`.
            partial: Finished rows of the scene, float32.
            layer: Layer of the vectors.
        """
        if dtype != "int8":
            return cls(dtype)
        largest = np.zeros(len(layer.descriptions), np.float32)
        for first, last in chunks(partial.height, partial.width * layer.bytes_per_pixel):
            rows = np.abs(partial.read(layer, first, last)).reshape(len(largest), -1)
            largest = np.fmax(largest, np.fmax.reduce(rows, axis=1))
        return cls(dtype, tuple(float(value) / STEPS if value else 1.0 for value in largest))

    @property
    def nodata(self) -> float:
        """Return the value that stands for no vector."""
        return NO_VECTOR if self.scales else float("nan")

    def store(self, vectors: NDArray[np.float32]) -> NDArray[Any]:
        """Return vectors [dimensions, rows, columns] converted to the stored type; NaN means no vector."""
        if self.dtype == "float16":
            return vectors.clip(-LARGEST_HALF, LARGEST_HALF).astype(np.float16)
        if not self.scales:
            return vectors
        steps = np.rint(vectors / np.array(self.scales, np.float32)[:, None, None])
        return np.where(np.isnan(steps), NO_VECTOR, steps.clip(-STEPS, STEPS)).astype(np.int8)


def chunks(length: int, row_bytes: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Return the first row of each chunk, and the row after its last one.

    Args:
        length: Number of rows.
        row_bytes: Size of a row in bytes.
        multiple: Number of which all lengths except the last are multiples.
    """
    step = max(1, MOST_AT_ONCE // row_bytes // multiple) * multiple
    return [(first, min(first + step, length)) for first in range(0, length, step)]


def tile_side(shape: tuple[int, int], bytes_per_pixel: int) -> int:
    """Return the side of a tile of vectors: a multiple of 16 that gives tiles of a few MiB with little padding.

    Args:
        shape: Height and width of the image.
        bytes_per_pixel: Size of a vector in bytes.
    """
    most, longest = 16, max(shape)
    while most < 512 and (2 * most) ** 2 * bytes_per_pixel <= MOST_AT_ONCE:
        most *= 2
    tiles = -(-longest // most)
    return -(-longest // tiles // 16) * 16


def outline(grid: Grid, rows: Sequence[tuple[int, int]], columns: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """Return the corners of parts of an image in its CRS, [rows, columns, 5, 2]; the last corner is the first one.

    Args:
        grid: Grid of the image; parts are cut off at its edge.
        rows: First pixel row of each row of parts, and the row after its last one.
        columns: First pixel column of each column of parts, and the column after its last one.
    """
    tops, bottoms = np.minimum(np.array(rows, np.float64), grid.height).T[:, :, None]
    lefts, rights = np.minimum(np.array(columns, np.float64), grid.width).T[:, None, :]
    corners = [(lefts, bottoms), (rights, bottoms), (rights, tops), (lefts, tops), (lefts, bottoms)]
    shape = len(rows), len(columns)
    placed = [apply_affine(grid.transform, x, y) for x, y in corners]
    return np.stack([np.stack([np.broadcast_to(one, shape) for one in place], -1) for place in placed], -2)


def taken_on(path: Path) -> date | None:
    """Return the date of an image from its tags or else from its name; None if neither has one.

    Args:
        path: The raster.
    """
    try:
        with rasterio.open(path) as file:
            tags = {name.lower(): value for name, value in file.tags().items()}
    except GDAL_ERRORS:
        tags = {}
    texts = [tags[name] for name in DATE_TAGS if name in tags]
    return next((found for text in [*texts, path.stem] for found in _dates(text)), None)


def _dates(text: str) -> list[date]:
    found = []
    for year, _, month, day in _DATE.findall(text):
        try:
            taken = date(int(year), int(month), int(day))
        except ValueError:
            continue
        if taken.year >= FIRST_YEAR and taken <= datetime.now(UTC).date():
            found.append(taken)
    return found


def principal_components(partial: FinishedRows, layer: Layer, side: int = 900) -> NDArray[np.uint8]:
    """Return the first three principal components as red, green and blue, [h, w, 3], with grey for missing vectors.

    Each component is stretched between its 2nd and 98th percentiles. Its sign is chosen so that its skewness is
    positive.

    Args:
        partial: Finished rows of the scene.
        layer: Layer of the vectors.
        side: Maximum height and width of the picture in pixels; larger images are thinned to every n-th vector.
    """
    every = max(1, -(-max(partial.height, partial.width) // side))
    rows = [partial.read(layer, row, row + 1)[:, 0, ::every] for row in range(0, partial.height, every)]
    vectors = np.stack(rows, axis=1)
    known = ~np.isnan(vectors[0])
    picture = np.full((*known.shape, 3), 128, np.uint8)
    if not known.any():
        return picture
    points = vectors[:, known].T.astype(np.float64)
    points -= points.mean(axis=0)
    _, directions = np.linalg.eigh(points.T @ points)
    for channel in range(min(3, points.shape[1])):
        values = points @ directions[:, -1 - channel]
        values *= 1 if (values**3).sum() >= 0 else -1
        low, high = np.percentile(values, (2, 98))
        span = high - low if high > low else 1.0
        picture[known, channel] = np.rint(((values - low) / span).clip(0, 1) * 255)
    return picture
