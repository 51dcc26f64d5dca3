"""The model of `terramind embed`: a backbone of any origin, and what its inputs look like on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from terramind_plugin.backbones.encoder import TerraMindBackbone
from terramind_plugin.backbones.lora import BASE
from terramind_plugin.backbones.merge import OF_CACHES, OF_TERRATORCH
from terramind_plugin.builders import build_backbone, build_by_name
from terramind_plugin.errors import ConfigError, WeightsError
from terramind_plugin.inference.settings import loading_weights
from terramind_plugin.model.checkpoints import load_into, model_args_of, read_file, with_tables
from terramind_plugin.model.modalities import find, statistics
from terramind_plugin.model.standardisation import Standardisation
from terramind_plugin.model.variants import Variant
from terramind_plugin.model.weights import ANCHOR
from terramind_plugin.raster.reader import Expected
from terramind_plugin.raster.writer import Layer

logger = logging.getLogger("terramind_plugin")

MAPS = ("mean", "max", "concat")
"""Ways of merging modalities that give one feature map."""
TIMES = "use_temporal"
"""Argument of backbones for several dates, which TerraTorch reads."""


class Embedder(nn.Module):
    """A backbone as the model of a scene: a vector for each patch.

    Args:
        backbone: Backbone with the weights asked for.
        inputs: Standardisation of each modality.
        layer: Position of the layer among those that the backbone returns.
    """

    def __init__(self, backbone: TerraMindBackbone, inputs: Mapping[str, Standardisation], layer: int) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.inputs = nn.ModuleDict(inputs)
        self.layer = layer
        self.patch = backbone.patch_size
        self.channels = list(backbone.out_channels)[layer]
        names = tuple(f"dimension_{number}" for number in range(self.channels))
        self.layers = (Layer("embedding", "float32", names, "", float("nan")),)

    def forward(self, images: Mapping[str, Tensor], corners: Sequence[tuple[int, int]]) -> Tensor:
        """Return vectors [B, dimensions, h / patch, w / patch]."""
        features = list(self.backbone({name: scale(images[name]) for name, scale in self.inputs.items()}))
        tokens: Tensor = features[self.layer]
        height, width = next(iter(images.values())).shape[-2:]
        return tokens.transpose(1, 2).reshape(len(tokens), -1, height // self.patch, width // self.patch)

    def finish(self, blended: Tensor) -> list[Tensor]:
        """Return the vectors [dimensions, rows, W], NaN in all dimensions where one is not finite."""
        return [blended.masked_fill(~blended.isfinite().all(dim=0), torch.nan)]


def build_embedder(
    variant: Variant,
    ckpt_path: Path | None,
    modalities: Sequence[str],
    *,
    pretrained: bool = True,
    bands: Mapping[str, Sequence[str]] | None = None,
    layer: int = -1,
) -> tuple[Embedder, dict[str, Expected]]:
    """Return the model, and what the files of each modality hold.

    A checkpoint of a fine-tuned task says itself which bands, statistics and adapters its backbone has.

    Args:
        variant: Architecture.
        ckpt_path: Weights; None for published or random ones.
        modalities: Modalities that there are files of.
        pretrained: Load the published weights if there is no `ckpt_path`.
        bands: Bands of a modality in the order of the model's input, where it has not all of them.
        layer: Layer of the encoder, from 0 on, or from -1 backwards.

    Raises:
        ConfigError: An argument is not possible, or the checkpoint's model has other modalities or several dates.
        WeightsError: The weights are not there or do not fit.
    """
    if not -variant.depth <= layer < variant.depth:
        raise ConfigError(
            f"layer must be from 0 to {variant.depth - 1}, or from -1, the last one, to -{variant.depth}; got {layer}."
        )
    content, tensors = ({}, {}) if ckpt_path is None else read_file(ckpt_path)
    arguments = _arguments_of(content, ckpt_path)
    if not arguments:
        with loading_weights():
            backbone = build_backbone(
                variant.name, list(modalities), bands=bands, pretrained=pretrained, ckpt_path=ckpt_path,
                out_indices=[layer],
            )  # fmt: skip
        return _with_inputs(backbone, modalities, bands or {}, {}, -1)
    assert ckpt_path is not None
    if bands:
        raise ConfigError(f"{ckpt_path} says which bands it was trained with: {_shown(arguments)}. Leave --bands out.")
    backbone, position = _build_trained(arguments, tensors, ckpt_path, layer)
    unknown = [name for name in modalities if name not in backbone.modalities]
    if unknown:
        raise ConfigError(
            f"{ckpt_path} was trained with {', '.join(backbone.modalities)}, not with {unknown[0]}: name those with "
            "--modality or --scene NAME=FILE."
        )
    missing = [spec.name for spec in backbone.observed if spec.name not in modalities]
    if missing:
        logger.warning("%s was trained with %s, too, which is missing here.", ckpt_path, ", ".join(missing))
    return _with_inputs(backbone, modalities, arguments.get("bands") or {}, _statistics_of(content), position)


def _shown(arguments: Mapping[str, Any]) -> str:
    bands = arguments.get("bands") or {}
    return "; ".join(f"{name}: {', '.join(map(str, names))}" for name, names in bands.items()) or "all bands"


def _arguments_of(content: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    """Return the name and the arguments of the backbone that a task's checkpoint holds; empty if it says nothing."""
    if path is None:
        return {}
    model_args = model_args_of(content, path)
    if not isinstance(model_args.get("backbone"), str):
        return {}
    kwargs = model_args.get("backbone_kwargs") or {
        key.removeprefix("backbone_"): value for key, value in model_args.items() if key.startswith("backbone_")
    }
    name = model_args["backbone"].removeprefix("terratorch_")
    return {"name": name, **{key: value for key, value in kwargs.items() if not key.startswith(OF_CACHES)}}


def _build_trained(
    arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path, layer: int
) -> tuple[TerraMindBackbone, int]:
    """Return the backbone of a task's checkpoint, and the position of the layer among those it returns."""
    if arguments.get(TIMES):
        raise ConfigError(
            f"{path} takes several dates at once, and `terramind embed` one. Embed each date with a model of one date."
        )
    kept = {key: value for key, value in arguments.items() if not key.startswith(OF_TERRATORCH)}
    has_adapters = bool(kept.get("lora"))
    if has_adapters:  # they need the base that they were trained on, and all layers
        kept["out_indices"] = None
    else:
        kept |= {"pretrained": False, "ckpt_path": None, "out_indices": [layer]}
    if str(kept.get("merge_method", "mean")).lower() not in MAPS:
        logger.warning(
            "%s keeps the modalities apart (merge_method %s); here their vectors are averaged.",
            path, kept["merge_method"],
        )  # fmt: skip
        kept["merge_method"] = "mean"
    with loading_weights():
        backbone = build_by_name(**kept)
    mark = BASE if has_adapters else ANCHOR
    prefix = min((name.split(mark)[0] for name in tensors if mark in name), key=len, default=None)
    if prefix is None:
        raise WeightsError(f"{path} holds no weights of the backbone that its settings describe.")
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    load_into(backbone, with_tables(backbone, own), path, "the backbone that its settings describe")
    return backbone, layer if has_adapters else -1


def _statistics_of(content: Mapping[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """Return mean and standard deviation of each band, by modality, that a data module has left in a checkpoint."""
    for part in content.values():
        means, stds = (part.get(name) if isinstance(part, Mapping) else None for name in ("means", "stds"))
        if isinstance(means, Mapping) and isinstance(stds, Mapping):
            return {name: (list(means[name]), list(stds[name])) for name in means if name in stds}
    return {}


def _with_inputs(
    backbone: TerraMindBackbone,
    modalities: Sequence[str],
    bands: Mapping[str, Sequence[object]],
    known: Mapping[str, tuple[list[float], list[float]]],
    layer: int,
) -> tuple[Embedder, dict[str, Expected]]:
    """Return the model with the standardisation of its inputs, and what their files hold."""
    inputs, expected = {}, {}
    for name in modalities:
        entry = find(name)
        names = [str(getattr(band, "value", band)) for band in bands.get(name, ())]
        if entry is not None and not names:
            names = list(entry.band_names)
        if name in known:
            mean, std = known[name]
        elif entry is not None:
            mean, std = statistics(entry, names)
        else:
            raise ConfigError(f"The mean and standard deviation of {name} are not known.")
        if len(names) != len(mean):
            names = [f"{name}_{number + 1}" for number in range(len(mean))]
        inputs[name] = Standardisation(mean, std)
        expected[name] = Expected(entry.name if entry is not None else name, tuple(names), tuple(mean))
    return Embedder(backbone, inputs, layer), expected
