"""Vectors of patches or windows as they are stored: precision, footprints, dates."""

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
"""Value of int8 where there is no vector; other values are from -127 to 127."""
STEPS = 127
"""Largest value of int8 that stands for a number."""
LARGEST_HALF = float(np.finfo(np.float16).max)
MOST_AT_ONCE = 8 * 2**20
"""Target size in bytes of vectors that are worked on at once."""
FIRST_YEAR = 1972
"""Year of the first Landsat images: earlier numbers in names of files are no dates."""
DATE_TAGS = ("acquisition_date", "datetime", "date", "sensing_time", "product_start_time", "tifftag_datetime")
"""Tags of rasters that say when an image was taken, in lower case, the most certain one first."""
_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)([-_:]?)(\d\d)\2(\d\d)(?!\d)")


@dataclass(frozen=True)
class Precision:
    """The way in which vectors are stored."""

    dtype: str
    scales: tuple[float, ...] = ()
    """Factor of each dimension from int8 to true values; none for other types."""

    @classmethod
    def fit(cls, dtype: str, partial: FinishedRows, layer: Layer) -> Precision:
        """Return the precision of one scene; int8 gets the largest value of each dimension as its range.

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
        """Return the value where there is no vector."""
        return NO_VECTOR if self.scales else float("nan")

    def store(self, vectors: NDArray[np.float32]) -> NDArray[Any]:
        """Return vectors [dimensions, rows, columns] as they are stored; NaN stands for none."""
        if self.dtype == "float16":
            return vectors.clip(-LARGEST_HALF, LARGEST_HALF).astype(np.float16)
        if not self.scales:
            return vectors
        steps = np.rint(vectors / np.array(self.scales, np.float32)[:, None, None])
        return np.where(np.isnan(steps), NO_VECTOR, steps.clip(-STEPS, STEPS)).astype(np.int8)


def chunks(length: int, row_bytes: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Return first and last-plus-one of the rows that are worked on at once.

    Args:
        length: Number of rows.
        row_bytes: Size of a row in bytes.
        multiple: Number that lengths are multiples of, except the last one.
    """
    step = max(1, MOST_AT_ONCE // row_bytes // multiple) * multiple
    return [(first, min(first + step, length)) for first in range(0, length, step)]


def tile_side(shape: tuple[int, int], bytes_per_pixel: int) -> int:
    """Return the side of a tile of vectors: a multiple of 16 with which tiles have a few MiB and little padding.

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
        grid: Grid of the image; parts end with it.
        rows: First and last-plus-one pixel row of each row of parts.
        columns: First and last-plus-one pixel column of each column of parts.
    """
    tops, bottoms = np.minimum(np.array(rows, np.float64), grid.height).T[:, :, None]
    lefts, rights = np.minimum(np.array(columns, np.float64), grid.width).T[:, None, :]
    corners = [(lefts, bottoms), (rights, bottoms), (rights, tops), (lefts, tops), (lefts, bottoms)]
    shape = len(rows), len(columns)
    placed = [apply_affine(grid.transform, x, y) for x, y in corners]
    return np.stack([np.stack([np.broadcast_to(one, shape) for one in place], -1) for place in placed], -2)


def taken_on(path: Path) -> date | None:
    """Return when an image was taken, by its tags or else its name; None if neither says so.

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
    """Return the first three principal components of vectors as red, green and blue, [h, w, 3]; grey for none.

    Each component is stretched between its 2nd and 98th percentile, and has the sign that makes its skewness positive.

    Args:
        partial: Finished rows of the scene.
        layer: Layer of the vectors.
        side: Largest height and width of the picture; of larger ones every second, third, ... vector is taken.
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
