"""An image at a reduced size, gathered from the windows of the image while they are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Thumbnail:
    """An image at a reduced size, made by nearest-neighbour resampling.

    Args:
        shape: Height and width of the image.
        size: Height and width of the smaller version.
        bands: Positions of the bands to keep.
    """

    def __init__(self, shape: tuple[int, int], size: tuple[int, int], bands: Sequence[int]) -> None:
        self.size = size
        self.bands = list(bands)
        self.values = np.zeros((len(bands), *size), np.float32)
        self.valid = np.zeros(size, bool)
        self._missing = np.ones(size, bool)
        self._rows, self._columns = (
            ((np.arange(small) + 0.5) * large / small).astype(int) for small, large in zip(size, shape, strict=True)
        )

    def lacks(self, top: int, left: int, height: int, width: int) -> bool:
        """Return whether a window of the image has pixels that the thumbnail still lacks."""
        return bool(self._missing[self._inside(top, left, height, width)].any())

    def add(self, top: int, left: int, values: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        """Copy the pixels of a window of the image.

        Args:
            top: First row of the window.
            left: First column of the window.
            values: Pixels of the window, [bands, rows, columns].
            valid: True where the pixels have data, [rows, columns].
        """
        here = down, across = self._inside(top, left, *valid.shape)
        there = np.ix_(self._rows[down] - top, self._columns[across] - left)
        self.values[:, *here] = values[:, there[0], there[1]]
        self.valid[here] = valid[there]
        self._missing[here] = False

    def _inside(self, top: int, left: int, height: int, width: int) -> tuple[slice, slice]:
        return (
            slice(*np.searchsorted(self._rows, (top, top + height))),
            slice(*np.searchsorted(self._columns, (left, left + width))),
        )
