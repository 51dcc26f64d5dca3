"""Conversion between the units of a modality and the model's standardised values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Standardisation(nn.Module):
    """Subtracts the mean of the pre-training data and divides by its standard deviation.

    Args:
        mean: Mean of each band, in the modality's units.
        std: Standard deviation of each band.
        offset: Number added to each mean, for data whose values are shifted by it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], offset: float = 0.0) -> None:
        super().__init__()
        # Constants from the modality table, not weights, so checkpoints do not hold them.
        self.register_buffer("mean", torch.tensor(mean)[:, None, None] + offset, persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return a standardised copy of an image [..., bands, H, W]."""
        return (image - self.mean).div_(self.std)  # in place, since allocating memory takes as long as the division

    def undo(self, image: Tensor) -> Tensor:
        """Return a copy of a standardised image [..., bands, H, W] in the modality's units."""
        return image * self.std + self.mean


class Standardised(Standardisation):
    """Shifts, scales and standardises the values of files, as the data module does.

    Args:
        mean: Mean of each band.
        std: Standard deviation of each band.
        scale: Factor of the shifted values.
        shift: Number that is added to the values of the files first.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], scale: float = 1.0, shift: float = 0.0) -> None:
        super().__init__(mean, std)
        self.scale = scale
        self.shift = shift

    def forward(self, image: Tensor) -> Tensor:
        """Return a standardised copy of images [B, bands, H, W] or series [B, bands, dates, H, W]."""
        moved = image.transpose(1, 2) if image.ndim == 5 else image
        if self.shift:
            moved = moved + self.shift
        result = super().forward(moved if self.scale == 1 else moved * self.scale)
        return result.transpose(1, 2) if image.ndim == 5 else result

    def undo(self, image: Tensor) -> Tensor:
        """Return a copy of standardised images, shaped as in `forward`, in the values of files."""
        moved = image.transpose(1, 2) if image.ndim == 5 else image
        result = super().undo(moved) / self.scale - self.shift
        return result.transpose(1, 2) if image.ndim == 5 else result

    def numbers(self) -> list[Any]:
        """Return shift, scale, means and standard deviations, on which the inputs depend."""
        return [self.shift, self.scale, self.mean.tolist(), self.std.tolist()]
