"""Merging of LoRA adapters into the weights of a checkpoint."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terramind_plugin.backbones.lora import BASE, merge_lora
from terramind_plugin.builders import build_by_name
from terramind_plugin.errors import ConfigError, WeightsError
from terramind_plugin.model.checkpoints import (
    OF_TERRATORCH,
    backbone_settings,
    load_into,
    model_args_of,
    read_file,
    settings_of,
)
from terramind_plugin.system.files import read_yaml, write_bytes
from terramind_plugin.system.process import refuse_inputs

OF_THE_RUN = ("optimizer_states", "lr_schedulers", "callbacks")
"""Parts of a Lightning checkpoint that belong to the training of the adapters."""


def merge_checkpoint(path: Path, out: Path, *, base: Path | None = None, config: Path | None = None) -> int:
    """Write a checkpoint with the adapters added to the weights, and return the number of adapters.

    The file belongs to the model without `backbone_lora`: it loads with --ckpt_path and as backbone_ckpt_path, here and
    in TerraTorch's TerraMind. It holds no optimiser state, so training cannot be resumed from it.

    Args:
        path: Checkpoint made with `backbone_lora`.
        out: File to write.
        base: File of the base weights; None for the file in the settings.
        config: YAML of the run; None for the settings in the checkpoint.

    Raises:
        ConfigError: The settings are missing or wrong, or the file to write is an input.
        WeightsError: The file holds no adapters, or the base weights are missing or not those of the adapters.
    """
    refuse_inputs([out], [path, base, config])
    content, tensors = read_file(path)
    marks = [name for name in tensors if name == BASE or name.endswith(f".{BASE}")]
    if len(marks) != 1:
        raise WeightsError(
            f"{path} holds no adapters made with backbone_lora, so there is nothing to merge."
            + (" Those of peft_config come with their weights." if any(".lora_A." in name for name in tensors) else "")
        )
    prefix = marks[0].removesuffix(BASE)
    settings = _settings(content, path) if config is None else _read_config(config)
    model = _build(settings, path if config is None else config, base)
    _load(model, {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}, path)
    count = merge_lora(model)
    plain = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    others = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
    kept = {key: value for key, value in content.items() if "state_dict" in content and key not in OF_THE_RUN}
    _write(out, {**kept, **_plain_settings(content, path), "state_dict": {**plain, **others}})
    return count


def _build(model_args: Mapping[str, Any], source: Path, base: Path | None) -> Any:
    """Return the backbone with adapters that a model's settings describe."""
    settings = backbone_settings(model_args)
    kwargs = {key: value for key, value in settings.items() if not key.startswith(OF_TERRATORCH)}
    if not kwargs.get("lora"):
        raise ConfigError(
            f"The settings in {source} have no backbone_lora: give the configuration of the run that made the adapters."
        )
    if base is not None:
        kwargs |= {"ckpt_path": str(base), "pretrained": False}
    return build_by_name(str(model_args.get("backbone")), **kwargs)


def _load(model: Any, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load adapters into a backbone.

    Raises:
        WeightsError: The adapters belong to another backbone.
    """
    try:
        load_into(model, tensors, path, "the settings")
    except WeightsError as error:
        raise WeightsError(f"{error} Name the weights for which the adapters were made with --base FILE.") from error


def _settings(content: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    model_args = model_args_of(content, path)
    if not model_args:
        raise ConfigError(f"{path} does not describe its model: give the run's configuration with --config.")
    return model_args


def _read_config(path: Path) -> Mapping[str, Any]:
    settings = read_yaml(path)
    for key in ("model", "init_args", "model_args"):
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{path} has no model.init_args.model_args. Give the configuration of the run.")
    return settings


def _plain_settings(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings of the merged model, without adapters and without weights to download."""
    model_args = dict(model_args_of(content, path))
    if not model_args:
        return {}

    def plain(arguments: Mapping[str, Any], start: str) -> dict[str, Any]:
        gone = (f"{start}lora", f"{start}ckpt_path")
        return {key: value for key, value in arguments.items() if key not in gone} | {f"{start}pretrained": False}

    if model_args.get("backbone_kwargs"):
        model_args["backbone_kwargs"] = plain(model_args["backbone_kwargs"], "")
    else:
        model_args = plain(model_args, "backbone_")
    return {"hyper_parameters": {**settings_of(content, path), "model_args": model_args}}


def _write(out: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint; the file appears only when it is complete."""
    # In memory, since on a full disk torch.save reports a wrong position.
    checkpoint = io.BytesIO()
    torch.save(dict(content), checkpoint)
    try:
        write_bytes(out, checkpoint.getbuffer())
    except OSError as error:
        raise ConfigError(f"Cannot write {out}: {error.strerror or error}. Choose another --out.") from error
