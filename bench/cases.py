"""The measured cases: sizes, kinds of work, precisions and implementations."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

SIZES = ("tiny", "base")
WORKS = {
    "forward": "backbone, inference",
    "backbone step": "backbone, forward and backward",
    "training step": "whole task with necks and UNet decoder: forward, dice loss, backward, AdamW",
}
IMPLEMENTATIONS = {
    "reference": "TerraTorch",
    "same necks": "ours, same necks",
    "own necks": "ours, as configured",
}
"""Label of each implementation; the last is what this repository's configurations use."""


@dataclass(frozen=True)
class Precision:
    """Precision of matrix products."""

    matmul: str
    """Argument of torch.set_float32_matmul_precision."""
    autocast: bool
    """True with bf16 autocast."""


PRECISIONS = {
    "float32": Precision("highest", False),
    # One of TerraTorch's modules sets this when it is imported, so it is what users of TerraTorch get.
    "float32 medium": Precision("medium", False),
    "bf16": Precision("medium", True),
}


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    size: str
    work: str
    precision: str

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """Compute in this case's precision; autocast is left to `autocast`, which must not span the backward pass."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(PRECISIONS[self.precision].matmul)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def autocast(self) -> torch.autocast:
        """Return the autocast context of this case."""
        return torch.autocast("cpu", torch.bfloat16, enabled=PRECISIONS[self.precision].autocast)


def all_cases(sizes: list[str], works: list[str], precisions: list[str]) -> list[Case]:
    """Return all combinations."""
    return [Case(*parts) for parts in itertools.product(sizes, works, precisions)]
