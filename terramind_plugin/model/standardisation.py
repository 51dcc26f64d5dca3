"""Conversion between the units of a modality and the model's standardised values."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Standardisation(nn.Module):
    """Subtracts the mean of the pre-training data and divides by its standard deviation.

    Args:
        mean: Of each band, in the modality's units.
        std: Of each band.
        offset: Added to each mean, for data whose values are shifted by it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], offset: float = 0.0) -> None:
        super().__init__()
        # Numbers of the modality table and no weights, so checkpoints do not hold them.
        self.register_buffer("mean", torch.tensor(mean)[:, None, None] + offset, persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return a standardised copy of an image [..., bands, H, W]."""
        return (image - self.mean) / self.std

    def undo(self, image: Tensor) -> Tensor:
        """Return a copy of a standardised image [..., bands, H, W] in the modality's units."""
        return image * self.std + self.mean
