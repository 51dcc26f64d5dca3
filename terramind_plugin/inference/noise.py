"""Random numbers that belong to positions in a scene, so that overlapping windows draw the same ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terramind_plugin.errors import ConfigError
from terramind_plugin.tokenizers.noise import Noise

CELL = 64
"""Height and width, in pixels or tokens, of the squares that numbers are drawn for."""
ORDER, UNIFORM, NORMAL = 0, 1, 2


class SceneNoise(Noise):
    """Random numbers for windows of a scene: each depends on the seed, its purpose, and its position alone.

    Neighbouring windows therefore draw the same tokens where their scores agree, and start from the same noise. Nothing
    depends on the batch or on other windows.

    Args:
        seed: Seed of the scene.
        corners: Row and column in pixels of the first pixel of each window.
        size: Height and width of a window in pixels.
        patch: Height and width of a token in pixels.
    """

    def __init__(self, seed: int, corners: Sequence[tuple[int, int]], size: tuple[int, int], patch: int) -> None:
        # Numbers without a position, such as those of a text, belong to the first pixel of the window.
        super().__init__([torch.Generator().manual_seed(_mix(seed, *corner)) for corner in corners])
        self.seed = seed
        self.corners = list(corners)
        self.tokens = size[0] // patch, size[1] // patch
        self.patch = patch
        self._draws = 0
        self._order: Tensor | None = None

    def order(self, count: int) -> Tensor:
        """Return the numbers of the tokens of each window in random order, [B, count].

        Raises:
            ConfigError: The windows have another number of tokens.
        """
        rows, columns = self.tokens
        if count != rows * columns:
            raise ConfigError(f"Windows of {rows} x {columns} tokens have no order of {count}.")
        self._order = self._positions(ORDER, 1).flatten(1).argsort(dim=1, stable=True)
        return self._order

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers in [0, 1), [B, *shape]; those of tokens belong to positions, in the order asked for last."""
        count, *each = shape
        if count != self.tokens[0] * self.tokens[1] or len(each) != 1:
            return super().uniform(*shape)
        numbers = self._positions(UNIFORM, each[0]).flatten(2).transpose(1, 2)
        if self._order is None:
            return numbers
        order, self._order = self._order, None
        return numbers.gather(1, order[..., None].expand_as(numbers))

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers [B, channels, height, width] that belong to pixels of the scene."""
        self._draws += 1
        windows = [self._window(NORMAL, corner, shape) for corner in self.corners]
        return torch.from_numpy(np.stack(windows))

    def _positions(self, kind: int, each: int) -> Tensor:
        """Return for each token numbers [B, each, rows, columns]."""
        self._draws += 1
        corners = [(row // self.patch, column // self.patch) for row, column in self.corners]
        return torch.from_numpy(np.stack([self._window(kind, corner, (each, *self.tokens)) for corner in corners]))

    def _window(self, kind: int, corner: tuple[int, int], shape: Sequence[int]) -> NDArray[np.float32]:
        """Return the numbers of a window, cut from the cells that it touches."""
        channels, height, width = shape
        window = np.empty((channels, height, width), np.float32)
        top, left = corner
        for row in range(top // CELL, (top + height - 1) // CELL + 1):
            for column in range(left // CELL, (left + width - 1) // CELL + 1):
                cell = self._cell(kind, row, column, channels)
                down, across = row * CELL - top, column * CELL - left
                window[:, max(down, 0) : down + CELL, max(across, 0) : across + CELL] = cell[
                    :, max(-down, 0) : height - down, max(-across, 0) : width - across
                ]
        return window

    def _cell(self, kind: int, row: int, column: int, channels: int) -> NDArray[np.float32]:
        # Philox is a function of key and counter; the lowest word of the counter goes up as numbers are drawn.
        key = np.array([self.seed, kind], dtype=np.uint64)
        counter = np.array([0, self._draws, row, column], dtype=np.uint64)
        random = np.random.Generator(np.random.Philox(key=key, counter=counter))
        shape = (channels, CELL, CELL)
        return (random.standard_normal if kind == NORMAL else random.random)(shape, dtype=np.float32)


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
