"""Fine-tuned tasks that contain their configuration: a repository on the hub, an exported folder, or a checkpoint."""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terratorch.datamodules import GenericMultiModalDataModule
from torch import Tensor, nn

from terramind_plugin.data.datamodule import TerraMindDataModule
from terramind_plugin.errors import ConfigError
from terramind_plugin.integration.lightning_cli import TerraMindCLI
from terramind_plugin.model.checkpoints import load_into, read_file, settings_of, with_tables
from terramind_plugin.model.repository import (
    CONFIG_FILE,
    HUB,
    KEY,
    fetch_weights,
    is_location,
    read_pretrained_cfg,
    settings_part,
)
from terramind_plugin.system.files import write_text

logger = logging.getLogger("terramind_plugin")

PREFIX = "model."
"""Prefix of the names of a task's weights in Lightning's checkpoints; weights on the hub have no prefix."""
OWN_DATA = "terramind_plugin.TerraMindDataModule"
QUIET = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False}
"""Settings of a trainer that is not used for training."""


@dataclass(frozen=True)
class TaskFiles:
    """Files of a fine-tuned task."""

    config: Path
    """Configuration of task and data, as for `terramind fit`."""
    weights: Path
    name: str
    """Name of the weights, for the tags of results."""
    size: int | None = None
    """Height and width in pixels of the model's images; None if unknown."""


@contextmanager
def task_files(model: str | None, config: Path | None, ckpt_path: Path | None) -> Iterator[TaskFiles]:
    """Yield the files of a task. A configuration that is made from the weights exists only in the context.

    Args:
        model: Model with its configuration: 'hub:ORG/NAME', an exported folder, or a checkpoint of `terramind fit`.
        config: Configuration of the fine-tuning, used instead of `model`.
        ckpt_path: Checkpoint for that configuration, used instead of `model`.

    Raises:
        ConfigError: Weights or settings are missing or named twice.
        WeightsError: The weights are missing or cannot be read.
    """
    if model is not None and ckpt_path is not None:
        raise ConfigError(f"Both --model {model} and --ckpt_path {ckpt_path} name weights. Give one of them.")
    if model is None and (config is None or ckpt_path is None):
        raise ConfigError(
            "Give a fine-tuned model: --config YAML and --ckpt_path FILE as for terramind test, or --model with a "
            f"checkpoint, an exported folder or {HUB}ORG/NAME."
        )
    if config is not None and not config.is_file():
        raise ConfigError(f"There is no configuration {config}. Check -c.")
    if model is not None and not is_location(model):
        raise ConfigError(
            f"--model {model} is not a fine-tuned model: give a checkpoint of terramind fit, an exported folder, or "
            f"{HUB}ORG/NAME."
        )
    weights = fetch_weights(model) if model is not None else Path(str(ckpt_path))
    name = weights.name if model is None or not model.startswith(HUB) else f"{model} {_revision(weights)}".rstrip()
    if config is not None:
        yield TaskFiles(config, weights, name)
        return
    settings, size = describe_task(weights)
    with tempfile.TemporaryDirectory(prefix="terramind-") as folder:
        path = Path(folder) / CONFIG_FILE
        write_text(path, json.dumps({"trainer": QUIET, **settings}))
        yield TaskFiles(path, weights, name, size)


def describe_task(weights: Path) -> tuple[dict[str, Any], int | None]:
    """Return the configuration of a fine-tuned task, as far as it is in the weights or in the config.json beside them.

    Args:
        weights: File of weights.

    Returns:
        The parts 'model' and 'data', and the height and width of the images in pixels if they are known.

    Raises:
        ConfigError: There are no settings of a task.
        WeightsError: The file or its settings cannot be read.
    """
    content, _ = read_file(weights)
    stored = settings_of(content, weights)
    if not stored.get("model_args"):
        raise ConfigError(
            f"{weights} does not contain its task: it has no model_args, and there is no {CONFIG_FILE} with {KEY} "
            "beside it. Give the configuration of the fine-tuning as well: --config YAML."
        )
    kind = str(stored.get("_class_path") or "terratorch.tasks.SemanticSegmentationTask")
    init_args = {key: value for key, value in stored.items() if not key.startswith("_") and value is not None}
    described = read_pretrained_cfg(weights.parent)
    data, size = settings_part(described, "data", weights.parent), _image_size(described)
    if not data:
        kept = content.get("TerraMindDataModule")
        data = _own_data(stored["model_args"], kept if isinstance(kept, Mapping) else {}, weights)
    elif not _importable(data["class_path"]):
        logger.warning(
            "%s: its data module %s is not installed. %s is used with the same arguments; bands and statistics that "
            "they do not give are those of the pre-training data.",
            weights,
            data["class_path"],
            OWN_DATA,
        )
        data = _own_data(stored["model_args"], data["init_args"], weights)
    return {"model": {"class_path": kind, "init_args": init_args}, "data": data}, size


def load_task(cli: TerraMindCLI, weights: Path) -> None:
    """Copy the weights that a command line has read into its task.

    Args:
        cli: Command line made with `ckpt_path=weights`.
        weights: File of weights, whose names have the prefix 'model.' or none.

    Raises:
        WeightsError: The weights do not fit.
    """
    content, tensors = cli.take_checkpoint()
    cli.model.on_load_checkpoint(dict(content))
    complete = name_as_task(cli.model, tensors)
    load_into(cli.model, complete, weights, "the configured task", strict=cli.model.strict_loading)


def name_as_task(task: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by the names of a task, with tables that a repository leaves out taken from the task."""
    if any(name.startswith(PREFIX) for name in tensors):
        return dict(tensors)
    return with_tables(task, {f"{PREFIX}{name}": value for name, value in tensors.items()})


def _own_data(model_args: Mapping[str, Any], known: Mapping[str, Any], weights: Path) -> dict[str, Any]:
    """Return the settings of our data module for a model, from the known properties of its data."""
    modalities = known.get("modalities") or model_args.get("backbone_modalities")
    if isinstance(modalities, Mapping):
        modalities = list(modalities)
    if not modalities:
        raise ConfigError(f"{weights} does not name its modalities. Give the configuration as well: --config YAML.")
    taken = {name for kind in (TerraMindDataModule, GenericMultiModalDataModule) for name in _arguments(kind)}
    paths = ("_root", "_split", "_transform", "_grep")
    kept = {
        name: value
        for name, value in known.items()
        if name in taken and value is not None and not any(part in name for part in paths)
    }
    return {
        "class_path": OWN_DATA,
        "init_args": {"num_workers": 0, **kept, "batch_size": 1, "modalities": list(modalities)},
    }


def _arguments(kind: type) -> list[str]:
    return list(inspect.signature(kind).parameters)


def _importable(class_path: str) -> bool:
    module, _, name = class_path.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), name)
    except (ImportError, ValueError):
        return False


def _image_size(described: Mapping[str, Any]) -> int | None:
    """Return the smallest side of the inputs that a config.json describes; None if it describes none."""
    inputs = described.get("input")
    fields = inputs.get("data") if isinstance(inputs, Mapping) else None
    shapes = [one.get("shape") for one in fields.values() if isinstance(one, Mapping)] if fields else []
    sides = [side for shape in shapes if isinstance(shape, list) for side in shape[-2:] if isinstance(side, int)]
    return min(sides, default=None)


def _revision(weights: Path) -> str:
    """Return the first digits of the commit of a file in the hub's cache; empty for other files."""
    parts = weights.parts
    return parts[parts.index("snapshots") + 1][:12] if "snapshots" in parts[:-1] else ""
