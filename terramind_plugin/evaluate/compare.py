"""One training in several arms and with several seeds, one run after another."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from terramind_plugin.errors import ConfigError, DataError, check_seed
from terramind_plugin.evaluate.arms import Budget, check_arms, choose, limit_labels, make_arm
from terramind_plugin.system.files import read_yaml, write_lines, write_text
from terramind_plugin.system.process import locked

RESULT, LOG, CONFIG, LOCK = "result.json", "log.txt", "config.yaml", "lock"
SPLIT = "train.txt"
"""Split file of a run with some of the labels."""
LAST_LINES = 15
"""Number of lines of its log in the message of a run that failed."""
PATIENCE = 10.0
"""Seconds to wait for the process of a run whose comparison was killed: it ends a moment later."""


@dataclass(frozen=True)
class Comparison:
    """Arms, seeds and numbers of labels of a comparison."""

    config: Path
    """Configuration of `terratorch fit`."""
    arms: Sequence[str]
    seeds: int
    out: Path
    """Folder to write to."""
    overrides: Sequence[str] = field(default=())
    """Options of `terratorch fit` for all runs, e.g. '--trainer.max_epochs=3'."""
    labels: Sequence[Budget] = (None,)
    """Numbers of training samples; None for all."""


@dataclass(frozen=True)
class Run:
    """One arm with one seed and one number of labels."""

    arm: str
    seed: int
    folder: Path
    labels: Budget = None

    def __str__(self) -> str:
        return f"{self.arm}, " + (f"{self.labels} labels, " if self.labels else "") + f"seed {self.seed}"


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run."""

    text: str
    """Configuration as YAML."""
    ids: Sequence[str] | None
    """Ids of training samples; None for those of the configuration."""
    overrides: Sequence[str]

    def digest(self) -> str:
        """Return a digest of all settings."""
        parts = [self.text, *self.overrides] if self.ids is None else [self.text, *self.overrides, list(self.ids)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def compare(plan: Comparison, on_run: Callable[[Run, bool], None] = lambda run, known: None) -> list[dict[str, Any]]:
    """Return the result of each run, by ascending number of labels, then in the order of the arms.

    Runs that an earlier call finished with the same settings are not repeated.

    Args:
        plan: Arms, seeds and numbers of labels.
        on_run: Called before each run with the run and whether its result exists already.

    Raises:
        ConfigError: The configuration cannot be read or has no TerraMind backbone, an arm is unknown, or a run's folder
            holds other files or is in use by another comparison, or there are fewer labels than requested.
        DataError: A run failed; the message shows the end of its log.
    """
    arms = check_arms(plan.arms)
    if plan.seeds < 1:
        raise ConfigError(f"seeds must be at least 1, got {plan.seeds}.")
    config = read_config(plan.config)
    first = config.get("seed_everything")
    # The value true lets Lightning draw a seed.
    first = 0 if first is None or isinstance(first, bool) else check_seed(first, f"seed_everything of {plan.config}")
    check_seed(first + plan.seeds - 1, "The last seed")
    # One seed after the other: a machine that slows down slows all arms.
    planned = {
        run: _plan(config, run, plan.overrides)
        for number in range(plan.seeds)
        for labels in dict.fromkeys(plan.labels)
        for run in [_name(plan.out, arm, first + number, labels) for arm in arms]
    }
    for run in planned:
        if plan.config.resolve().is_relative_to(run.folder):
            raise ConfigError(f"{plan.config} is in {run.folder}, which is emptied. Copy it to another folder first.")
    results = {}
    for run, settings in planned.items():
        known = _finished(run, settings)
        on_run(run, known is not None)
        results[run] = known or _execute(run, settings)
    order = sorted(planned, key=lambda run: (run.labels is None, run.labels or 0, arms.index(run.arm), run.seed))
    return [results[run] for run in order]


def _name(out: Path, arm: str, seed: int, labels: Budget) -> Run:
    folder = f"{arm}_seed{seed}" if labels is None else f"{arm}_{labels}labels_seed{seed}"
    return Run(arm, seed, (out / "runs" / folder).resolve(), labels)


def _plan(config: Mapping[str, Any], run: Run, overrides: Sequence[str]) -> RunSettings:
    made, ids = make_arm(config, run.arm, run.seed, run.folder), None
    if run.labels is not None:
        ids = choose(made, run.labels, run.seed)
        limit_labels(made, ids, run.folder / SPLIT)
    return RunSettings(yaml.safe_dump(made, sort_keys=False), ids, overrides)


def read_config(path: Path) -> dict[str, Any]:
    """Return a configuration.

    Raises:
        ConfigError: The file does not exist or is not a YAML mapping.
    """
    config = read_yaml(path)
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds no configuration.")
    return config


def _finished(run: Run, settings: RunSettings) -> dict[str, Any] | None:
    path = run.folder / RESULT
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # damaged: run again
        return None
    return stored if isinstance(stored, dict) and stored.get("settings") == settings.digest() else None


def _execute(run: Run, settings: RunSettings) -> dict[str, Any]:
    """Run in a new process and a new folder and return the result."""
    _claim(run.folder)
    busy = f"Another comparison is working on {run.folder}. Wait for it, or choose another --out."
    with locked(run.folder / LOCK, busy, PATIENCE) as lock:
        _empty(run.folder)
        config, target = run.folder / CONFIG, run.folder / "measured.json"
        write_text(config, settings.text)
        if settings.ids is not None:
            write_lines(run.folder / SPLIT, settings.ids)
        arguments = [os.getpid(), "terramind_plugin.evaluate.run", config, target, run.arm, run.seed]
        command = [sys.executable, "-m", "terramind_plugin.system.process", *map(str, arguments), *settings.overrides]
        with open(run.folder / LOG, "w", encoding="utf-8") as log:
            # The new process also holds the lock: the folder is free when both have ended.
            status = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, check=False, pass_fds=[lock]
            ).returncode
        if status:
            lines = (run.folder / LOG).read_text(errors="replace").strip().splitlines()
            reason = lines[-1:] if status == 2 else lines[-LAST_LINES:]
            raise DataError(f"{run} failed. {run.folder / LOG} ends with:\n" + "\n".join(reason))
        result: dict[str, Any] = json.loads(target.read_text()) | {"settings": settings.digest(), "labels": run.labels}
        write_text(run.folder / RESULT, json.dumps(result, indent=1) + "\n")
        target.unlink()
    return result


def _claim(folder: Path) -> None:
    """Make a folder for a run.

    Raises:
        ConfigError: The folder holds other files.
    """
    if folder.exists() and not (folder / CONFIG).is_file() and any(path.name != LOCK for path in folder.iterdir()):
        raise ConfigError(f"{folder} is not empty and is not the folder of a comparison. Choose another --out.")
    folder.mkdir(parents=True, exist_ok=True)


def _empty(folder: Path) -> None:
    """Delete the files of an interrupted run: its caches must start empty."""
    # The configuration marks the folder as one of a comparison, so it is deleted last.
    for path in sorted(folder.iterdir(), key=lambda path: path.name == CONFIG):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
