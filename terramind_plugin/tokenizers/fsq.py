"""Finite scalar quantisation: each latent channel is rounded to a level, and the levels together form a token id."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.finite import FiniteGuard


class FiniteScalarQuantizer(nn.Module):
    """Quantiser that rounds latents to a grid of codes in [0, 1] and numbers the codes.

    The first channel varies fastest: id = n_0 + n_1 * L_0 + n_2 * L_0 * L_1 + ..., where n_i in 0 .. L_i - 1 is the
    level of channel i.

    Source: Finite Scalar Quantization (arXiv:2309.15505), with a sigmoid instead of tanh as in TerraMind's tokenizers.

    Args:
        levels: Number of levels of each channel, at least 2.

    Raises:
        ConfigError: `levels` is empty or holds a number below 2.
    """

    _levels: Tensor
    _basis: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ConfigError(f"Quantisation needs at least 2 levels in each channel, got {list(levels)}.")
        self.levels = tuple(levels)
        self.codebook_size = math.prod(self.levels)
        basis = [math.prod(self.levels[:index]) for index in range(len(self.levels))]
        # Not in published checkpoints, because they are constants of the architecture.
        self.register_buffer("_levels", torch.tensor(self.levels), persistent=False)
        self.register_buffer("_basis", torch.tensor(basis), persistent=False)
        self._guard = FiniteGuard()
        self.may_wait: bool | None = None
        """Whether to wait until a GPU has checked that latents are finite; None to wait in evaluation mode only."""

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes [B, D, H, W] in [0, 1] and token ids [B, H, W], int32.

        Args:
            latents: Float tensor [B, D, H, W]. Gradients pass through the rounding unchanged.

        Raises:
            DataError: A latent is not finite. In training on a GPU the next step raises it.
        """
        wait = not self.training if self.may_wait is None else self.may_wait
        self._guard({"The image": latents}, wait=wait)
        steps = (self._levels - 1).to(latents.dtype)[:, None, None]
        scaled = latents.sigmoid() * steps
        rounded = scaled.round()
        ids = (rounded.long() * self._basis[:, None, None]).sum(dim=1)
        return (scaled + (rounded - scaled).detach()) / steps, ids.int()

    def codes(self, ids: Tensor, *, checked: bool = False) -> Tensor:
        """Return the codes [B, D, H, W], float32 in [0, 1], of token ids [B, H, W].

        Args:
            ids: Integers in 0 .. codebook_size - 1.
            checked: Whether ids are known to be in that range; otherwise the check waits for a GPU.

        Raises:
            DataError: An id is outside that range.
        """
        ids = ids.long()
        if not (checked or torch.compiler.is_compiling()) and ids.numel():
            low, high = (int(bound) for bound in ids.aminmax())
            if low < 0 or high >= self.codebook_size:
                raise DataError(
                    f"Token ids from {low} to {high} do not fit levels {list(self.levels)}: expected "
                    f"0 to {self.codebook_size - 1}. Is it the tokenizer of another modality?"
                )
        counts = (ids[:, None] // self._basis[:, None, None]) % self._levels[:, None, None]
        return counts / (self._levels[:, None, None] - 1)
