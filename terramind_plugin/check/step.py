"""A training and a validation step as `terramind fit` would take them, with an estimate of an epoch if timed."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback as LightningCallback

from terramind_plugin.check.harmless import UntouchableError, guard_files, make_harmless, trainer_limits
from terramind_plugin.errors import one_line
from terramind_plugin.integration.causes import describe_error
from terramind_plugin.integration.lightning_cli import TerraMindCLI, run
from terramind_plugin.samples.checks.findings import Finding, Verdict
from terramind_plugin.system.process import read_status, restart_peak

STEP_CHECK = "run: step"
"""Name of the check in findings."""
PATIENCE = 15.0
"""Seconds after which no further step begins."""
FULL = 0.9
"""Share of a GPU's memory above which a step may soon fail."""
NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "insufficient RAM")
"""Texts of errors for a lack of memory on a CPU."""


class Stopwatch(LightningCallback):
    """Clock of training steps, loading included, and of a validation step.

    Args:
        say: Called with a text when a part begins.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.ends: list[float] = []
        self.start = self.validation_start = self.validation = 0.0
        self.losses: list[float] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start the clock."""
        self.say("a training step")
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Record the time after a step, and stop training if the steps have taken long."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        self.losses += [] if loss is None else [float(loss)]  # this waits for the GPU
        self.ends.append(time.perf_counter())
        if self.ends[-1] - self.start > PATIENCE:
            trainer.should_stop = True

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        """Start the clock of a validation step."""
        self.say("a validation step")
        self.validation_start = time.perf_counter()

    def on_validation_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        """Record the seconds of a validation step."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.validation = time.perf_counter() - self.validation_start

    @property
    def step(self) -> float:
        """Return the seconds of a training step."""
        if len(self.ends) > 1:
            return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)
        return self.ends[0] - self.start


class StepCLI(TerraMindCLI):
    """The command line of fit, in which a run is short and writes to a scratch folder only.

    Args:
        folder: The scratch folder.
        timed: Whether to take several steps as they are configured.
        say: Called with a text when a part begins.
        found: List to which findings are added.
        kwargs: As for TerraMindCLI.
    """

    def __init__(
        self, *, folder: Path, timed: bool, say: Callable[[str], None], found: list[Finding], **kwargs: Any
    ) -> None:
        self.folder, self.timed, self.say, self.found = folder, timed, say, found
        super().__init__(**kwargs)

    def before_instantiate_classes(self) -> None:
        """Build a trainer for the configured devices, so that errors show, then configure one device."""
        config = self.config.fit
        chosen = {key: config.trainer[key] for key in ("accelerator", "devices", "strategy", "num_nodes")}
        if chosen["devices"] != "auto" or chosen["strategy"] != "auto":
            Trainer(**chosen, logger=False, enable_checkpointing=False, default_root_dir=self.folder)
        make_harmless(config, self.folder, self.timed)
        self.say("building data module and model")

    def instantiate_trainer(self, **more: Any) -> Trainer:
        """Return a trainer for a short run."""
        return super().instantiate_trainer(**trainer_limits(self.config.fit.trainer, self.timed), **more)

    def fit(self, model: LightningModule, datamodule: LightningDataModule, **_: Any) -> None:
        """Train and validate."""
        trainer, watch = self.trainer, Stopwatch(self.say)
        trainer.callbacks.insert(0, watch)
        _save_nothing(trainer)
        restart_peak()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self.say("reading the lists of samples")
        trainer.fit(model, datamodule=datamodule)
        self.found += _report(watch, trainer, datamodule, self.timed)


def _save_nothing(trainer: Trainer) -> None:
    """Replace the saving of checkpoints, which may be large: checkpoints are built but not written."""
    save = trainer.save_checkpoint

    def put_together(filepath: Any, weights_only: bool | None = None, storage_options: Any = None) -> None:
        if Path(filepath).name.startswith("."):  # a checkpoint that Lightning's tuners read again
            save(filepath, bool(weights_only), storage_options)

    trainer.save_checkpoint = put_together  # type: ignore[method-assign]


def try_steps(
    config: Path, overrides: Sequence[str], folder: Path, *, timed: bool, say: Callable[[str], None]
) -> list[Finding]:
    """Return findings on the time and memory of an epoch, or on the reason for which fit would fail.

    From this call on the process can write to the scratch folder only.

    Args:
        config: The YAML file.
        overrides: Further options, as for terramind fit, e.g. ["--trainer.max_epochs=3"].
        folder: The scratch folder.
        timed: Whether to measure some steps as they are configured, instead of taking one with two samples.
        say: Called with a text when a part begins.
    """
    found: list[Finding] = []
    guard_files(folder)
    kind = partial(StepCLI, folder=folder, timed=timed, say=say, found=found)
    with _quiet():
        say("reading the configuration")
        try:
            run(["fit", "--config", str(config), *overrides], kind)
        except (Exception, SystemExit) as error:  # whatever a library raises at a wrong argument
            logging.getLogger("terramind_plugin").debug("The step failed", exc_info=True)
            return [*found, _explain(error)]
    return found


def _explain(error: BaseException) -> Finding:
    """Return the finding for an error: why a step failed, or why it could not be tried."""
    chain = list(_chain(error))
    refused = next((one for one in chain if isinstance(one, UntouchableError)), None)
    if refused is not None:
        return not_tried(f"it needs {refused.filename}, and check neither writes files nor connects to others.")
    if any(isinstance(one, torch.OutOfMemoryError) for one in chain):
        return Finding(
            "run: memory",
            "error",
            f"a training step does not fit: {one_line(error)[:200]}",
            "Lower batch_size, or set precision: bf16-mixed or backbone_activation_checkpointing: true.",
        )
    if any(isinstance(one, MemoryError) or any(text in str(one) for text in NO_MEMORY) for one in chain):
        return not_tried("it needs more memory than is free.")
    return Finding(STEP_CHECK, "error", f"fit fails: {describe_error(error)}")


def not_tried(reason: str) -> Finding:
    """Return the finding that no step was tried, with the reason."""
    return Finding(
        STEP_CHECK, "note", f"not tried: {reason}", "Try a short run: terramind fit ... --trainer.fast_dev_run 1."
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide messages of Lightning and of the data module, which the table repeats."""
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


def _report(watch: Stopwatch, trainer: Trainer, datamodule: Any, timed: bool) -> Iterator[Finding]:
    if not watch.ends:
        idle = 0 in (trainer.max_epochs, trainer.max_steps, trainer.limit_train_batches)
        verdict: Verdict = "warning" if idle else "error"
        advice = "See max_epochs, max_steps and limit_train_batches." if idle else "See batch_size and the train split."
        yield Finding(STEP_CHECK, verdict, "there was no training step.", advice)
        return
    if not all(map(math.isfinite, watch.losses)):
        yield Finding(STEP_CHECK, "error", f"the first losses are {watch.losses}.", "Check values and labels.")
    else:
        losses = ", ".join(f"{loss:.3g}" for loss in watch.losses)
        done = "training and validation steps" if watch.validation else "training steps"
        yield Finding(STEP_CHECK, "ok", f"{done} work with random weights; loss {losses}.")
    if timed:
        yield from _report_times(watch, trainer, datamodule)


def _report_times(watch: Stopwatch, trainer: Trainer, datamodule: Any) -> Iterator[Finding]:
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
