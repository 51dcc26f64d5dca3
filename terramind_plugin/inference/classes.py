"""Class ids of blended probabilities."""

from __future__ import annotations

import torch
from torch import Tensor


def choose_classes(probabilities: Tensor, nodata: int) -> tuple[Tensor, Tensor]:
    """Return class ids [1, ...], uint8, and their probabilities [1, ...].

    Args:
        probabilities: [classes, ...].
        nodata: Id where no probability says which class it is, because one is not finite.
    """
    # Over the first dimension several times as fast as argmax; NaN is larger than all numbers to it.
    best = probabilities.max(dim=0, keepdim=True)
    return best.indices.to(torch.uint8).masked_fill_(~best.values.isfinite(), nodata), best.values
