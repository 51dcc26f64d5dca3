"""The same training in several arms and from several seeds, one run after the other."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from terramind_plugin.errors import ConfigError, DataError, one_line
from terramind_plugin.evaluate.arms import check_arms, make_arm

RESULT, LOG, CONFIG = "result.json", "log.txt", "config.yaml"
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


@dataclass(frozen=True)
class Run:
    """One arm from one seed."""

    arm: str
    seed: int
    folder: Path


def compare(plan: Comparison, on_run: Callable[[Run, bool], None] = lambda run, known: None) -> list[dict[str, Any]]:
    """Return the result of each run, in the order of the arms.

    Runs that an earlier call finished with the same settings are not repeated.

    Args:
        plan: What to run.
        on_run: Called before each run, and told whether its result is there already.

    Raises:
        ConfigError: The configuration cannot be read or has no TerraMind backbone, an arm is unknown, or a run's folder
            holds something else.
        DataError: A run failed; the message shows the end of its log.
    """
    arms = check_arms(plan.arms)
    if plan.seeds < 1:
        raise ConfigError(f"seeds must be at least 1, got {plan.seeds}.")
    config = read_config(plan.config)
    first = int(config.get("seed_everything") or 0)
    # One seed after the other: a machine that slows down slows all arms.
    runs = [
        Run(arm, first + number, (plan.out / "runs" / f"{arm}_seed{first + number}").resolve())
        for number in range(plan.seeds)
        for arm in arms
    ]
    texts = {run: yaml.safe_dump(make_arm(config, run.arm, run.seed, run.folder), sort_keys=False) for run in runs}
    results = {}
    for run in runs:
        known = _finished(run, texts[run], plan.words)
        on_run(run, known is not None)
        results[run] = known or _execute(run, texts[run], plan.words)
    return [results[run] for run in sorted(runs, key=lambda run: (arms.index(run.arm), run.seed))]


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


def _digest(text: str, words: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([text, *words]).encode()).hexdigest()


def _finished(run: Run, text: str, words: Sequence[str]) -> dict[str, Any] | None:
    path = run.folder / RESULT
    if not path.is_file():
        return None
    stored = json.loads(path.read_text())
    return stored if stored.get("settings") == _digest(text, words) else None


def _execute(run: Run, text: str, words: Sequence[str]) -> dict[str, Any]:
    """Run in a new process and a new folder and return the result."""
    _empty(run.folder)
    config, target = run.folder / CONFIG, run.folder / "measured.json"
    config.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "terramind_plugin.evaluate.run", config, target, run.arm, run.seed, *words]
    with open(run.folder / LOG, "w", encoding="utf-8") as log:
        status = subprocess.run([*map(str, command)], stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        lines = (run.folder / LOG).read_text(errors="replace").strip().splitlines()
        reason = lines[-1:] if status == 2 else lines[-LAST_LINES:]
        raise DataError(f"{run.arm}, seed {run.seed} failed. {run.folder / LOG} ends with:\n" + "\n".join(reason))
    result = json.loads(target.read_text()) | {"settings": _digest(text, words)}
    target.write_text(json.dumps(result, indent=1) + "\n")
    target.replace(run.folder / RESULT)
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
