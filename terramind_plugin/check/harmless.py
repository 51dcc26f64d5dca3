"""A training run without side effects: changes to its configuration, and a guard over the files of its process."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from terramind_plugin.backbones.arguments import read_text
from terramind_plugin.errors import ConfigError

TIMED_STEPS = 4
"""Number of training steps of a timed run. The first one is slower; it counts only if there is no other."""
FEW_SAMPLES = 2
"""Number of samples in a batch of a run that is not timed."""
FOLDERS = ("dirpath", "save_dir", "output_dir", "log_dir", "root_dir")
"""Arguments of loggers, callbacks and profilers that name an output folder."""
CACHES = ("backbone_tim_cache", "backbone_feature_cache")
"""Arguments of a backbone that name a folder to write to."""
WEIGHTS = ("backbone_ckpt_path", "backbone_tim_tokenizer_ckpt_paths", "ckpt_path")
"""Arguments of models that name files of weights."""
ALLOWED = ("/dev/", "/proc/")
"""Folders other than the scratch folder where the process may write: devices, shared memory, its own settings."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = {
    "os.mkdir": [(0, 2)], "os.remove": [(0, 1)], "os.rmdir": [(0, 1)], "os.rename": [(0, 2), (1, 3)],
    "os.symlink": [(1, 2)], "os.link": [(1, 3)], "os.truncate": [(0, 0)],
}  # fmt: skip
"""Audit events of calls that change files: positions of the path argument, and of the folder it is relative to."""


class UntouchableError(OSError):
    """Error of an attempt to write something that would outlive the check.

    Args:
        target: The file or server.
    """

    def __init__(self, target: str) -> None:
        super().__init__(errno.EROFS, "terramind check writes nothing", target)


def guard_files(folder: Path) -> None:
    """Refuse to write outside a folder and to connect to other machines, for the rest of this process.

    Calls from Python raise UntouchableError, as if the file system were read-only; libraries that write only to fill a
    cache continue without it.

    Args:
        folder: The scratch folder; temporary files go there from now on.
    """
    inside = (f"{folder}{os.sep}", f"{folder.resolve()}{os.sep}", *ALLOWED)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    sys.dont_write_bytecode = True

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING:
                refuse(path)
        elif event in EVENTS:
            for path, base in EVENTS[event]:
                refuse(arguments[path], arguments[base])
        elif event == "socket.connect":
            address = arguments[1]
            if isinstance(address, tuple) and address[0] not in ("localhost", "127.0.0.1", "::1"):
                raise UntouchableError(str(address[0]))

    def refuse(path: Any, base: Any = None) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a file that is open already
        where = os.readlink(f"/proc/self/fd/{base}") if isinstance(base, int) and base >= 0 else os.curdir
        whole = os.path.abspath(os.path.join(where, os.fsdecode(path)))
        if not f"{whole}{os.sep}".startswith(inside):
            raise UntouchableError(whole)

    sys.addaudithook(look)


def make_harmless(config: Namespace, folder: Path, timed: bool) -> None:
    """Change a parsed configuration of fit to few steps, random weights and a scratch folder for all output.

    Args:
        config: Trainer, data and model; changed in place.
        folder: The scratch folder.
        timed: Whether batches and worker processes stay as they are.
    """
    os.environ.update(HF_HUB_OFFLINE="1", WANDB_MODE="disabled")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    _change_trainer(config.trainer, folder)
    data = config.get("data.init_args")
    if isinstance(data, Namespace):
        _change(data, "cache", lambda cache: None)  # decoded chips would be written to it
    if isinstance(data, Namespace) and not timed:
        _change(data, "batch_size", lambda size: min(size, FEW_SAMPLES) if isinstance(size, int) else size)
        _change(data, "num_workers", lambda count: 0 if isinstance(count, int) and count > 0 else count)
    drop_weights(config)
    arguments = config.get("model.init_args.model_args")
    if isinstance(arguments, dict):
        for key in [key for key in CACHES if arguments.get(key)]:
            arguments[key] = str(folder / "cache")


def drop_weights(config: Namespace) -> None:
    """Let the model start with random weights. Invalid values stay, so that the model refuses them.

    Args:
        config: A configuration with a model; changed in place.
    """
    for place in ("model.init_args", "model.init_args.model_args"):
        arguments = config.get(place)
        if not isinstance(arguments, dict | Namespace):
            continue
        for key in [key for key in WEIGHTS if key in arguments]:
            if isinstance(arguments, dict):
                arguments.pop(key)
            else:
                arguments[key] = None
        for key in [key for key in arguments.keys() if str(key).endswith("pretrained")]:  # noqa: SIM118
            with suppress(ConfigError):  # text that is not YAML: the model reports it
                arguments[key] = False if isinstance(read_text(key, arguments[key]), bool) else arguments[key]


def trainer_limits(trainer: Namespace, timed: bool) -> dict[str, int]:
    """Return arguments of the trainer that make a run short; limits of 0 stay 0.

    They cannot be set in the configuration: its parser turns 1 into 1.0, which means all batches.

    Args:
        trainer: Configuration of the trainer.
        timed: Whether to train several steps.
    """
    counts = {"limit_train_batches": TIMED_STEPS if timed else 1, "limit_val_batches": 1}
    return {key: 0 if trainer.get(key) == 0 else count for key, count in counts.items()}


def _change_trainer(trainer: Namespace, folder: Path) -> None:
    trainer.default_root_dir = str(folder)
    fixed = {"min_epochs": None, "min_steps": None, "max_time": None, "num_sanity_val_steps": 0, "overfit_batches": 0,
             "check_val_every_n_epoch": 1, "val_check_interval": None, "devices": 1, "num_nodes": 1}  # fmt: skip
    for key, value in fixed.items():
        trainer[key] = value
    # A run that is configured to do nothing does nothing here either.
    _change(trainer, "max_epochs", lambda count: count if count == 0 else 1)
    # More than the tried steps, for schedules that end at max_steps.
    _change(trainer, "max_steps", lambda count: max(count, TIMED_STEPS + 1) if count and count > 0 else count)
    _change(trainer, "fast_dev_run", lambda given: bool(given))
    if isinstance(trainer.get("strategy"), str):
        trainer.strategy = "auto"
    for place in ("logger", "callbacks", "profiler"):
        for part in _parts(trainer.get(place)):
            for key in FOLDERS:
                _change(part, key, lambda value: value if value is None else str(folder / "written"))
            _change(part, "tracking_uri", lambda value: None)
            # Steps of a search for the learning rate.
            _change(
                part, "num_training_steps", lambda count: min(count, TIMED_STEPS) if isinstance(count, int) else count
            )


def _parts(value: Any) -> Iterator[Namespace]:
    """Yield the init_args of each class in a value of the trainer's configuration."""
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, Namespace) and isinstance(entry.get("init_args"), Namespace):
            yield entry.init_args


def _change(arguments: Namespace, key: str, make: Callable[[Any], Any]) -> None:
    if key in arguments:
        arguments[key] = make(arguments[key])
