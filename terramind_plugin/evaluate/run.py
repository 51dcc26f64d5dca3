"""A run of a comparison: `python -m terramind_plugin.evaluate.run CONFIG RESULT ARM SEED OPTIONS`."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from terramind_plugin.errors import report
from terramind_plugin.integration.lightning_cli import make_cli
from terramind_plugin.system.files import write_text
from terramind_plugin.system.process import end_with_parent, is_further_rank, read_status, restart_peak


@dataclass(frozen=True)
class Result:
    """Results and costs of a run."""

    arm: str
    seed: int
    metrics: dict[str, float]
    """Metrics of the test by name."""
    fit_seconds: float
    """Seconds of training and validation, without imports and without building the model and the data module."""
    epoch_seconds: list[float]
    """Seconds of the training part of each epoch."""
    peak_bytes: int
    """Peak of the resident set minus the resident set before the model was built; on a GPU, peak of allocations."""
    trained_parameters: int
    checkpoint_bytes: int
    """Size of the checkpoint that was tested; 0 if there is none."""


class EpochTimes(Callback):
    """Measures the seconds of the training part of each epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the clock; the last batch of an epoch counts."""
        if trainer.is_last_batch:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self._start)


def execute(config: Path, overrides: list[str]) -> dict[str, Any]:
    """Train, test the best checkpoint and return the fields of a `Result` that this process knows.

    Args:
        config: Configuration of the run.
        overrides: Further options, e.g. ['--trainer.max_epochs=3'].
    """
    before = restart_peak()
    cli = make_cli(["--config", str(config), *overrides])
    times = EpochTimes()
    cli.trainer.callbacks.append(times)
    trained = sum(x.numel() for x in cli.model.parameters() if x.requires_grad)
    start = time.perf_counter()
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else read_status("VmHWM") - before
    best = getattr(cli.trainer.checkpoint_callback, "best_model_path", "")
    metrics = cli.trainer.test(cli.model, datamodule=cli.datamodule, ckpt_path=best or None, verbose=False)
    return {
        "metrics": {name: float(value) for part in metrics for name, value in part.items()},
        "fit_seconds": seconds,
        "epoch_seconds": times.seconds,
        "peak_bytes": peak,
        "trained_parameters": trained,
        "checkpoint_bytes": Path(best).stat().st_size if best else 0,
    }


def save(result: Result, path: Path) -> None:
    """Write a result; the file appears only when it is complete."""
    write_text(path, json.dumps(asdict(result), indent=1) + "\n")


def main(config: str, target: str, arm: str, seed: str, *overrides: str) -> int:
    """Run and write the result."""
    if is_further_rank():
        end_with_parent(os.getppid())
    try:
        fields = execute(Path(config), list(overrides))
        save(Result(arm=arm, seed=int(seed), **fields), Path(target))
    except Exception as error:
        return report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
