"""Base class of both tasks: the optimiser, its schedule, and random numbers that a resumed run repeats."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torchgeo.trainers import BaseTask

from terramind_plugin.errors import ConfigError

PENDING = "batches_without_step"
"""Key in a checkpoint for the number of batches whose gradients no optimiser step has used yet."""


class PretrainingTask(BaseTask):
    """A task for which a resumed run repeats the uninterrupted one, even with accumulated gradients.

    A checkpoint holds no gradients. If it is written between two optimiser steps, a resumed run therefore begins with
    the first batch after the last step. The data module must also begin there: see `next_batch`.

    Subclasses have the arguments lr, warmup_steps, weight_decay and seed.
    """

    model: nn.Module

    @property
    def batch_number(self) -> int:
        """Number of the current training batch, from 0 on, over all epochs and resumed runs."""
        return self.trainer.fit_loop.total_batch_idx

    def make_generator(self, number: int) -> torch.Generator:
        """Return the random generator of a batch, which depends only on the run's seed, the number and the process.

        Args:
            number: Number of the training batch; negative for validation.
        """
        digest = hashlib.sha256(f"{self.hparams['seed']}/{number}/{self.global_rank}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    def configure_optimizers(self) -> Any:
        """Return AdamW with a linear warm-up and a cosine to zero at the trainer's max_steps.

        Raises:
            ConfigError: The trainer has no max_steps above the warm-up.
        """
        total, warmup = self.trainer.max_steps, self.hparams["warmup_steps"]
        if total <= warmup:
            raise ConfigError(f"trainer.max_steps must be above warmup_steps {warmup}, got {total}. Set max_steps.")
        settings = {"lr": self.hparams["lr"], "weight_decay": self.hparams["weight_decay"], "betas": (0.9, 0.95)}
        optimizer = torch.optim.AdamW(self.model.parameters(), **settings)
        rise = LinearLR(optimizer, start_factor=0.01, total_iters=max(warmup, 1))
        fall = CosineAnnealingLR(optimizer, total - warmup)
        schedule = SequentialLR(optimizer, [rise, fall], [warmup])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the number of batches since the last optimiser step."""
        batches: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        done = batches.current.processed
        epoch_done = batches.is_last_batch and batches.current.ready == done
        checkpoint[PENDING] = 0 if epoch_done else done % self.trainer.accumulate_grad_batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Turn the trainer's counters in a checkpoint back to the last optimiser step."""
        if "loops" in checkpoint:
            rewind(checkpoint["loops"]["fit_loop"], checkpoint.get(PENDING, 0))


def rewind(loop: dict[str, Any], pending: int) -> None:
    """Turn the counters of Lightning's fit loop back to the last optimiser step, in place.

    Args:
        loop: State of the loop in a checkpoint.
        pending: Number of finished batches since that step; an interrupted batch does not count.
    """
    batches = loop["epoch_loop.batch_progress"]
    if not pending and batches["current"]["ready"] == batches["current"]["processed"]:
        return
    for counts in (batches["total"], batches["current"]):
        done = counts["processed"] - pending
        # As in a checkpoint that is written at the end of the batch that stepped.
        counts |= {"ready": done, "started": done, "processed": done, "completed": max(done - 1, 0)}
    if not batches["current"]["processed"]:
        # No batch of this epoch has stepped: Lightning must not regard the epoch as just validated.
        batches["total"]["started"] -= 1
    batches["is_last_batch"] = False
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def next_batch(trainer: Trainer) -> tuple[int, int]:
    """Return the epoch with which training begins or continues, and the number of its next batch, both from 0.

    Args:
        trainer: Trainer that has restored its counters.
    """
    loop = trainer.fit_loop
    batches: Any = loop.epoch_loop.batch_progress
    epochs: Any = loop.epoch_progress.current
    return (epochs.started, 0) if batches.is_last_batch else (epochs.processed, batches.current.processed)
