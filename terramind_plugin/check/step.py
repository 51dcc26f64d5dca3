"""What an epoch takes in time and memory, from a few training steps with random weights."""

from __future__ import annotations

import logging
import math
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from terramind_plugin.causes import readable
from terramind_plugin.contract.findings import Finding, Verdict
from terramind_plugin.errors import one_line
from terramind_plugin.memory import read_status, restart_peak

STEPS = 4
"""Training steps at most; the first one is slower and not counted where there are more."""
PATIENCE = 15.0
"""Seconds after which no further step begins."""
FULL = 0.9
"""Share of a GPU's memory from which on a step is close to failing."""


class Stopwatch(Callback):
    """Measures training steps, with the time that loading takes, and a validation step."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.start = self.validation_start = self.validation = 0.0
        self.losses: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take the time of a step, and stop if it has been long."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self.losses += [] if loss is None else [float(loss)]  # waits for a GPU
        self.ends.append(time.perf_counter())
        if self.ends[-1] - self.start > PATIENCE:
            trainer.should_stop = True

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        """Start the clock of a validation step."""
        self.validation_start = time.perf_counter()

    def on_validation_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Take the time of a validation step."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.validation = time.perf_counter() - self.validation_start

    @property
    def step(self) -> float:
        """Seconds of a training step."""
        if len(self.ends) > 1:
            return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)
        return self.ends[0] - self.start


def check_step(config: Mapping[str, Any], model: Any, datamodule: Any) -> Iterator[Finding]:
    """Yield how long an epoch will take and how much memory it needs, or why a training step fails.

    Args:
        config: The configuration.
        model: The task, with random weights.
        datamodule: The data module; it is set up here.
    """
    options = config.get("trainer") or {}
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder, _quiet():
        try:
            trainer = Trainer(
                accelerator=options.get("accelerator") or "auto",
                devices=1,
                precision=options.get("precision"),
                max_epochs=1,
                limit_train_batches=STEPS,
                limit_val_batches=1,
                num_sanity_val_steps=0,
                callbacks=[watch],
                default_root_dir=folder,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            restart_peak()
            trainer.fit(model, datamodule=datamodule)
        except torch.OutOfMemoryError as error:
            yield Finding(
                "run: memory",
                "error",
                f"a training step does not fit: {one_line(error)[:200]}",
                "Lower batch_size, set precision: bf16-mixed or backbone_activation_checkpointing: true.",
            )
            return
        except (Exception, SystemExit) as error:  # whatever a library raises at a wrong argument
            message = one_line(readable(str(error))) or type(error).__name__
            yield Finding("run: step", "error", f"a training step fails: {message.rpartition('Error: ')[2]}")
            return
    yield from _report(watch, trainer, datamodule)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what Lightning and the data module say: the table says it."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "terramind_plugin")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _report(watch: Stopwatch, trainer: Trainer, datamodule: Any) -> Iterator[Finding]:
    if not watch.ends:
        yield Finding("run: step", "error", "there was no training step.", "See batch_size and the train split.")
        return
    if not all(map(math.isfinite, watch.losses)):
        yield Finding("run: step", "error", f"the first losses are {watch.losses}.", "Look at values and labels.")
    steps, tests = _count(datamodule.train_dataloader()), _count(datamodule.val_dataloader())
    seconds = steps * watch.step + tests * watch.validation
    device = trainer.strategy.root_device
    where = f"one {torch.cuda.get_device_name(device)}" if device.type == "cuda" else f"the {device.type.upper()}"
    yield Finding(
        "run: time",
        "ok",
        f"{'at most ' if len(watch.ends) == 1 else ''}{_duration(seconds)} an epoch on {where}: training {steps} x "
        f"{watch.step:.2f} s with loading, validation {tests} x {watch.validation:.2f} s.",
    )
    if device.type == "cuda":
        peak, total = torch.cuda.max_memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
        verdict: Verdict = "warning" if peak > FULL * total else "ok"
        text = f"{peak / 1e9:.1f} GB at the peak, of {total / 1e9:.1f} GB of the GPU."
        yield Finding("run: memory", verdict, text, "Lower batch_size." if verdict == "warning" else "")
        return
    peak = read_status("VmHWM")
    if peak:
        yield Finding("run: memory", "ok", f"{peak / 1e9:.1f} GB at the peak of the process, loading not counted.")


def _count(loader: Any) -> int:
    return len(loader) if loader is not None else 0


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
