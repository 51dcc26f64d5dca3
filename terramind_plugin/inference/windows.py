"""Overlapping windows over an image of any size, the weights that blend them, and the size that suits a task."""

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
"""Largest share of a row block's windows that its last batch may lack, if up to two more rows can avoid that."""
LARGEST_WINDOW = 1024
"""Longest side of a window in pixels: larger images are cropped in training, or the batch size is 1."""
USUAL_WINDOW = 224
"""Side of a window in pixels where neither data nor model have a size: that of the pre-training images."""


@dataclass(frozen=True)
class Axis:
    """Windows along one side of an image."""

    length: int
    """Pixels of the image."""
    size: int
    """Pixels of a window. The last window may reach beyond the image by less than a patch."""
    starts: tuple[int, ...]
    """First pixel of each window."""
    margin: int
    """Pixels at the edges of a window that do not count, except at the edges of the image."""
    ramp: int
    """Pixels over which the weight of a window rises."""
    cell: int = 1
    """Pixels of a cell. All other numbers count cells: those of the result, which are pixels unless it is coarser."""
    exclusive: bool = False
    """True if a window does not count for what an earlier one counts for."""

    @property
    def pixels(self) -> int:
        """Return the pixels of a window."""
        return self.size * self.cell

    def pixel(self, index: int) -> int:
        """Return the first pixel of a window."""
        return self.starts[index] * self.cell

    def placement(self) -> tuple[float, float]:
        """Return where the first cell of the result begins, and the distance to the next one, in pixels."""
        return 0.0, float(self.cell)

    def extent(self, index: int) -> tuple[int, int]:
        """Return the first pixel that a cell of the result describes, and the one after the last."""
        return index * self.cell, (index + 1) * self.cell

    def used(self, index: int) -> tuple[int, int]:
        """Return the first image pixel that a window counts for, and the one after the last."""
        first = 0 if index == 0 else self.starts[index] + self.margin
        if self.exclusive and index > 0:
            first = max(first, self.starts[index - 1] + self.size - self.margin)
        last = self.starts[index] + self.size - self.margin
        return first, self.length if index == len(self.starts) - 1 else min(last, self.length)

    def weights(self, index: int) -> NDArray[np.float32]:
        """Return the weight of a window at each pixel that it counts for. The weights of all windows sum to one."""
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
    """Rows of windows that are computed together, and the image rows that they finish."""

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
        """Return which cells of a window have data in some pixel.

        Args:
            valid: Boolean [h, w], the pixels of the window that have data.
        """
        height, width = valid.shape
        rows, columns = self.rows.size, self.columns.size
        if (height, width) == (rows, columns):
            return valid
        cells = valid.reshape(rows, height // rows, columns, width // columns)
        return np.asarray(cells.any(axis=(1, 3)))

    def gather(self, result: Tensor, valid: NDArray[np.bool_]) -> Tensor:
        """Return the result of a window by cells, [channels, rows, columns].

        Args:
            result: [channels, h, w]. Where the window is one cell, this is the mean of the parts that have data.
            valid: Boolean, the pixels of the window that have data.
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
            batch_size: Windows that a model takes at once.
        """
        count, across = len(self.rows.starts), len(self.columns.starts)
        least = max(1, batch_size // across)
        # Each further row takes memory.
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
        """Return the image row after the last one that the windows of a row block count for."""
        return max(self.rows.used(row)[1] for row in block.rows)

    def windows(self, block: RowBlock) -> Iterator[tuple[int, int]]:
        """Yield row and column numbers of the windows of a row block."""
        for row in block.rows:
            for column in range(len(self.columns.starts)):
                yield row, column


def plan_axis(length: int, crop: int, stride: int, margin: int = 0, *, multiple: int = 1, align: int = 1) -> Axis:
    """Return windows along one side of an image.

    An image smaller than `crop` gets one window. The last window ends with the image or, to start at a multiple of
    `align`, a little beyond it.

    Args:
        length: Pixels of the image, at least 1.
        crop: Pixels of a window.
        stride: Pixels from one window to the next, at most crop - 2 * margin.
        margin: Pixels at the edges of a window that do not count inside the image.
        multiple: Number that window sizes are multiples of.
        align: Number that window starts are multiples of.

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
    # At most half a window, so that every window has full weight somewhere.
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
    """Return longitude and latitude [B, 2] of the middles of windows in degrees, float32; zeros without a grid.

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
    """Return the side in pixels of the images that a task was trained on, a multiple of the patch size.

    The size is the one that train_transform crops to, else that of the first training file, else that of the
    backbone's position embeddings.

    Args:
        config: The parsed configuration.
        datamodule: Data module of the configuration; not set up.
        task: Task of the configuration.
        patch: Patch size of the model in pixels.
    """
    size = _cropped(config.get("data.init_args.train_transform")) or _first_file(datamodule) or _native(task)
    return max(patch, min(size, LARGEST_WINDOW) // patch * patch)


def _cropped(transforms: Any) -> int | None:
    """Return the shorter side of what the last cropping transform of a list gives."""
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
                break  # no raster: the next modality may be one
    return None


def _native(task: Any) -> int:
    sizes = [getattr(module, "img_size", None) for module in task.modules()]
    return next((min(size) for size in sizes if isinstance(size, tuple)), USUAL_WINDOW)
