"""Checks of a configuration's keys and values, before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.model.modalities import find
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.samples.checks.findings import Finding

FACTORY = ("backbone", "decoder", "necks", "num_classes", "num_outputs", "aux_decoders", "rescale", "image_size_out",
           "peft_config", "backbone_kwargs", "decoder_kwargs", "head_kwargs")  # fmt: skip
"""Keys of model_args for TerraTorch's EncoderDecoderFactory."""
TEMPORAL = ("use_temporal", "temporal_pooling", "temporal_concat", "temporal_n_timestamps",
            "temporal_features_permute_op", "temporal_subset_lengths")  # fmt: skip
"""Keys of a backbone that configure TerraTorch's wrapper for time series."""
DEFAULT_RATE = 0.001
"""Default learning rate of TerraTorch's tasks."""
PREFIXES = ("backbone_", "decoder_", "head_")
"""Prefixes of the keys that the factory passes on to a part."""


def check_model_args(arguments: Mapping[str, Any], factory: str) -> Iterator[Finding]:
    """Yield keys in model_args that nothing reads, with the nearest valid name, and layers that do not exist.

    Args:
        arguments: The model_args.
        factory: Name of the model factory.
    """
    if factory != "EncoderDecoderFactory":
        return
    known = {"backbone_": backbone_keys(arguments), "decoder_": _parameters("DECODER", arguments.get("decoder"))}
    for key in map(str, arguments):
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), "")
        if key in FACTORY:
            continue
        if not prefix:
            yield _unknown(key, [*FACTORY, *(f"backbone_{name}" for name in known["backbone_"])])
        elif known.get(prefix) and key.removeprefix(prefix) not in known[prefix]:
            yield _unknown(key, [f"{prefix}{choice}" for choice in known[prefix]])
    yield from _check_necks(arguments)
    yield from _check_layers(arguments)


def _check_necks(arguments: Mapping[str, Any]) -> Iterator[Finding]:
    necks = arguments.get("necks")
    for neck in necks if isinstance(necks, list) else []:
        name = neck.get("name") if isinstance(neck, Mapping) else None
        if not isinstance(name, str):
            yield Finding("yaml: keys", "error", f"a neck without a name: {neck}.", "E.g. {name: terramind_pyramid}.")
            continue
        known = _parameters("NECK", name)
        for key in map(str, neck):
            if known and key not in known and key != "name":
                yield _unknown(key, known, f"the neck {name}")


def _unknown(key: str, choices: list[str], where: str = "model_args") -> Finding:
    from terramind_plugin.backbones.arguments import FORMER_ARGUMENTS

    name = FORMER_ARGUMENTS.get(key.removeprefix("backbone_"))
    hint = f"It is now called backbone_{name}." if name else suggest(key, choices).strip()
    return Finding("yaml: keys", "error", f"{where} has a key '{key}' that nothing reads.", hint or "Remove it.")


def backbone_keys(arguments: Mapping[str, Any]) -> list[str]:
    """Return the keys of a backbone of this package, without 'backbone_'; none for other backbones."""
    from terramind_plugin.backbones.encoder import TerraMindBackbone
    from terramind_plugin.backbones.tim import TerraMindTiM
    from terramind_plugin.builders import backbone_arguments

    name = str(arguments.get("backbone"))
    if name.removesuffix("_tim") not in VARIANTS:
        return []
    kind = TerraMindTiM if name.endswith("_tim") else TerraMindBackbone
    return sorted({*backbone_arguments(kind), *TEMPORAL})


def _parameters(kind: str, name: Any) -> list[str]:
    """Return the names of the arguments of a 'DECODER' or 'NECK'; none if its signature does not list them."""
    from terratorch import registry
    from terratorch.models.decoders import UNetDecoder

    from terramind_plugin.integration.necks import TokenPyramid

    # The registry holds functions that import these when they are called.
    own = {"terramind_pyramid": TokenPyramid, "terramind_unet": UNetDecoder}
    if not isinstance(name, str):
        return []
    try:
        found = own[name] if name in own else getattr(registry, f"{kind}_REGISTRY").find_class(name)
        parameters = inspect.signature(found).parameters
    except (KeyError, ValueError, TypeError, ConfigError):  # a wrong name shows when the model is built
        return []
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    return list(parameters)


def _check_layers(arguments: Mapping[str, Any]) -> Iterator[Finding]:
    variant = VARIANTS.get(str(arguments.get("backbone")).removesuffix("_tim"))
    if variant is None:
        return
    chosen = arguments.get("backbone_out_indices")
    count = len(chosen) if isinstance(chosen, list) and chosen else variant.depth
    places = {"backbone_out_indices": (chosen, variant.depth)}
    necks = arguments.get("necks")
    for neck in necks if isinstance(necks, list) else []:
        if isinstance(neck, Mapping) and neck.get("name") == "SelectIndices":
            # Indices count all layers of the model, or only those in backbone_out_indices.
            places["necks: SelectIndices"] = (neck.get("indices"), variant.depth if chosen else count)
    for where, (indices, limit) in places.items():
        listed = indices if isinstance(indices, list) else []
        wrong = [index for index in listed if isinstance(index, int) and not -limit <= index < limit]
        if wrong:
            yield Finding(
                "yaml: layers",
                "error",
                f"{where} names layer {wrong[0]}; {variant.name} has {variant.depth}: 0 to {variant.depth - 1}.",
                f"E.g. {[variant.depth * step // 4 - 1 for step in range(1, 5)]}.",
            )


def check_agreement(data: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the values in which data and model contradict each other.

    Args:
        data: init_args of the data module.
        model: init_args of the task.
    """
    arguments = as_mapping(model.get("model_args"))
    taken = arguments.get("backbone_modalities")
    given = data.get("image_modalities") or data.get("modalities")
    if isinstance(taken, list) and isinstance(given, list):
        names = [str(name) for entry in taken for name in (entry if isinstance(entry, Mapping) else [entry])]
        names += map(str, arguments.get("backbone_tim_observed") or [])
        given = [str(name) for entry in given for name in (entry if isinstance(entry, Mapping) else [entry])]
        if set(names) != set(given):
            yield Finding(
                "yaml: modalities",
                "error" if not set(given) <= set(names) else "warning",
                f"the data have {given}, the model expects {names}.",
                "Use the same names in modalities and backbone_modalities.",
            )
        yield from _check_bands(data, as_mapping(arguments.get("backbone_bands")), taken)
    yield from _check_classes(data, model)


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return a part of a configuration, or an empty mapping if the part is something else."""
    return value if isinstance(value, Mapping) else {}


def _check_bands(data: Mapping[str, Any], bands: Mapping[str, Any], taken: list[Any]) -> Iterator[Finding]:
    entries = [item for entry in taken for item in (entry.items() if isinstance(entry, Mapping) else [(entry, entry)])]
    for name, source in ((name, source) for name, source in entries if isinstance(source, str)):
        modality = find(source)
        wanted = bands.get(name) or (modality and modality.band_names)
        read = as_mapping(data.get("output_bands")).get(name) or as_mapping(data.get("dataset_bands")).get(name)
        read = read or (modality and modality.band_names)
        if not isinstance(wanted, list | tuple) or not isinstance(read, list | tuple):
            continue
        wanted, read = list(map(str, wanted)), list(map(str, read))
        same = [modality.find_band(band) if modality else band for band in wanted]
        if same != [modality.find_band(band) if modality else band for band in read] and "-" not in "".join(read):
            yield Finding(
                "yaml: bands",
                "error" if len(read) != len(wanted) else "warning",
                f"{name}: the data have {read}, the model expects {wanted}.",
                "List the same bands in the same order in dataset_bands (or output_bands) and backbone_bands.",
            )


def _check_classes(data: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[Finding]:
    where, arguments = "yaml: classes", as_mapping(model.get("model_args"))
    count, own = arguments.get("num_classes"), data.get("num_classes")
    if own is not None and count is not None and own != count:
        yield Finding(where, "error", f"num_classes is {own} in data, {count} in model.", "Use the same.")
    for part, key in ((data, "class_names"), (model, "class_names"), (model, "class_weights")):
        values = part.get(key)
        if isinstance(values, list) and isinstance(count, int) and len(values) != count:
            text = f"{'data' if part is data else 'model'} has {len(values)} {key}, expected {count}."
            yield Finding(where, "error", text, "Give one for each class, in the order of the class ids.")
    names, others = data.get("class_names"), model.get("class_names")
    if names and others and names != others:
        yield Finding(
            where, "error", f"class_names are {names} in data, {others} in model.", "Use the same names in one order."
        )
    size = data.get("batch_size")
    if isinstance(size, int) and size < 1:
        yield Finding("yaml: batch size", "error", f"batch_size is {size}.", "Give at least 1.")


def check_training(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield findings on the training loop: precision, weights, learning rates.

    Args:
        config: The whole configuration.
    """
    trainer = as_mapping(config.get("trainer"))
    yield from check_precision(str(trainer.get("precision") or "32-true"), str(trainer.get("accelerator") or "auto"))
    initial = as_mapping(as_mapping(config.get("model")).get("init_args"))
    path = as_mapping(initial.get("model_args")).get("backbone_ckpt_path")
    if isinstance(path, str) and not Path(path).is_file():
        yield Finding("yaml: weights", "error", f"backbone_ckpt_path {path} is not a file.", f"Seen from {Path.cwd()}.")
    yield from _check_optimisation(initial)
    for key in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"):
        if isinstance(trainer.get(key), float) and trainer[key] == 1:
            seen = f"trainer.{key} is 1.0, which means all batches, not one."
            yield Finding("run: batches", "note", seen, "For one: trainer.fast_dev_run: 1.")
    chosen = initial.get("lr")
    rate = as_mapping(as_mapping(config.get("optimizer")).get("init_args")).get("lr")
    numbers = isinstance(chosen, int | float) and isinstance(rate, int | float)
    if numbers and chosen != DEFAULT_RATE and rate != chosen:
        yield Finding(
            "yaml: learning rate",
            "warning",
            f"model.init_args.lr is {chosen:g}, optimizer.init_args.lr is {rate:g}: the latter is used.",
            "Remove one.",
        )


def check_interval(trainer: Mapping[str, Any], samples: int, batch_size: int, drop_last: bool) -> Iterator[Finding]:
    """Yield an error if val_check_interval is larger than the batches of an epoch, which Lightning refuses.

    Args:
        trainer: Configuration of the trainer.
        samples: Number of training samples of an epoch.
        batch_size: Number of samples in a batch.
        drop_last: Whether an incomplete last batch is left out.
    """
    interval, limit = trainer.get("val_check_interval"), trainer.get("limit_train_batches")
    batches = samples // batch_size if drop_last else -(-samples // batch_size)
    if isinstance(limit, int | float):
        batches = min(batches, int(limit)) if limit > 1 else int(batches * limit)
    if not isinstance(interval, int | float) or interval <= 1 or trainer.get("check_val_every_n_epoch", 1) is None:
        return
    if 0 < batches < interval:
        yield Finding(
            "yaml: validation",
            "error",
            f"val_check_interval is {interval:g}, but an epoch has {batches} batches: fit would stop.",
            "Lower it, or set check_val_every_n_epoch: null to count batches across epochs.",
        )


def _check_optimisation(task: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield unknown optimizers, schedulers and arguments of them; TerraTorch would only find them in training."""
    import torch

    places = {"optimizer": (torch.optim, "lr"), "scheduler": (torch.optim.lr_scheduler, "interval")}
    for part, (module, own) in places.items():
        name, given = task.get(part), as_mapping(task.get(f"{part}_hparams"))
        if not isinstance(name, str):
            continue
        kind = getattr(module, name, None)
        if not inspect.isclass(kind):
            hint = suggest(name, [key for key in dir(module) if inspect.isclass(getattr(module, key))]).strip()
            yield Finding(f"yaml: {part}", "error", f"{module.__name__} has no {name}.", hint)
        elif name != "SequentialLR":
            known = list(inspect.signature(kind).parameters)
            for key in (str(key) for key in given if key not in known and key != own):
                hint = suggest(key, known).strip()
                yield Finding(f"yaml: {part}", "error", f"{name} has no argument '{key}'.", hint or f"{known[1:]}")


def check_precision(precision: str, accelerator: str) -> Iterator[Finding]:
    """Yield a finding if the hardware does not support the precision.

    Args:
        precision: Precision of the trainer, e.g. '16-mixed'.
        accelerator: Accelerator of the trainer, e.g. 'auto'.
    """
    import torch

    cuda = torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda")
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        yield Finding("run: hardware", "error", "accelerator is gpu, but there is no GPU.", "Set accelerator: auto.")
    if precision.startswith("16") and not cuda:
        yield Finding(
            "run: precision",
            "note",
            f"precision {precision} is meant for GPUs, and this run uses a CPU.",
            "Set precision: bf16-mixed for a CPU.",
        )
    if precision.startswith("bf16") and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding("run: precision", "error", f"this GPU does not support {precision}.", "Set precision: 16-mixed.")
