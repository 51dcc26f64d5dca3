"""Crops and dihedral symmetries as rows and columns of a file, so that they need no pass over its pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from terramind_plugin.raster.images import Slices

MOVING = (
    "NoOp", "D4", "SquareSymmetry", "HorizontalFlip", "VerticalFlip", "Transpose", "RandomRotate90", "ToTensorV2",
)  # fmt: skip
"""Transforms of Albumentations that move pixels and keep their values, whatever the size of the image."""
CROPS = ("RandomCrop", "CenterCrop", "Crop")
"""Transforms that crop and never pad."""
GROUPS = ("Compose", "Sequential", "OneOf", "SomeOf", "RandomOrder")
"""Transforms that consist of others."""
BY_CV2 = ("uint8", "int8", "uint16", "int16", "int32", "float32", "float64")
"""Types that OpenCV can flip and transpose, several times as fast as NumPy."""


@dataclass(frozen=True)
class Placement:
    """Selection and order of the pixels of a file that make up an image."""

    rows: range
    """Rows of the file, in the order of the image's rows or, if transposed, of its columns."""
    columns: range
    """Columns of the file, in the order of the image's columns or, if transposed, of its rows."""
    transposed: bool = False
    """True if the image's rows are columns of the file."""

    @property
    def window(self) -> Slices:
        """Return the rows and columns to read."""
        return _extent(self.rows), _extent(self.columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Return the height and width of the image."""
        height, width = len(self.rows), len(self.columns)
        return (width, height) if self.transposed else (height, width)

    def write(self, values: NDArray[Any], out: NDArray[Any]) -> None:
        """Write a window in the image's order, converted to the type of `out`.

        Args:
            values: Pixels [bands, h, w] of `window`, which stay as they are.
            out: Array [bands, *shape] to write into.
        """
        down, right = self.rows.step < 0, self.columns.step < 0
        if values.dtype.name not in BY_CV2:
            turned = values[:, :: self.rows.step, :: self.columns.step]
            np.copyto(out, turned.transpose(0, 2, 1) if self.transposed else turned, casting="unsafe")
        elif not (self.transposed or down or right):
            np.copyto(out, values, casting="unsafe")
        else:
            for band, target in zip(values, out, strict=True):
                np.copyto(target, _turn(band, down, right, transposed=self.transposed), casting="unsafe")


def _extent(numbers: range) -> slice:
    return slice(min(numbers[0], numbers[-1]), max(numbers[0], numbers[-1]) + 1)


def _turn(band: NDArray[Any], down: bool, right: bool, *, transposed: bool) -> NDArray[Any]:
    """Return an image [h, w] with rows and columns reversed as asked, and then transposed if asked."""
    if down or right:
        band = cv2.flip(band, -1 if down and right else 0 if down else 1)
    return cv2.transpose(band) if transposed else band


class Placing:
    """Draws the placements of a pipeline of Albumentations.

    An image of pixel numbers is passed through the pipeline, so that the placement is the one that the pipeline itself
    would produce with the same random numbers.

    Args:
        pipeline: A pipeline in which `list_costly` finds nothing.
    """

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._whole = any(type(transform).__name__ in CROPS for transform in _flatten(pipeline))
        self._numbers = np.empty((0, 0, 1), np.int32)

    def draw(self, height: int, width: int) -> Placement:
        """Return the placement of an image.

        Args:
            height: Rows of the file.
            width: Columns of the file.
        """
        # Without crops any size will do, since only the order matters.
        size = (height, width) if self._whole else (2, 2)
        if self._numbers.shape[:2] != size:
            self._numbers = np.arange(size[0] * size[1], dtype=np.int32).reshape(size[0], size[1], 1)
        shown = np.asarray(self._pipeline(image=self._numbers)["image"])[0]
        (top, left), below, beside = (divmod(int(shown[place]), size[1]) for place in ((0, 0), (-1, 0), (0, -1)))
        transposed = below[1] != left or beside[0] != top
        rows = _span(top, (beside if transposed else below)[0])
        columns = _span(left, (below if transposed else beside)[1])
        if not self._whole:
            rows, columns = range(height)[:: rows.step], range(width)[:: columns.step]
        return Placement(rows, columns, transposed)


def _span(first: int, last: int) -> range:
    step = 1 if last >= first else -1
    return range(first, last + step, step)


def _flatten(transform: Any) -> Iterator[Any]:
    """Yield the transforms of a pipeline, including those inside groups."""
    if type(transform).__name__ in GROUPS:
        for part in transform.transforms:
            yield from _flatten(part)
    else:
        yield transform


def list_costly(pipeline: Any) -> list[str]:
    """Return the names of a pipeline's transforms that need the values of pixels; empty if `Placing` can replace them.

    Args:
        pipeline: A pipeline of Albumentations.
    """
    parts = list(_flatten(pipeline))
    costly = [type(part).__name__ for part in parts if not _moves(part)]
    if not costly and (not parts or type(parts[-1]).__name__ != "ToTensorV2"):
        return ["the lack of ToTensorV2 at the end"]
    return costly


def _moves(transform: Any) -> bool:
    kind = type(transform)
    if kind.__name__ in CROPS and getattr(transform, "pad_if_needed", False):
        return False
    return kind.__module__.startswith("albumentations.") and kind.__name__ in (*MOVING, *CROPS)
