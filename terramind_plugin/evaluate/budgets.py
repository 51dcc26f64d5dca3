"""Training with some of the labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from terramind_plugin.errors import ConfigError

Budget = int | None
"""Number of labelled training samples; None for all."""
ALL = "all"


def read_budgets(text: str) -> list[Budget]:
    """Return the numbers in e.g. '8,32,all', ascending, each once.

    Raises:
        ConfigError: One is neither a positive number nor 'all'.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word != ALL and not (word.isdecimal() and int(word)):
            raise ConfigError(f"labels must be positive numbers or '{ALL}', separated by commas; got '{word}'.")
    if not words:
        raise ConfigError(f"Name at least one number of labels, or '{ALL}'.")
    numbers: list[Budget] = [*sorted({int(word) for word in words if word != ALL})]
    return numbers + [None] * (ALL in words)


def choose(config: Mapping[str, Any], count: int, seed: int) -> list[str]:
    """Return ids of training samples: the first ones of a shuffle, so that a larger number holds a smaller one.

    Args:
        config: A configuration with a `TerraMindDataModule` and a split file for training.
        count: How many.
        seed: Of the shuffle. The arms of a seed get the same samples.

    Raises:
        ConfigError: There are fewer, or the configuration has no such file.
        DataError: The file cannot be read.
    """
    import numpy as np

    ids = _read_ids(config)
    if count > len(ids):
        raise ConfigError(f"{count} labels are asked for, the training split has {len(ids)}. Use 'all'.")
    return [ids[index] for index in np.random.default_rng(seed).permutation(len(ids))[:count]]


def limit_labels(config: dict[str, Any], ids: list[str], path: Path) -> None:
    """Let a configuration train on some samples, in place.

    An epoch shows them so often that it has as many steps as one with all samples.

    Args:
        config: As in `choose`.
        ids: The samples.
        path: Split file that will hold them.
    """
    data = config["data"]["init_args"]
    data["train_repeats"] = int(data.get("train_repeats") or 1) * max(1, round(len(_read_ids(config)) / len(ids)))
    data["train_split"] = str(path)


def _read_ids(config: Mapping[str, Any]) -> list[str]:
    from terramind_plugin.samples.layout import read_split

    data = config.get("data") or {}
    split = (data.get("init_args") or {}).get("train_split")
    if not str(data.get("class_path")).endswith("TerraMindDataModule") or split is None:
        raise ConfigError(
            "A number of labels needs data.class_path: terramind_plugin.TerraMindDataModule and "
            f"data.init_args.train_split, got {data.get('class_path')} and {split}."
        )
    return read_split(split)
