"""Whether there is room for checkpoints."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from terramind_plugin.samples.checks.findings import Finding

BYTES = 4


def check_disk(config: Mapping[str, Any], model: Any) -> Iterator[Finding]:
    """Yield what checkpoints of a run need, as an error if the disk has less.

    Args:
        config: The configuration.
        model: The task, whose tensors may be on the meta device.
    """
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    trainer = config.get("trainer") or {}
    size = kept = 0
    for callback in trainer.get("callbacks") or []:
        name = str(callback.get("class_path", "")) if isinstance(callback, Mapping) else ""
        if not name.endswith("ModelCheckpoint"):
            continue
        options = callback.get("init_args") or {}
        copies = _copies(options, trainer)
        # AdamW keeps two numbers for each weight that it trains.
        size += copies * BYTES * (total + (0 if options.get("save_weights_only") else 2 * trained))
        kept += copies
    folder = Path(os.path.abspath(str(trainer.get("default_root_dir") or ".")))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    seen = f"{total / 1e6:.1f} M weights, {trained / 1e6:.1f} M train; {kept} checkpoints of {size / 1e9:.2f} GB in all"
    if size > free:
        yield Finding("run: disk", "error", f"{seen}, {free / 1e9:.2f} GB free in {folder}.", "Keep fewer checkpoints.")
    else:
        yield Finding("run: disk", "ok", f"{seen}, {free / 1e9:.0f} GB free.")


def _copies(options: Mapping[str, Any], trainer: Mapping[str, Any]) -> int:
    """Return how many files a checkpoint callback keeps; one for each time it saves if it keeps all."""
    count = options.get("save_top_k")
    count = 1 if count is None else int(count)
    if count < 0:
        steps, every = int(trainer.get("max_steps") or -1), int(options.get("every_n_train_steps") or 0)
        if every and steps > 0:
            count = steps // every
        else:
            # Lightning's own number of epochs, where none is given.
            epochs = trainer.get("max_epochs")
            count = max(1, int(1000 if epochs is None else epochs) // int(options.get("every_n_epochs") or 1))
    return count + bool(options.get("save_last"))
