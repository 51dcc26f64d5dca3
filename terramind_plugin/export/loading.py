"""The model to export: the whole model of a fine-tuned task, or an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from terramind_plugin.backbones.encoder import find_backbone
from terramind_plugin.builders import build_backbone
from terramind_plugin.data.classes import class_names_of
from terramind_plugin.data.dates import dates_taken
from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.export.subject import PROBABILITIES, Input, Subject
from terramind_plugin.inference.options import ModelArguments
from terramind_plugin.inference.processes import quiet
from terramind_plugin.inference.segmentation import patch_size, read_data_module
from terramind_plugin.inference.settings import loading_weights
from terramind_plugin.inference.windows import training_size
from terramind_plugin.integration.fine_tuned import load_task, task_files
from terramind_plugin.integration.lightning_cli import TerraMindCLI, make_cli
from terramind_plugin.model.checkpoints import backbone_settings, hash_weights, read_file, settings_of
from terramind_plugin.model.inputs import InputSpec
from terramind_plugin.model.modalities import find, resolve
from terramind_plugin.model.repository import fetch_weights, is_location
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.system.files import plain

KINDS = {
    "SemanticSegmentationTask": "segmentation",
    "PixelwiseRegressionTask": "regression",
    "ClassificationTask": "classification",
    "MultiLabelClassificationTask": "multilabel classification",
    "ScalarRegressionTask": "scalar regression",
}
"""Tasks of TerraTorch whose models have one tensor as output, and the kind of output."""
OF_THE_MACHINE = (
    "backbone_pretrained",
    "backbone_ckpt_path",
    "backbone_tim_tokenizer_ckpt_paths",
    "backbone_tim_cache",
    "backbone_feature_cache",
)
"""Prefixes of model arguments that an exported folder omits: local paths, and weights that the folder contains."""


def load_subject(
    source: ModelArguments,
    modalities: Sequence[str] | None,
    *,
    config: Path | None = None,
    layers: Sequence[int] | None = None,
    crop: int | None = None,
    overrides: Sequence[str] = (),
) -> Subject:
    """Return the named model in evaluation mode: the whole model of a fine-tuned task, or a backbone.

    Args:
        source: Model and weights.
        modalities: Inputs; None for all of a fine-tuned task.
        config: Configuration of the fine-tuning, if the checkpoint does not hold its settings.
        layers: Layers of a backbone to return; None for all.
        crop: Height and width of images in pixels; None for those in training.
        overrides: Further options of the configuration.

    Raises:
        ConfigError: An argument is not possible, or does not suit the model.
        WeightsError: The weights are missing or do not fit.
    """
    if config is None and not _is_task(source):
        if overrides:
            raise ConfigError(f"{overrides[0]} changes a configuration, but none is given. Add --config YAML.")
        return _load_backbone(source, modalities, layers, crop)
    if layers:
        raise ConfigError("--layers is for backbones; a fine-tuned task has one output.")
    model = None if source.ckpt_path is not None and config is not None else source.model
    with task_files(model, config, source.ckpt_path) as files, quiet():
        cli = make_cli(["--config", str(files.config), *overrides], files.weights)
    load_task(cli, files.weights)
    return _describe_task(cli, files.name, modalities, crop if crop is not None else files.size)


def _is_task(source: ModelArguments) -> bool:
    """Return whether weights come with the settings of a fine-tuned task."""
    if source.model in VARIANTS or not is_location(source.model):
        return False
    path = fetch_weights(source.model)
    settings = settings_of(read_file(path)[0], path)
    kind = str(settings.get("_class_path", "")).rpartition(".")[2]
    return bool(settings.get("model_args")) and not kind.startswith("Embedding")


def _load_backbone(
    source: ModelArguments, modalities: Sequence[str] | None, layers: Sequence[int] | None, crop: int | None
) -> Subject:
    variant, ckpt_path = source.look_up()
    if not modalities:
        raise ConfigError(f"Name the inputs of {source.model}: --modalities S2L2A, or several: S2L2A,S1GRD.")
    names = [resolve(name).name for name in modalities]
    size = check_crop(crop if crop is not None else variant.img_size, variant.patch_size)
    with loading_weights():
        network = build_backbone(
            variant.name,
            names,
            pretrained=source.pretrained and ckpt_path is None,
            ckpt_path=ckpt_path,
            out_indices=None if not layers else list(layers),
        )
    network.eval().requires_grad_(False)
    weights = (
        "random" if ckpt_path is None and not source.pretrained else str((ckpt_path and ckpt_path.name) or "published")
    )
    arguments: dict[str, Any] = {"backbone": variant.name, "backbone_modalities": names}
    if layers:
        arguments["backbone_out_indices"] = list(network.layers)
    return Subject(
        name=variant.name,
        network=network,
        kind="features",
        inputs=tuple(_input_of(spec, size) for spec in network.observed),
        outputs=tuple(f"layer_{number}" for number in network.layers),
        weights=f"{weights}, sha256 {hash_weights(network.state_dict())[:16]}",
        settings={"model": {"class_path": "terramind_plugin.EmbeddingTask", "init_args": {"model_args": arguments}}},
        base=variant.hub_repo,
    )


def _describe_task(cli: TerraMindCLI, weights: str, modalities: Sequence[str] | None, crop: int | None) -> Subject:
    task = cli.model
    kind = KINDS.get(type(task).__name__)
    if kind is None:
        raise ConfigError(
            f"{type(task).__name__} has no output that can be exported. Tasks that can be exported: {', '.join(KINDS)}."
        )
    if getattr(cli.datamodule, "concat_bands", False):
        raise ConfigError(
            "The configuration has concat_bands, whose joined input has no name. Name several modalities."
        )
    expected, scales = read_data_module(cli.datamodule, task)
    patch = patch_size(task)
    size = check_crop(training_size(cli.config, cli.datamodule, task, patch) if crop is None else crop, patch)
    dates = _dates_of(task)
    listed = list(task.hparams.get("model_args", {}).get("backbone_modalities") or expected)
    inputs = []
    for name, files in expected.items():
        known, scale = find(files.name), scales[name]
        own = str(listed[0]) if name == "image" and len(listed) == 1 else name
        inputs.append(
            Input(
                own,
                (len(files.bands), *dates, size, size),
                files.bands,
                known.units if known is not None else "those of the training data",
                tuple(scale.mean.flatten().tolist()),
                tuple(scale.std.flatten().tolist()),
                scale.shift,
                scale.scale,
            )
        )
    backbone, names = find_backbone(task), class_names_of(task, cli.datamodule)
    args = task.hparams.get("model_args") or {}
    parts = [args.get("backbone"), args.get("decoder")]
    return Subject(
        name=" with ".join(str(part) for part in parts if part) or type(task).__name__,
        network=task.model.eval().requires_grad_(False),
        kind=kind,
        inputs=_choose(inputs, modalities),
        outputs=("scores" if kind in PROBABILITIES else "values",),
        weights=f"{weights}, sha256 {hash_weights(task.model.state_dict())[:16]}",
        class_names=tuple(names),
        settings={"model": _plain_task(task), "data": _data_settings(cli.datamodule, inputs, names)},
        positions=getattr(cli.datamodule, "positions", None),
        base=None if backbone is None else backbone.variant.hub_repo,
    )


def _choose(inputs: Sequence[Input], modalities: Sequence[str] | None) -> tuple[Input, ...]:
    """Return the inputs that a user has named, in that order, or all inputs if none is named."""
    if not modalities:
        return tuple(inputs)
    chosen = []
    for name in modalities:
        known = find(name)
        found = [one for one in inputs if one.name == name or (known is not None and find(one.name) is known)]
        if not found:
            names = [one.name for one in inputs]
            raise ConfigError(f"The model has no input {name}.{suggest(name, names)} Its inputs: {', '.join(names)}.")
        chosen += found
    return tuple(dict.fromkeys(chosen))


def check_crop(crop: int, patch: int) -> int:
    """Return the height and width of images, or raise a ConfigError unless it is a multiple of the patch size."""
    if crop < patch or crop % patch:
        raise ConfigError(f"crop must be a multiple of the patch size, {patch} pixels, got {crop}.")
    return crop


def _input_of(spec: InputSpec, size: int) -> Input:
    modality = spec.pretrained
    if modality is None or spec.is_sequence:
        raise ConfigError(f"{spec.name} is not an image, so a file cannot have it as input.")
    return Input(
        spec.name, (len(modality.bands), size, size), modality.band_names, modality.units, modality.mean, modality.std
    )


def _dates_of(task: nn.Module) -> tuple[int, ...]:
    """Return the number of dates of a task's model as a tuple of one number; empty for images of one date."""
    settings = backbone_settings(getattr(task, "hparams", {}).get("model_args") or {})
    if not settings.get("use_temporal"):
        return ()
    taken = dates_taken(task)
    count = settings.get("temporal_n_timestamps") if taken is None else taken.count
    if not isinstance(count, int):
        raise ConfigError("A file takes a fixed number of dates: set backbone_temporal_n_timestamps.")
    return (count,)


def _plain_task(task: nn.Module) -> dict[str, Any]:
    """Return class and arguments of a task, as plain values."""
    hparams = getattr(task, "hparams", {})
    kept = (
        "model_factory",
        "model_args",
        "loss",
        "ignore_index",
        "class_names",
        "class_weights",
        "tiled_inference_parameters",
    )
    init_args = {name: plain(hparams[name]) for name in kept if hparams.get(name) is not None}
    args = init_args.get("model_args", {})
    for name in [name for name in args if name.startswith(OF_THE_MACHINE)]:
        del args[name]
    module = type(task).__module__
    module = "terratorch.tasks" if module.startswith("terratorch.tasks.") else module
    return {"class_path": f"{module}.{type(task).__name__}", "init_args": init_args}


def _data_settings(datamodule: Any, inputs: Sequence[Input], names: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of our data module with which files are read as in training, without paths."""
    settings: dict[str, Any] = plain(datamodule.state_dict())
    if "means" in settings:  # our data module; others have another state, or none
        return {**settings, "class_names": list(names) or None}
    settings = {"modalities": [one.name for one in inputs], "class_names": list(names) or None}
    for what, of in (("means", "mean"), ("stds", "std")):
        settings[what] = {one.name: list(getattr(one, of)) for one in inputs}
    settings["offsets"] = {one.name: one.offset for one in inputs if one.offset}
    settings["constant_scale"] = {one.name: one.scale for one in inputs if one.scale != 1}
    settings["dataset_bands"] = {one.name: list(one.bands) for one in inputs}
    fill = getattr(datamodule, "no_data_replace", None)
    return {name: value for name, value in {**settings, "no_data_replace": fill}.items() if value not in (None, {})}
