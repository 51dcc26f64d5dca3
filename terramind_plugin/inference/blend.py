"""Blending of overlapping windows, in a buffer of rows that moves down the scene."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terramind_plugin.inference.windows import Plan, RowBlock


class RollingBlend:
    """Buffer of the rows of a scene that have results and may still get more from later windows.

    Args:
        plan: Windows of the scene.
        blocks: All row blocks of the plan; the largest determines the number of rows in the buffer.
        channels: Number of channels of the results.
        top: First row of the scene in the buffer.
        device: Device on which results are blended.
    """

    def __init__(
        self, plan: Plan, blocks: list[RowBlock], channels: int, top: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        height = max(plan.reach(block) - block.first for block in blocks)
        self.plan = plan
        self.top = top
        self.values = torch.zeros(channels, height, plan.columns.length, device=device)
        self.valid = np.zeros((height, plan.columns.length), dtype=bool)
        self._row_weights = lru_cache(maxsize=4)(lambda row: torch.from_numpy(plan.rows.weights(row)).to(device))
        self._column_weights = lru_cache(maxsize=None)(
            lambda column: torch.from_numpy(plan.columns.weights(column)).to(device)
        )

    def mark(self, row: int, column: int, valid: NDArray[np.bool_]) -> None:
        """Record where a window has data.

        Args:
            row: Number of the row of windows.
            column: Number of the column of windows.
            valid: Boolean [h, w], True where the window has data.
        """
        here, window = self._overlap(row, column)
        self.valid[here] |= valid[window]

    def add(self, row: int, column: int, values: Tensor) -> None:
        """Add the result of a window.

        Args:
            row: Number of the row of windows.
            column: Number of the column of windows.
            values: Result of the window, [channels, h, w].
        """
        here, window = self._overlap(row, column)
        weights = self._row_weights(row)[:, None] * self._column_weights(column)
        # Cropped first: pixels outside the weights may hold anything, NaN included.
        self.values[:, *here].addcmul_(values[:, *window].float(), weights)

    def _overlap(self, row: int, column: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return the pixels that a window contributes to, as an index of the buffer and as an index of the window."""
        top, bottom = self.plan.rows.used(row)
        left, right = self.plan.columns.used(column)
        down, across = self.plan.rows.starts[row], self.plan.columns.starts[column]
        return (
            (slice(top - self.top, bottom - self.top), slice(left, right)),
            (slice(top - down, bottom - down), slice(left - across, right - across)),
        )

    def done(self, last: int) -> tuple[Tensor, NDArray[np.bool_]]:
        """Return views of the results [channels, rows, W] above a row, and of the mask of data [rows, W]."""
        count = last - self.top
        return self.values[:, :count], self.valid[:count]

    def move(self, last: int) -> None:
        """Drop the rows above a row."""
        count = last - self.top
        left = self.valid.shape[0] - count
        for plane in self.values:  # one by one, because a copy of all planes would be large
            plane[:left] = plane[count:].clone()
        self.values[:, left:] = 0
        self.valid[:left] = self.valid[count:].copy()
        self.valid[left:] = False
        self.top = last
