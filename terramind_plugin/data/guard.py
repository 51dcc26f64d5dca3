"""A callback that keeps the checkpoints of earlier runs and ends a terminated run with exit status 143."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from terramind_plugin.system.process import settle_status

logger = logging.getLogger("terramind_plugin")


class RunGuard(Callback):
    """Callback that renames checkpoints of earlier runs, and ends a run with status 143 if SIGTERM has stopped it.

    With `filename: best` and `enable_version_counter: false` the checkpoints of all runs of a configuration have one
    name. Before training, the file of an earlier run gets its date, e.g. best-2026-01-31T09-30-00.ckpt, so that
    best.ckpt always belongs to the newest run. A run that resumes from a checkpoint in the same folder keeps the files
    there.

    Lightning ends a run that has received SIGTERM as if it were finished, so that a script would continue.

    The data modules of this package add this callback to their trainer.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rename checkpoints of earlier runs."""
        if not trainer.is_global_zero:
            return
        for path in dict.fromkeys(_targets(trainer)):
            if os.path.lexists(path):
                kept = _dated(path)
                path.rename(kept)
                logger.warning("%s belongs to an earlier run and has been renamed to %s.", path, kept.name)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Set the exit status 143 if SIGTERM has stopped the run."""
        settle_status(exception, stopped=trainer.received_sigterm)


def guard(trainer: Any) -> None:
    """Add the callback to a trainer if the trainer lacks it.

    Args:
        trainer: Trainer of a data module; None outside of a run.
    """
    callbacks = getattr(trainer, "callbacks", None)
    if callbacks is not None and not any(isinstance(callback, RunGuard) for callback in callbacks):
        callbacks.append(RunGuard())


def _targets(trainer: Trainer) -> Iterator[Path]:
    """Yield the files that a training would replace: those whose name is the same in every run."""
    resumed = Path(trainer.ckpt_path).resolve().parent if trainer.ckpt_path else None
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or callback.dirpath is None:
            continue
        folder = Path(callback.dirpath)
        if getattr(callback, "_enable_version_counter", True) or folder.resolve() == resumed:
            continue
        names = [callback.filename, callback.CHECKPOINT_NAME_LAST if callback.save_last else None]
        for name in names:
            if name and "{" not in name:
                yield folder / f"{name}{callback.FILE_EXTENSION}"


def _dated(path: Path) -> Path:
    """Return a free name with the date of a file's last change."""
    date = time.strftime("%Y-%m-%dT%H-%M-%S", time.localtime(path.lstat().st_mtime))
    named, number = path.with_name(f"{path.stem}-{date}{path.suffix}"), 1
    while os.path.lexists(named):
        number += 1
        named = path.with_name(f"{path.stem}-{date}-{number}{path.suffix}")
    return named
