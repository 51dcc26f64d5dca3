"""Overlapping windows over an image of any size, their blending weights, and the window size of a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.transform import Affine
from torch import Tensor

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.raster.complete import GDAL_ERRORS
from terramind_plugin.raster.georeference import Grid, apply_affine
from terramind_plugin.raster.netcdf import raster_name

UNFILLED = 0.1
"""Maximum share of empty places in a row block's batches, if adding up to two rows of windows can avoid more."""
LARGEST_WINDOW = 1024
"""Maximum side of a window in pixels; larger training images are cropped, or used with batch size 1."""
USUAL_WINDOW = 224
"""Side of a window in pixels if neither data nor model define one: that of the pre-training images."""


@dataclass(frozen=True)
class Axis:
    """Windows along one side of an image."""

    length: int
    """Length of the image in pixels."""
    size: int
    """Length of a window in pixels. The last window may extend beyond the image by less than a patch."""
    starts: tuple[int, ...]
    """First pixel of each window."""
    margin: int
    """Number of unused pixels at the edges of a window; at the edges of the image all pixels are used."""
    ramp: int
    """Number of pixels over which the weight of a window rises."""
    cell: int = 1
    """Length of a cell of the result in pixels; 1 unless the result is coarser. All other numbers count cells."""
    exclusive: bool = False
    """True if a cell gets its result from the first window that covers it, without blending."""

    @property
    def pixels(self) -> int:
        """Return the length of a window in pixels."""
        return self.size * self.cell

    def pixel(self, index: int) -> int:
        """Return the first pixel of a window."""
        return self.starts[index] * self.cell

    def placement(self) -> tuple[float, float]:
        """Return the start of the first cell of the result and the distance between cells, in pixels."""
        return 0.0, float(self.cell)

    def extent(self, index: int) -> tuple[int, int]:
        """Return the first pixel that a cell of the result describes, and the pixel after the last one."""
        return index * self.cell, (index + 1) * self.cell

    def used(self, index: int) -> tuple[int, int]:
        """Return the first image pixel that a window contributes to, and the pixel after the last one."""
        first = 0 if index == 0 else self.starts[index] + self.margin
        if self.exclusive and index > 0:
            first = max(first, self.starts[index - 1] + self.size - self.margin)
        last = self.starts[index] + self.size - self.margin
        return first, self.length if index == len(self.starts) - 1 else min(last, self.length)

    def weights(self, index: int) -> NDArray[np.float32]:
        """Return the weight of a window at each pixel that it contributes to. The weights of all windows sum to 1."""
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


class RowBlock(NamedTuple):
    """Rows of windows that are computed together, with the image rows that they finish."""

    rows: range
    """Numbers of the rows of windows."""
    first: int
    """First image row that the block finishes."""
    last: int
    """Image row after the last one that the block finishes."""


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
        """Return the height and width of a window in pixels."""
        return self.rows.pixels, self.columns.pixels

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Return the row and column of the first pixel of a window."""
        return self.rows.pixel(row), self.columns.pixel(column)

    def shrink(self, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return a mask of the cells of a window that have data in some pixel.

        Args:
            valid: Boolean [h, w], True where the window has data.
        """
        height, width = valid.shape
        rows, columns = self.rows.size, self.columns.size
        if (height, width) == (rows, columns):
            return valid
        cells = valid.reshape(rows, height // rows, columns, width // columns)
        return np.asarray(cells.any(axis=(1, 3)))

    def gather(self, result: Tensor, valid: NDArray[np.bool_]) -> Tensor:
        """Return the result of a window in cells, [channels, rows, columns].

        If the window is one cell, the result is the mean of the parts with data.

        Args:
            result: Result of the window, [channels, h, w].
            valid: Boolean, True where the window has data.
        """
        if result.shape[1:] == (self.rows.size, self.columns.size):
            return result
        _, height, width = result.shape
        known = valid.reshape(height, valid.shape[0] // height, width, valid.shape[1] // width).any(axis=(1, 3))
        return result[:, torch.from_numpy(known).to(result.device)].float().mean(dim=1)[:, None, None]

    def cells(self, grid: Grid) -> Grid:
        """Return the grid of the result.

        Args:
            grid: Grid of the image.
        """
        (top, tall), (left, wide) = self.rows.placement(), self.columns.placement()
        shape = self.rows.length, self.columns.length
        if (top, left, tall, wide) == (0, 0, 1, 1) and shape == grid.shape:
            return grid
        a, b, _, d, e, _ = grid.transform[:6]
        x, y = apply_affine(grid.transform, left, top)
        return Grid(*shape, grid.crs, Affine(a * wide, b * tall, x, d * wide, e * tall, y))

    def blocks(self, batch_size: int = 1) -> list[RowBlock]:
        """Return row blocks from top to bottom, each with enough rows of windows to nearly fill its batches.

        Args:
            batch_size: Number of windows in a batch of the model.
        """
        count, across = len(self.rows.starts), len(self.columns.starts)
        least = max(1, batch_size // across)
        # As few rows as possible, because each row needs memory.
        together = next(
            (n for n in range(least, least + 3) if -n * across % batch_size <= UNFILLED * n * across), least
        )
        blocks, first = [], 0
        for start in range(0, count, together):
            stop = min(start + together, count)
            last = self.rows.length if stop == count else self.rows.used(stop)[0]
            blocks.append(RowBlock(range(start, stop), first, last))
            first = last
        return blocks

    def reach(self, block: RowBlock) -> int:
        """Return the image row after the last one that the windows of a row block contribute to."""
        return max(self.rows.used(row)[1] for row in block.rows)

    def windows(self, block: RowBlock) -> Iterator[tuple[int, int]]:
        """Yield the row and column numbers of the windows of a row block."""
        for row in block.rows:
            for column in range(len(self.columns.starts)):
                yield row, column


def plan_axis(length: int, crop: int, stride: int, margin: int = 0, *, multiple: int = 1, align: int = 1) -> Axis:
    """Return windows along one side of an image.

    An image smaller than `crop` gets one window. The last window ends with the image or, to start at a multiple of
    `align`, a little beyond it.

    Args:
        length: Length of the image in pixels, at least 1.
        crop: Length of a window in pixels.
        stride: Distance between neighbouring windows in pixels, at most crop - 2 * margin.
        margin: Number of unused pixels at the edges of a window inside the image.
        multiple: Number of which window sizes are multiples.
        align: Number of which window starts are multiples.

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
    # At most half a window, so that every window reaches full weight somewhere.
    ramp = min(crop - 2 * margin - stride, (crop - 2 * margin) // 2)
    if length <= crop:
        return Axis(length, _up(length, multiple), (0,), margin, ramp)
    end = _up(length - crop, align)
    return Axis(length, crop, (*range(0, end, stride), end), margin, ramp)


def plan_windows(height: int, width: int, crop: int, stride: int, margin: int = 0, **grid: int) -> Plan:
    """Return windows over an image.

    Args:
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        crop: As in `plan_axis`.
        stride: As in `plan_axis`.
        margin: As in `plan_axis`.
        grid: `multiple` and `align` as in `plan_axis`.

    Raises:
        ConfigError: As in `plan_axis`.
    """
    return Plan(*(plan_axis(length, crop, stride, margin, **grid) for length in (height, width)))


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def locate_windows(grid: Grid | None, corners: Sequence[tuple[int, int]], window: Sequence[int]) -> Tensor:
    """Return the longitude and latitude [B, 2] of the middle of each window in degrees, float32; zeros without a grid.

    Args:
        grid: Grid of the scene, which has a CRS.
        corners: Row and column of the first pixel of each window.
        window: Height and width of a window in pixels.
    """
    if grid is None:
        return torch.zeros(len(corners), 2)
    middles = [(row + window[0] / 2, column + window[1] / 2) for row, column in corners]
    return torch.tensor(grid.positions(middles))


def training_size(config: Any, datamodule: Any, task: Any, patch: int) -> int:
    """Return the side in pixels of a task's training images, as a multiple of the patch size.

    It comes from the crop in train_transform, else from the first training file, else from the backbone's position
    embeddings.

    Args:
        config: The parsed configuration.
        datamodule: Data module of the configuration, before `setup`.
        task: Task of the configuration.
        patch: Patch size of the model in pixels.
    """
    size = _cropped(config.get("data.init_args.train_transform")) or _first_file(datamodule) or _native(task)
    return max(patch, min(size, LARGEST_WINDOW) // patch * patch)


def _cropped(transforms: Any) -> int | None:
    """Return the shorter side of the output of the last cropping transform in a list."""
    found = None
    for entry in transforms if isinstance(transforms, list) else []:
        name = str(entry.get("class_path", "")) if hasattr(entry, "get") else ""
        if not any(word in name.rpartition(".")[2] for word in ("Crop", "Resize")):
            continue
        arguments = entry.get("init_args") or entry.get("dict_kwargs") or {}
        size = arguments.get("size") or [arguments.get("height"), arguments.get("width")]
        sides = [side for side in (size if isinstance(size, list | tuple) else [size]) if isinstance(side, int)]
        found = min(sides, default=found)
    return found


def _first_file(datamodule: Any) -> int | None:
    """Return the shorter side of the first training file of the first modality."""
    roots, patterns = getattr(datamodule, "train_root", None), getattr(datamodule, "image_grep", None) or {}
    for name, root in roots.items() if isinstance(roots, Mapping) else []:
        pattern = patterns.get(name) if isinstance(patterns, Mapping) else None
        for path in Path(str(root)).glob(str(pattern or "*.tif")):
            try:
                with rasterio.open(raster_name(path)) as raster:
                    return int(min(raster.shape))
            except (*GDAL_ERRORS, DataError):
                break  # not a raster; the next modality may have one
    return None


def _native(task: Any) -> int:
    sizes = [getattr(module, "img_size", None) for module in task.modules()]
    return next((min(size) for size in sizes if isinstance(size, tuple)), USUAL_WINDOW)
