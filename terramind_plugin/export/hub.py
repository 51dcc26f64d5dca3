"""A model as a folder for a repository on the Hugging Face hub: config.json, weights, and a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from terramind_plugin._version import __version__
from terramind_plugin.errors import ConfigError, WeightsError
from terramind_plugin.export.card import write_card
from terramind_plugin.export.subject import Subject
from terramind_plugin.inference.options import ModelArguments
from terramind_plugin.model.checkpoints import BATCH_STATISTICS
from terramind_plugin.model.repository import CONFIG_FILE, HUB, KEY, is_location
from terramind_plugin.system.files import write_bytes, write_text
from terramind_plugin.system.process import refuse_inputs

WEIGHTS = "model.safetensors"
CARD = "README.md"
ARCHITECTURE = "Terratorch"
"""Name of vLLM's class for models of TerraTorch."""
SERVED_DATA = "terramind_plugin.ServedDataModule"
"""Data module that reads the files of one request to a server."""


def check_place(out: Path, kind: str, source: ModelArguments, config: Path | None) -> None:
    """Raise a ConfigError if an export would overwrite its inputs, or files that terramind export has not written.

    Args:
        out: File or folder to write.
        kind: Format.
        source: Model.
        config: Configuration of the fine-tuning.
    """
    named = [] if source.model.startswith(HUB) or not is_location(source.model) else [Path(source.model).expanduser()]
    inputs = [one for path in [*named, source.ckpt_path, config] if path is not None for one in _files(path)]
    refuse_inputs([out] if kind != "hub" else [out / name for name in (CONFIG_FILE, WEIGHTS, CARD)], inputs)
    if kind == "hub" and (out / CONFIG_FILE).is_file():
        try:
            content = json.loads((out / CONFIG_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None
        if not isinstance(content, dict) or "terramind_plugin" not in content:
            raise ConfigError(
                f"{out / CONFIG_FILE} was not written by terramind export and is kept. Choose another folder."
            )


def write_folder(subject: Subject, out: Path, *, dtype: str = "float32") -> list[Path]:
    """Write config.json, the weights and a model card, and return their paths.

    The config.json is written last: a folder without it is not complete.

    Args:
        subject: Model as trained, with norms as layers, so that TerraTorch's factory builds the same model.
        out: Folder to write.
        dtype: Type of the weights: float32, bfloat16 or float16.

    Raises:
        ConfigError: The subject lacks inputs of the model.
        WeightsError: A weight is not finite in that type.
    """
    listed = subject.settings.get("data", {}).get("modalities", [])
    names = [one if isinstance(one, str) else next(iter(one)) for one in listed]
    needed = [name for name in names if name != subject.positions]
    if len(needed) > len(subject.inputs):
        raise ConfigError(
            f"A folder for the hub holds the whole model, with its inputs {', '.join(needed)}. Leave --modalities out."
        )
    tensors = _weights(subject.network, dtype)
    settings = make_settings(subject)
    (out / CONFIG_FILE).unlink(missing_ok=True)
    metadata = {"format": "pt", "terramind_plugin": __version__}
    write_bytes(out / WEIGHTS, save(tensors, metadata))
    write_text(out / CARD, write_card(subject))
    described = {"version": __version__, **subject.describe()}
    content = {"architectures": [ARCHITECTURE], "num_classes": 0, KEY: settings, "terramind_plugin": described}
    write_text(out / CONFIG_FILE, json.dumps(content, indent=2) + "\n")
    return [out / CONFIG_FILE, out / WEIGHTS, out / CARD]


def make_settings(subject: Subject) -> dict[str, Any]:
    """Return the content of `pretrained_cfg` (inputs, model and data), as TerraTorch's vLLM plugin reads it."""
    fields = {one.name: {"type": "torch.Tensor", "shape": list(one.shape)} for one in subject.inputs}
    settings: dict[str, Any] = {"input": {"data": fields}, "model": subject.settings["model"]}
    if subject.kind != "features":
        side = subject.inputs[0].shape[-1]
        init_args = settings["model"]["init_args"]
        # Tiles of the size of the training images; TerraTorch's default is 512 pixels.
        init_args.setdefault(
            "tiled_inference_parameters", {"crop": side, "stride": side - side // 8, "delta": side // 32}
        )
        data = {"num_workers": 0, "batch_size": 1, **subject.settings["data"]}
        settings["data"] = {"class_path": SERVED_DATA, "init_args": data}
    return settings


def _weights(network: nn.Module, dtype: str) -> dict[str, Tensor]:
    """Return the weights: shared ones once, and without tables that each model computes itself."""
    parameters = dict(network.named_parameters())  # vLLM loads only these and the statistics of batch norms
    tensors: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        constant = name not in parameters and not name.endswith(BATCH_STATISTICS)
        if constant and (name.endswith("pos_emb") or not value.any()):
            continue
        kept = value.detach().to(getattr(torch, dtype)) if value.is_floating_point() else value.detach()
        if not kept.isfinite().all():
            raise WeightsError(f"{name} is not finite as {dtype}. Choose --dtype float32.")
        tensors[name] = kept.contiguous().clone()
    return tensors


def _files(path: Path) -> list[Path]:
    return [one for one in path.rglob("*") if one.is_file()] if path.is_dir() else [path]
