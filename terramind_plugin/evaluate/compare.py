"""The same training in several arms and from several seeds, one run after the other."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from terramind_plugin.errors import ConfigError, DataError, one_line
from terramind_plugin.evaluate.arms import check_arms, make_arm
from terramind_plugin.evaluate.budgets import Budget, choose, limit_labels
from terramind_plugin.files import write_lines, write_text

RESULT, LOG, CONFIG = "result.json", "log.txt", "config.yaml"
SPLIT = "train.txt"
"""Training samples of a run with some of the labels."""
LAST_LINES = 15


@dataclass(frozen=True)
class Comparison:
    """What to run."""

    config: Path
    """A configuration as `terratorch fit` takes it."""
    arms: Sequence[str]
    seeds: int
    out: Path
    """Folder to write to."""
    words: Sequence[str] = field(default=())
    """Options of `terratorch fit` that hold for all runs, e.g. '--trainer.max_epochs=3'."""
    labels: Sequence[Budget] = (None,)
    """Numbers of training samples; None for all."""


@dataclass(frozen=True)
class Run:
    """One arm from one seed with some of the labels."""

    arm: str
    seed: int
    folder: Path
    labels: Budget = None

    def __str__(self) -> str:
        return f"{self.arm}, " + (f"{self.labels} labels, " if self.labels else "") + f"seed {self.seed}"


@dataclass(frozen=True)
class Job:
    """What a run needs."""

    text: str
    """Its configuration."""
    ids: Sequence[str] | None
    """Training samples; None for those that the configuration names."""
    words: Sequence[str]

    def digest(self) -> str:
        """Return a digest of all settings."""
        parts = [self.text, *self.words] if self.ids is None else [self.text, *self.words, list(self.ids)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def compare(plan: Comparison, on_run: Callable[[Run, bool], None] = lambda run, known: None) -> list[dict[str, Any]]:
    """Return the result of each run, in the order of the arms; the more labels, the later.

    Runs that an earlier call finished with the same settings are not repeated.

    Args:
        plan: What to run.
        on_run: Called before each run, and told whether its result is there already.

    Raises:
        ConfigError: The configuration cannot be read or has no TerraMind backbone, an arm is unknown, or a run's folder
            holds something else, or there are fewer labels than asked for.
        DataError: A run failed; the message shows the end of its log.
    """
    arms = check_arms(plan.arms)
    if plan.seeds < 1:
        raise ConfigError(f"seeds must be at least 1, got {plan.seeds}.")
    config = read_config(plan.config)
    first = int(config.get("seed_everything") or 0)
    # One seed after the other: a machine that slows down slows all arms.
    jobs = {
        run: _plan(config, run, plan.words)
        for number in range(plan.seeds)
        for labels in dict.fromkeys(plan.labels)
        for run in [_name(plan.out, arm, first + number, labels) for arm in arms]
    }
    results = {}
    for run, job in jobs.items():
        known = _finished(run, job)
        on_run(run, known is not None)
        results[run] = known or _execute(run, job)
    order = sorted(jobs, key=lambda run: (run.labels is None, run.labels or 0, arms.index(run.arm), run.seed))
    return [results[run] for run in order]


def _name(out: Path, arm: str, seed: int, labels: Budget) -> Run:
    folder = f"{arm}_seed{seed}" if labels is None else f"{arm}_{labels}labels_seed{seed}"
    return Run(arm, seed, (out / "runs" / folder).resolve(), labels)


def _plan(config: Mapping[str, Any], run: Run, words: Sequence[str]) -> Job:
    made, ids = make_arm(config, run.arm, run.seed, run.folder), None
    if run.labels is not None:
        ids = choose(made, run.labels, run.seed)
        limit_labels(made, ids, run.folder / SPLIT)
    return Job(yaml.safe_dump(made, sort_keys=False), ids, words)


def read_config(path: Path) -> dict[str, Any]:
    """Return a configuration.

    Raises:
        ConfigError: The file is not there or is no YAML mapping.
    """
    if not path.is_file():
        raise ConfigError(f"There is no configuration {path}.")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {one_line(error)}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds no configuration.")
    return config


def _finished(run: Run, job: Job) -> dict[str, Any] | None:
    path = run.folder / RESULT
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # damaged: run again
        return None
    return stored if isinstance(stored, dict) and stored.get("settings") == job.digest() else None


def _execute(run: Run, job: Job) -> dict[str, Any]:
    """Run in a new process and a new folder and return the result."""
    _empty(run.folder)
    config, target = run.folder / CONFIG, run.folder / "measured.json"
    write_text(config, job.text)
    if job.ids is not None:
        write_lines(run.folder / SPLIT, job.ids)
    command = [sys.executable, "-m", "terramind_plugin.evaluate.run", config, target, run.arm, run.seed, *job.words]
    with open(run.folder / LOG, "w", encoding="utf-8") as log:
        status = subprocess.run([*map(str, command)], stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        lines = (run.folder / LOG).read_text(errors="replace").strip().splitlines()
        reason = lines[-1:] if status == 2 else lines[-LAST_LINES:]
        raise DataError(f"{run} failed. {run.folder / LOG} ends with:\n" + "\n".join(reason))
    result = json.loads(target.read_text()) | {"settings": job.digest(), "labels": run.labels}
    write_text(run.folder / RESULT, json.dumps(result, indent=1) + "\n")
    target.unlink()
    return result


def _empty(folder: Path) -> None:
    """Make a folder for a run, without what a run that was broken off has left: a memo must start empty.

    Raises:
        ConfigError: The folder holds something else.
    """
    if folder.exists():
        if any(folder.iterdir()) and not (folder / CONFIG).is_file():
            raise ConfigError(f"{folder} is not empty and not of a comparison. Choose another --out.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
