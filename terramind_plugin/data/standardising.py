"""Standardisation of batches, with means and standard deviations kept on the device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class BatchStandardisation:
    """Standardises batches like TerraTorch's MultimodalNormalize.

    TerraTorch's class copies means and standard deviations to the device in each step, so that the CPU waits for the
    GPU four times in a step with two modalities.

    Args:
        means: Mean of each band, by modality.
        stds: Standard deviation of each band, by modality.
    """

    def __init__(self, means: dict[str, Any], stds: dict[str, Any]) -> None:
        self.means = means
        self.stds = stds
        self._numbers: dict[tuple[str, int, torch.device], tuple[Tensor, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_numbers": {}}

    def __call__(self, batch: dict[str, Any], denormalize: bool = False) -> dict[str, Any]:
        """Return the batch with standardised images, or with images back in their units.

        Args:
            batch: Images [B, bands, H, W], series [B, bands, dates, H, W] or single images [bands, H, W] by modality,
                themselves or under 'image'. Other entries stay as they are.
            denormalize: Multiply and add instead.
        """
        for name in self.means:
            where = batch if name in batch else batch.get("image", {})
            if name not in where:
                continue
            image = where[name]
            mean, std = self._get(name, image)
            where[name] = image * std + mean if denormalize else (image - mean) / std
        return batch

    def _get(self, name: str, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation on the image's device, in a shape that fits the image."""
        key = (name, image.ndim, image.device)
        if key not in self._numbers:
            # Bands come second in batches and first in single images; a lone band may have no dimension.
            shape = {5: (1, -1, 1, 1, 1), 4: (1, -1, 1, 1), 3: (-1, 1, 1)}.get(image.ndim, (-1,))
            if image.ndim == 3 and len(self.means[name]) == 1:
                shape = (-1,)
            mean, std = (torch.tensor(numbers[name]).view(shape) for numbers in (self.means, self.stds))
            self._numbers[key] = mean.to(image.device), std.to(image.device)
        return self._numbers[key]
