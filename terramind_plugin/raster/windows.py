"""Overlapping windows over an image of any size, and weights that blend what a model makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import ConfigError

UNFILLED = 0.1
"""Share of a band's windows that its last batch may lack, if up to two rows of windows more can change that."""


@dataclass(frozen=True)
class Axis:
    """Windows along one side of an image."""

    length: int
    """Pixels of the image."""
    size: int
    """Pixels of a window; the last one may reach beyond the image by less than a patch."""
    starts: tuple[int, ...]
    """First pixel of each window."""
    margin: int
    """Pixels at the edge of a window that do not count, except at the edge of the image."""
    ramp: int
    """Pixels over which the weight of a window rises."""

    def used(self, index: int) -> tuple[int, int]:
        """Return the first pixel of the image that a window counts for, and the one after the last."""
        first = 0 if index == 0 else self.starts[index] + self.margin
        last = self.starts[index] + self.size - self.margin
        return first, self.length if index == len(self.starts) - 1 else min(last, self.length)

    def weights(self, index: int) -> NDArray[np.float32]:
        """Return the weight of a window for each pixel it counts for; those of all windows sum to one everywhere."""
        first, last = self.used(index)
        return (self._profile(index) / self._total[first:last]).astype(np.float32)

    def _profile(self, index: int) -> NDArray[np.float64]:
        first, last = self.used(index)
        profile = np.ones(last - first)
        ramp = min(self.ramp, last - first)
        rise = 0.5 - 0.5 * np.cos(np.pi * np.arange(1, ramp + 1) / (self.ramp + 1))
        if index > 0:
            profile[:ramp] *= rise
        if index < len(self.starts) - 1:
            profile[last - first - ramp :] *= rise[::-1]
        return profile

    @cached_property
    def _total(self) -> NDArray[np.float64]:
        total = np.zeros(self.length)
        for index in range(len(self.starts)):
            first, last = self.used(index)
            total[first:last] += self._profile(index)
        return total


class Band(NamedTuple):
    """Rows of windows that are computed together, and the rows of the image that are finished then."""

    rows: range
    """Numbers of the rows of windows."""
    first: int
    """First row of the image that is finished after them."""
    last: int
    """The one after the last."""


@dataclass(frozen=True)
class Plan:
    """Windows over an image: every pair of a row and a column."""

    rows: Axis
    columns: Axis

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.rows.starts) * len(self.columns.starts)

    @property
    def window(self) -> tuple[int, int]:
        """Height and width of a window in pixels."""
        return self.rows.size, self.columns.size

    def bands(self, batch_size: int = 1) -> list[Band]:
        """Return bands from top to bottom, each of so many rows of windows that it fills its batches, nearly.

        Args:
            batch_size: Windows that a model takes at once.
        """
        count, across = len(self.rows.starts), len(self.columns.starts)
        least = max(1, batch_size // across)
        # Each row more takes memory.
        together = next(
            (n for n in range(least, least + 3) if -n * across % batch_size <= UNFILLED * n * across), least
        )
        bands, first = [], 0
        for start in range(0, count, together):
            stop = min(start + together, count)
            last = self.rows.length if stop == count else self.rows.used(stop)[0]
            bands.append(Band(range(start, stop), first, last))
            first = last
        return bands

    def reach(self, band: Band) -> int:
        """Return the image row after the last one that the windows of a band count for."""
        return max(self.rows.used(row)[1] for row in band.rows)

    def windows(self, band: Band) -> Iterator[tuple[int, int]]:
        """Yield row and column numbers of the windows of a band."""
        for row in band.rows:
            for column in range(len(self.columns.starts)):
                yield row, column


def plan_axis(length: int, crop: int, stride: int, margin: int = 0, *, multiple: int = 1, align: int = 1) -> Axis:
    """Return windows along one side of an image.

    An image smaller than `crop` gets one window. The last window ends with the image, or so little behind it that it
    starts at a multiple of `align`.

    Args:
        length: Pixels of the image, at least 1.
        crop: Pixels of a window.
        stride: Pixels from one window to the next, at most crop - 2 * margin.
        margin: Pixels at the edges of a window that do not count inside the image.
        multiple: Window sizes are multiples of it.
        align: Window starts are multiples of it.

    Raises:
        ConfigError: The numbers do not fit together.
    """
    if length < 1:
        raise ConfigError(f"An image needs at least one pixel, got {length}.")
    if crop < 1 or crop % multiple:
        raise ConfigError(f"crop must be a positive multiple of {multiple}, got {crop}.")
    if margin < 0 or 2 * margin >= crop:
        raise ConfigError(f"margin must be at least 0 and less than half of crop {crop}, got {margin}.")
    if stride < 1 or stride % align or stride > crop - 2 * margin:
        step = f" in steps of {align}" if align > 1 else ""
        raise ConfigError(
            f"stride must be from {align} to {crop - 2 * margin}{step} (crop {crop} without margin {margin} on both "
            f"sides), got {stride}. With a longer stride some pixels would get no result."
        )
    # Half a window at most, so that every window counts fully somewhere.
    ramp = min(crop - 2 * margin - stride, (crop - 2 * margin) // 2)
    if length <= crop:
        return Axis(length, _up(length, multiple), (0,), margin, ramp)
    end = _up(length - crop, align)
    return Axis(length, crop, (*range(0, end, stride), end), margin, ramp)


def plan_windows(
    height: int,
    width: int,
    crop: int | tuple[int, int],
    stride: int | tuple[int, int],
    margin: int = 0,
    *,
    multiple: int = 1,
    align: int = 1,
) -> Plan:
    """Return windows over an image.

    Args:
        height: Of the image in pixels.
        width: Likewise.
        crop: Height and width of a window, or one number for both.
        stride: From one window to the next, likewise.
        margin: As in `plan_axis`.
        multiple: As in `plan_axis`.
        align: As in `plan_axis`.

    Raises:
        ConfigError: As in `plan_axis`.
    """
    crops = (crop, crop) if isinstance(crop, int) else crop
    strides = (stride, stride) if isinstance(stride, int) else stride
    rows, columns = (
        plan_axis(length, one, step, margin, multiple=multiple, align=align)
        for length, one, step in zip((height, width), crops, strides, strict=True)
    )
    return Plan(rows, columns)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
