"""The arms of a comparison: one configuration, changed to several ways of fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.model.variants import VARIANTS

ARMS = {
    "plain": "the whole backbone is fine-tuned",
    "tim": "it thinks first",
    "tim-cache": "it thinks first, and generated tokens are cached",
    "lora": "adapters in a frozen backbone",
    "frozen": "only neck and decoder train",
    "frozen-cache": "the same, and the backbone's features are cached",
    "oracle": "it is given the truth in place of a thought",
}
"""What each arm is, in the order of the report."""
DEFAULT_ARMS = tuple(name for name in ARMS if name != "oracle")
"""Those that need no more data than any training."""

CACHE = "cache"
"""Folder of a run's caches: each run starts with empty ones."""
THOUGHT = "LULC"
"""What a thinking model imagines unless the configuration says otherwise."""
LORA = {"rank": 16}
"""Adapters of the arm 'lora', unless the configuration has some."""


def check_arms(names: Sequence[str]) -> list[str]:
    """Return the arms, each once.

    Raises:
        ConfigError: There are none, or one is unknown.
    """
    for name in names:
        if name not in ARMS:
            raise ConfigError(f"Unknown arm '{name}'.{suggest(name, ARMS)} Known: {', '.join(ARMS)}.")
    if not names:
        raise ConfigError(f"Name at least one arm: {', '.join(ARMS)}.")
    return list(dict.fromkeys(names))


def make_arm(config: Mapping[str, Any], arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return the configuration of one run; the given one stays as it is.

    Args:
        config: A configuration as `terratorch fit` takes it, with a TerraMind backbone, thinking or not.
        arm: Key of `ARMS`.
        seed: Of the run.
        folder: Where the run writes to.

    Raises:
        ConfigError: The configuration has no TerraMind backbone, or the arm 'oracle' finds no truth in it.
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
    thinks = arm.startswith("tim") or arm == "oracle"
    _give(made.get("data", {}).get("init_args", {}), arguments, oracle=arm == "oracle")
    arguments["backbone"] = f"{size}_tim" if thinks else size
    for key in list(arguments):
        of_another_arm = key.startswith("backbone_tim_") and not thinks
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


def _give(data: dict[str, Any], arguments: dict[str, Any], *, oracle: bool) -> None:
    """Let data and model agree on what is given in place of thoughts: all of it with an oracle, nothing without."""
    before = arguments.pop("backbone_tim_observed", None) or []
    if before:
        data["modalities"] = [name for name in data.get("modalities", []) if name not in before]
    if not oracle:
        arguments.pop("backbone_tim_tokenizer_ckpt_paths", None)
        return
    truth = list(arguments.get("backbone_tim_modalities") or [THOUGHT])
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
    """Let logs and checkpoints of a run end in its own folder."""
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
