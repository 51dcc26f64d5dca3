"""Windows over a grid of patches, for models of one image size that generate larger images piece by piece."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from terramind_plugin.tokenizers.noise import Noise


@dataclass(frozen=True)
class PatchWindows:
    """Windows of one size that cover a grid of patches. They overlap if they do not divide the grid evenly.

    Attributes:
        grid: Rows and columns of the grid in patches.
        largest: Maximum side of a window in patches.
        patch: Height and width of a patch in pixels.
    """

    grid: tuple[int, int]
    largest: int
    patch: int

    @property
    def size(self) -> tuple[int, int]:
        """Return rows and columns of a window, in patches."""
        return min(self.grid[0], self.largest), min(self.grid[1], self.largest)

    @property
    def pixels(self) -> tuple[int, int]:
        """Return height and width of a window in pixels."""
        return self.size[0] * self.patch, self.size[1] * self.patch

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Return first row and first column of each window, in patches, row by row."""
        rows, columns = (_starts(length, side) for length, side in zip(self.grid, self.size, strict=True))
        return [(row, column) for row in rows for column in columns]

    def cut(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs of the windows as a batch, with the windows of a sample one after the other.

        Args:
            inputs: Images [B, bands, H, W], token ids [B, rows, columns], sequences [B, L] and masks [B], by name.
        """
        return {
            name: torch.stack([self._part(x, *at) for at in self.corners], 1).flatten(0, 1)
            for name, x in inputs.items()
        }

    def _part(self, x: Tensor, row: int, column: int) -> Tensor:
        """Return the part of an input in one window; a sequence belongs to every window."""
        if x.ndim < 3:
            return x
        step = self.patch if x.ndim == 4 else 1
        rows, columns = (
            slice(first * step, (first + side) * step) for first, side in zip((row, column), self.size, strict=True)
        )
        return x[..., rows, columns]

    def share(self, noise: Noise) -> Noise:
        """Return random numbers for the windows; all windows of a sample share its generator."""
        return Noise([one for one in noise.generators for _ in self.corners])

    def join(self, ids: Tensor) -> Tensor:
        """Return token ids of whole samples: [B, rows, columns], or the sequence of the middle window, [B, L].

        Args:
            ids: Token ids of the windows, [B * windows, rows, columns] or [B * windows, L].
        """
        count = len(self.corners)
        parts = ids.reshape(-1, count, *ids.shape[1:])
        if ids.ndim == 2:
            return parts.select(1, self._middle())
        whole = ids.new_zeros(len(parts), *self.grid)
        height, width = self.size
        for number, (row, column) in enumerate(self.corners):
            whole[:, row : row + height, column : column + width] = parts[:, number]
        return whole

    def _middle(self) -> int:
        """Return the number of the window nearest to the middle."""
        wanted = [(length - side) / 2 for length, side in zip(self.grid, self.size, strict=True)]
        return min(
            range(len(self.corners)),
            key=lambda number: sum(abs(at - to) for at, to in zip(self.corners[number], wanted, strict=True)),
        )


def _starts(length: int, side: int) -> list[int]:
    """Return the first patch of each window along one side, at even distances."""
    count = -(-length // side)
    return [round(number * (length - side) / max(count - 1, 1)) for number in range(count)]
