"""What both stages of pre-training share: the optimiser's schedule, and randomness that a resumed run repeats."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from terramind_plugin.errors import ConfigError


def build_optimizer(
    parameters: Iterable[nn.Parameter], trainer: Trainer, *, lr: float, warmup_steps: int, weight_decay: float
) -> dict[str, Any]:
    """Return AdamW with a linear warm-up and a cosine to zero at the trainer's max_steps, as Lightning takes it.

    Args:
        parameters: What to train.
        trainer: Has max_steps.
        lr: Largest learning rate.
        warmup_steps: Steps in which it grows to that.
        weight_decay: Of AdamW.

    Raises:
        ConfigError: The trainer has no max_steps above the warm-up.
    """
    total = trainer.max_steps
    if total <= warmup_steps:
        raise ConfigError(f"trainer.max_steps must be above warmup_steps {warmup_steps}, got {total}. Set max_steps.")
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay)
    rise = LinearLR(optimizer, start_factor=0.01, total_iters=max(warmup_steps, 1))
    fall = CosineAnnealingLR(optimizer, total - warmup_steps)
    schedule = SequentialLR(optimizer, [rise, fall], [warmup_steps])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def make_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """Return the random numbers of a step: a function of its arguments alone.

    Args:
        seed: Of the run.
        step: Number of the training step; negative ones are for validation.
        rank: Number of the process.
    """
    digest = hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
