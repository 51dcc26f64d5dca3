"""The model of `terramind embed`: a published or fine-tuned backbone, and the format of its input files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from terramind_plugin.backbones.encoder import TerraMindBackbone
from terramind_plugin.backbones.lora import BASE
from terramind_plugin.backbones.network import compile_network
from terramind_plugin.backbones.series import SeriesPooling, encode_series, read_pooling
from terramind_plugin.builders import build_backbone, build_by_name
from terramind_plugin.errors import ConfigError, WeightsError
from terramind_plugin.inference.inputs import FileInput, band_names, inputs_of_state, names_of
from terramind_plugin.inference.settings import loading_weights
from terramind_plugin.inference.windows import locate_windows
from terramind_plugin.model.checkpoints import (
    OF_TERRATORCH,
    backbone_settings,
    load_into,
    model_args_of,
    read_file,
    with_tables,
)
from terramind_plugin.model.variants import Variant
from terramind_plugin.model.weights import ANCHOR
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.raster.reader import Expected
from terramind_plugin.raster.writer import Layer

logger = logging.getLogger("terramind_plugin")

MAPS = ("mean", "max", "concat")
"""Merge methods that give one feature map for all modalities."""


class Embedder(nn.Module):
    """A backbone as the model of a scene, which gives a vector for each patch.

    Args:
        backbone: Backbone with weights.
        inputs: Inputs that come from files.
        layer: Position of the layer among the layers that the backbone returns.
        pooling: Pooling of several dates; None for images of one date.
        positions: Name of the input that is the position of a window; None if there is none.
    """

    def __init__(
        self,
        backbone: TerraMindBackbone,
        inputs: Mapping[str, FileInput],
        layer: int,
        pooling: SeriesPooling | None = None,
        positions: str | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone.eval().requires_grad_(False)
        self.inputs = nn.ModuleDict({name: one.standardise() for name, one in inputs.items()})
        self.layer = layer
        self.pooling = pooling
        self.positions = positions
        self.patch = backbone.patch_size
        self.grid: Grid | None = None
        """Grid of the scene, set by `begin`."""
        self.take_dates(1)

    @property
    def mixes_scenes(self) -> bool:
        """Return whether windows of several scenes may be in one batch."""
        return self.positions is None

    def numbers(self) -> dict[str, list[Any]]:
        """Return the numbers that standardise each input, see `Standardised.numbers`."""
        scales: Any = self.inputs.items()
        return {name: scale.numbers() for name, scale in scales}

    def take_dates(self, dates: int) -> None:
        """Set the number of dates of the scenes, which the width of vectors may depend on."""
        width = list(self.backbone.out_channels)[self.layer]
        self.channels = width if self.pooling is None else self.pooling.widen(width, dates)
        names = tuple(f"dimension_{number}" for number in range(self.channels))
        self.layers = (Layer("embedding", "float32", names, "", float("nan")),)

    def prepare(self, mode: str) -> None:
        """Prepare for windows of one size, see `SceneModel`."""
        compile_network(self.backbone, mode)

    def begin(self, grid: Grid) -> None:
        """Set the grid of the scene whose windows come next."""
        self.grid = grid

    def forward(self, images: Mapping[str, Tensor], corners: Sequence[tuple[int, int]]) -> Tensor:
        """Return vectors [B, dimensions, h / patch, w / patch]."""
        x: dict[str, Tensor] = {name: scale(images[name]) for name, scale in self.inputs.items()}
        height, width = next(iter(images.values())).shape[-2:]
        if self.positions is not None:
            device = next(iter(x.values())).device
            x[self.positions] = locate_windows(self.grid, corners, (height, width)).to(device)
        features = list(self.backbone(x)) if self.pooling is None else self._encode_dates(x, self.pooling)
        tokens: Tensor = features[self.layer]
        return tokens.transpose(1, 2).reshape(len(tokens), -1, height // self.patch, width // self.patch)

    def _encode_dates(self, x: dict[str, Tensor], pooling: SeriesPooling) -> list[Tensor]:
        images = {name: image for name, image in x.items() if image.ndim == 5}
        known = {name: ~image.isnan().flatten(3).all(dim=3).all(dim=1) for name, image in images.items()}
        masks = None if all(bool(one.all()) for one in known.values()) else known
        return list(encode_series(self._encode, x, masks, pooling.pool))

    def _encode(self, x: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None) -> list[Any]:
        features: list[Any] = self.backbone(x, modality_mask=masks)
        return features

    def finish(self, blended: Tensor) -> list[Tensor]:
        """Return the vectors [dimensions, rows, W]; a vector with a value that is not finite becomes all NaN."""
        return [blended.masked_fill(~blended.isfinite().all(dim=0), torch.nan)]


@dataclass(frozen=True)
class Trained:
    """The backbone and the inputs in a checkpoint of a fine-tuned task."""

    path: Path
    arguments: Mapping[str, Any]
    """Name and arguments of the backbone."""
    tensors: Mapping[str, Tensor]
    inputs: Mapping[str, FileInput]
    """Inputs as described by the data module of the training; empty without a description."""
    positions: str | None
    """Name of the input that is a position; None if there is none."""

    @property
    def names(self) -> list[str]:
        """Return the names of the inputs that come from files."""
        return names_of(self.arguments.get("modalities"))

    @property
    def pooling(self) -> SeriesPooling | None:
        """Return the pooling of several dates; None for images of one date."""
        return read_pooling(self.arguments)

    def describe_bands(self) -> str:
        """Return the bands that the backbone expects, for messages."""
        bands = self.arguments.get("bands") or {}
        return "; ".join(f"{name}: {', '.join(map(str, names))}" for name, names in bands.items()) or "all bands"


def read_trained(path: Path | None) -> Trained | None:
    """Return the backbone and inputs of the task in a checkpoint; None if it describes no task, or `path` is None.

    Raises:
        WeightsError: The file cannot be read.
    """
    if path is None:
        return None
    content, tensors = read_file(path)
    model_args = model_args_of(content, path)
    if not isinstance(model_args.get("backbone"), str):
        return None
    arguments = {"name": model_args["backbone"].removeprefix("terratorch_"), **backbone_settings(model_args)}
    parts = [part for part in content.values() if isinstance(part, Mapping)]
    state = next((part for part in parts if isinstance(part.get("means"), Mapping) and part.get("stds")), {})
    inputs, positions = inputs_of_state(state)
    listed = arguments.get("modalities") or []
    named = next((str(name) for name in listed if not isinstance(name, Mapping) and not names_of([name])), None)
    return Trained(path, arguments, tensors, inputs, positions or named)


def build_embedder(
    variant: Variant,
    ckpt_path: Path | None,
    modalities: Sequence[str],
    *,
    pretrained: bool = True,
    bands: Mapping[str, Sequence[str]] | None = None,
    layer: int = -1,
    pooling: SeriesPooling | None = None,
    trained: Trained | None = None,
) -> tuple[Embedder, dict[str, Expected]]:
    """Return the model, and the bands and units of each modality's files.

    The bands, statistics and adapters of a fine-tuned task's backbone come from its checkpoint.

    Args:
        variant: Architecture.
        ckpt_path: Weights; None for published or random ones.
        modalities: Modalities of the files.
        pretrained: Load the published weights if there is no `ckpt_path`.
        bands: Bands of a modality in the order of the model's input, if the files lack some of them.
        layer: Layer of the encoder, counted from 0, or backwards from -1.
        pooling: Pooling of several dates; None for images of one date, or for the pooling of the task.
        trained: Result of `read_trained` for `ckpt_path`; None to read the file.

    Raises:
        ConfigError: An argument is not possible, or the checkpoint's model has other modalities.
        WeightsError: The weights are missing or do not fit.
    """
    if not -variant.depth <= layer < variant.depth:
        raise ConfigError(
            f"layer must be from 0 to {variant.depth - 1}, or from -1, the last one, to -{variant.depth}; got {layer}."
        )
    trained = read_trained(ckpt_path) if trained is None else trained
    if trained is not None:
        return _build_trained(trained, modalities, bands, layer, pooling)
    with loading_weights():
        backbone = build_backbone(
            variant.name, list(modalities), bands=bands, pretrained=pretrained, ckpt_path=ckpt_path,
            out_indices=[layer],
        )  # fmt: skip
    known = {name: FileInput.of_table(name, (bands or {}).get(name, ()), dated=pooling is not None)
             for name in modalities}  # fmt: skip
    return Embedder(backbone, known, -1, pooling), {name: one.expect() for name, one in known.items()}


def _build_trained(
    trained: Trained,
    modalities: Sequence[str],
    bands: Mapping[str, Sequence[str]] | None,
    layer: int,
    pooling: SeriesPooling | None,
) -> tuple[Embedder, dict[str, Expected]]:
    """Return the model of a task's checkpoint, see `build_embedder`."""
    path = trained.path
    if bands:
        raise ConfigError(
            f"{path} contains the bands that it was trained with: {trained.describe_bands()}. Leave --bands out."
        )
    own = trained.pooling
    if own is not None and pooling is not None and own.pooling != pooling.pooling:
        raise ConfigError(
            f"{path} was trained with temporal_pooling: {own.pooling}, got {pooling.pooling}. Leave "
            "--temporal_pooling out."
        )
    backbone, position = _load_backbone(trained, layer)
    images = [spec.name for spec in backbone.observed if spec.name != trained.positions]
    unknown = [name for name in modalities if name not in images]
    if unknown:
        raise ConfigError(
            f"{path} was trained with {', '.join(images)}, not with {unknown[0]}: name those with "
            "--modality or --scene NAME=FILE."
        )
    missing = [name for name in images if name not in modalities]
    if missing:
        logger.warning("%s was also trained with %s, which is missing here.", path, ", ".join(missing))
    pooling = own or pooling
    taken = trained.arguments.get("bands") or {}
    known = {}
    for name in modalities:
        names = band_names(taken.get(name))
        known[name] = trained.inputs.get(name) or FileInput.of_table(name, names, dated=pooling is not None)
        if pooling is not None and not known[name].dated:  # a model of one date, over several
            known[name] = replace(known[name], dated=True, keep_missing=True)
        if names and not known[name].read and not known[name].stored:
            known[name] = replace(known[name], read=names)
    model = Embedder(backbone, known, position, pooling, trained.positions)
    return model, {name: one.expect() for name, one in known.items()}


def _load_backbone(trained: Trained, layer: int) -> tuple[TerraMindBackbone, int]:
    """Return the backbone of a task's checkpoint, and the position of the layer among the layers that it returns."""
    path = trained.path
    kept = {key: value for key, value in trained.arguments.items() if not key.startswith(OF_TERRATORCH)}
    has_adapters = bool(kept.get("lora"))
    if has_adapters:  # they need the base that they were trained on, and all layers
        kept["out_indices"] = None
    else:
        kept |= {"pretrained": False, "ckpt_path": None, "out_indices": [layer]}
    if str(kept.get("merge_method", "mean")).lower() not in MAPS:
        logger.warning(
            "%s keeps the modalities separate (merge_method %s); here their vectors are averaged.",
            path, kept["merge_method"],
        )  # fmt: skip
        kept["merge_method"] = "mean"
    with loading_weights():
        backbone = build_by_name(**kept)
    mark = BASE if has_adapters else ANCHOR
    prefix = min((name.split(mark)[0] for name in trained.tensors if mark in name), key=len, default=None)
    if prefix is None:
        raise WeightsError(f"{path} holds no weights of the backbone that its settings describe.")
    own = {name.removeprefix(prefix): value for name, value in trained.tensors.items() if name.startswith(prefix)}
    load_into(backbone, with_tables(backbone, own), path, "the backbone that its settings describe")
    return backbone, layer if has_adapters else -1
