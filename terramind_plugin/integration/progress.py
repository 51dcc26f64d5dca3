"""Progress of training: a bar with loss and score, and a line for each epoch, even if the output is a file."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar

LOSSES = ("train/loss", "val/loss", "train_loss", "val_loss")
"""Losses that are shown."""
SCORES = ("val/mIoU", "val/RMSE", "val/F1_Score", "val/Accuracy", "val_map")
"""Scores of TerraTorch's tasks; the first one that a task has is shown."""


class EpochProgress(RichProgressBar):
    """Lightning's progress bar with loss, score and epochs counted from 1, and a permanent line for each epoch.

    In a file or a pipe there are only the lines.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._started = time.monotonic()

    def _init_progress(self, trainer: Trainer) -> None:
        super()._init_progress(trainer)
        if self.progress is not None and self._console is not None and not self._console.is_terminal:
            self.progress.disable = True
            self.progress.live.stop()

    def _get_train_description(self, current_epoch: int) -> str:
        return describe_epoch(current_epoch, self.trainer.max_epochs)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        """Return loss and score."""
        return choose_metrics(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and the bar."""
        self._started = time.monotonic()
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the line of the epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        if not trainer.is_global_zero or self.is_disabled:
            return
        epoch = describe_epoch(trainer.current_epoch, trainer.max_epochs)
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in choose_metrics(trainer).items())
        line = f"{epoch}: {numbers or 'no metrics'}, {time.monotonic() - self._started:.0f} s"
        if self._console is not None and self._console.is_terminal:
            self._console.print(line, highlight=False)  # above the bar
        else:
            print(line, flush=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the paths of the checkpoints, which the next command needs as --ckpt_path."""
        super().on_fit_end(trainer, pl_module)
        if trainer.is_global_zero and not self.is_disabled:
            for line in describe_checkpoints(trainer):
                print(line, flush=True)


def describe_checkpoints(trainer: Trainer) -> list[str]:
    """Return a line for each checkpoint that a run has kept: the best one with its score, or else the last one."""
    lines = []
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or not callback.best_model_path:
            continue
        path, score = callback.best_model_path, callback.best_model_score
        shown = os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path
        kind = f"Best checkpoint ({callback.monitor} {float(score):.3f})" if score is not None else "Checkpoint"
        lines.append(f"{kind}: {shown}")
    return lines


def describe_epoch(number: int, epochs: int | None) -> str:
    """Return the name of an epoch, counted from 1, e.g. 'Epoch 3/12'.

    Args:
        number: Number of the epoch, counted from 0.
        epochs: Number of epochs; None or -1 if it is not limited.
    """
    if epochs is None or epochs < 0:
        return f"Epoch {number + 1}"
    return f"Epoch {number + 1:>{len(str(epochs))}}/{epochs}"


def choose_metrics(trainer: Trainer) -> dict[str, float]:
    """Return the known losses, the usual score of the task, and the metric by which checkpoints are chosen."""
    known: Mapping[str, Any] = trainer.callback_metrics
    monitors = [getattr(one, "monitor", None) for one in trainer.checkpoint_callbacks]
    names = [name for name in LOSSES if name in known]
    names += [name for name in SCORES if name in known][:1]
    names += [str(one) for one in monitors if one in known]
    return {name: float(known[name]) for name in dict.fromkeys(names)}


def replace_bars(trainer: Trainer) -> None:
    """Replace a progress bar of Lightning by `EpochProgress`."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    for place, callback in enumerate(callbacks):
        if type(callback) in (RichProgressBar, TQDMProgressBar):
            made = EpochProgress(leave=getattr(callback, "_leave", False))
            made.setup(trainer, trainer.lightning_module, "")
            if callback.is_disabled:
                made.disable()
            callbacks[place] = made
