"""The arms of a comparison: variants of one configuration for ways of fine-tuning and numbers of labels."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.samples.layout import read_split

Budget = int | None
"""Number of labelled training samples; None for all."""
ALL = "all"

ARMS = {
    "plain": "the whole backbone is fine-tuned",
    "tim": "it generates a modality first",
    "tim-cache": "it generates a modality first, and the generated tokens are cached",
    "lora": "adapters in a frozen backbone",
    "frozen": "only neck and decoder train",
    "frozen-cache": "only neck and decoder train, and the backbone's features are cached",
    "oracle": "it gets the true modality instead of a generated one",
}
"""Meaning of each arm, in the order of the report."""
DEFAULT_ARMS = tuple(name for name in ARMS if name != "oracle")
"""Arms that need no further modality in the data."""

CACHE = "cache"
"""Folder of a run's caches, which are empty at its start."""
GENERATED = "LULC"
"""Modality that a TiM backbone generates by default."""
LORA = {"rank": 16}
"""Adapters of the arm 'lora', for a configuration without adapters."""


def check_arms(names: Sequence[str]) -> list[str]:
    """Return the names of arms, each once.

    Raises:
        ConfigError: There is no name, or a name is unknown.
    """
    for name in names:
        if name not in ARMS:
            raise ConfigError(f"Unknown arm '{name}'.{suggest(name, ARMS)} Known: {', '.join(ARMS)}.")
    if not names:
        raise ConfigError(f"Name at least one arm: {', '.join(ARMS)}.")
    return list(dict.fromkeys(names))


def make_arm(config: Mapping[str, Any], arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return the configuration of one run; `config` is not changed.

    Args:
        config: Configuration of `terratorch fit` with a TerraMind backbone, with or without TiM.
        arm: Key of `ARMS`.
        seed: Seed of the run.
        folder: Folder of the run.

    Raises:
        ConfigError: The configuration has no TerraMind backbone, or lacks the true modality of the arm 'oracle'.
    """
    made = copy.deepcopy(dict(config))
    task = made.get("model", {}).get("init_args", {})
    arguments = task.get("model_args", {})
    size = str(arguments.get("backbone", "")).removesuffix("_tim")
    if size not in VARIANTS:
        raise ConfigError(
            f"compare needs model.init_args.model_args.backbone to be one of {', '.join(VARIANTS)}, "
            f"got '{arguments.get('backbone')}'."
        )
    generates = arm.startswith("tim") or arm == "oracle"
    _set_observed(made.get("data", {}).get("init_args", {}), arguments, oracle=arm == "oracle")
    arguments["backbone"] = f"{size}_tim" if generates else size
    for key in list(arguments):
        of_another_arm = key.startswith("backbone_tim_") and not generates
        if of_another_arm or key.endswith(("_cache", "_memo")) or (key == "backbone_lora" and arm != "lora"):
            del arguments[key]
    task["freeze_backbone"] = arm.startswith("frozen")
    if arm == "lora":
        arguments.setdefault("backbone_lora", dict(LORA))
    if arm == "tim-cache":
        arguments["backbone_tim_cache"] = str(folder / CACHE)
    if arm == "frozen-cache":
        arguments["backbone_feature_cache"] = str(folder / CACHE)
    made["seed_everything"] = seed
    _write_to(made.setdefault("trainer", {}), folder)
    return made


def _set_observed(data: dict[str, Any], arguments: dict[str, Any], *, oracle: bool) -> None:
    """Set the same observed modalities in data and model: those of the oracle, or none."""
    before = arguments.pop("backbone_tim_observed", None) or []
    if before:
        data["modalities"] = [name for name in data.get("modalities", []) if name not in before]
    if not oracle:
        arguments.pop("backbone_tim_tokenizer_ckpt_paths", None)
        return
    truth = list(arguments.get("backbone_tim_modalities") or [GENERATED])
    roots = [key for key in data if key.endswith("data_root") and isinstance(data[key], Mapping)]
    for name in truth:
        if not roots or any(name not in data[key] for key in roots):
            raise ConfigError(
                f"The arm 'oracle' needs true {name}: name its folder in data.init_args.{(roots or ['data_root'])[0]}: "
                f"{{{name}: FOLDER}} and its files in image_grep: {{{name}: PATTERN}}. The other arms do not read them."
            )
    data["modalities"] = [*data.get("modalities", []), *truth]
    arguments["backbone_tim_observed"] = truth


def _write_to(trainer: dict[str, Any], folder: Path) -> None:
    """Make a run write its logs and checkpoints to its own folder."""
    trainer["default_root_dir"] = str(folder)
    entries = [*(trainer.get("callbacks") or [])]
    loggers = trainer.get("logger")
    entries += loggers if isinstance(loggers, list) else [loggers]
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        for key in ("dirpath", "save_dir"):
            if key in entry.get("init_args", {}):
                entry["init_args"][key] = str(folder / Path(entry["init_args"][key]).name)


def read_budgets(text: str) -> list[Budget]:
    """Return the numbers of labels in a text such as '8,32,all', ascending, each once.

    Raises:
        ConfigError: A word is neither a positive number nor 'all'.
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
    """Return the first ids of the shuffled training samples, so that a larger number of ids contains a smaller one.

    Args:
        config: Configuration with a `TerraMindDataModule` and a split file for training.
        count: Number of ids.
        seed: Seed of the shuffle. The arms of a seed get the same samples.

    Raises:
        ConfigError: There are fewer ids, or the configuration has no such file.
        DataError: The file cannot be read.
    """
    ids = _read_ids(config)
    if count > len(ids):
        raise ConfigError(f"{count} labels are requested, but the training split has {len(ids)}. Use 'all'.")
    import numpy as np  # here, so that --help does not import it

    return [ids[index] for index in np.random.default_rng(seed).permutation(len(ids))[:count]]


def limit_labels(config: dict[str, Any], ids: list[str], path: Path) -> None:
    """Change a configuration in place so that it trains on some samples only.

    The samples are repeated, so that an epoch has about as many steps as one of all samples.

    Args:
        config: As in `choose`.
        ids: Ids of the samples.
        path: Split file that will hold the ids.
    """
    data = config["data"]["init_args"]
    data["train_repeats"] = int(data.get("train_repeats") or 1) * max(1, round(len(_read_ids(config)) / len(ids)))
    data["train_split"] = str(path)


def _read_ids(config: Mapping[str, Any]) -> list[str]:
    data = config.get("data") or {}
    split = (data.get("init_args") or {}).get("train_split")
    if not str(data.get("class_path")).endswith("TerraMindDataModule") or split is None:
        raise ConfigError(
            "A number of labels needs data.class_path: terramind_plugin.TerraMindDataModule and "
            f"data.init_args.train_split, got {data.get('class_path')} and {split}."
        )
    return read_split(split)
