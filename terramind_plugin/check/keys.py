"""Checks of a configuration as it is written, before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from terramind_plugin.contract.findings import Finding
from terramind_plugin.errors import suggest
from terramind_plugin.variants import VARIANTS

FACTORY = ("backbone", "decoder", "necks", "num_classes", "num_outputs", "aux_decoders", "rescale", "image_size_out",
           "peft_config", "backbone_kwargs", "decoder_kwargs", "head_kwargs")  # fmt: skip
"""Keys of model_args for TerraTorch's EncoderDecoderFactory."""
PREFIXES = ("backbone_", "decoder_", "head_")


def check_model_args(arguments: Mapping[str, Any], factory: str) -> Iterator[Finding]:
    """Yield keys in model_args that nothing reads, with the nearest valid name, and layers that are not there.

    Args:
        arguments: The model_args.
        factory: Name of the model factory.
    """
    if factory != "EncoderDecoderFactory":
        return
    for key in arguments:
        if key not in FACTORY and not key.startswith(PREFIXES):
            yield _unknown(key, [*FACTORY, *(f"backbone_{name}" for name in backbone_keys(arguments))])
    known = backbone_keys(arguments)
    for key in arguments:
        name = key.removeprefix("backbone_")
        if known and key.startswith("backbone_") and key not in FACTORY and name not in known:
            yield _unknown(key, [f"backbone_{choice}" for choice in known])
    known = _parameters("decoder", arguments.get("decoder"))
    for key in arguments:
        name = key.removeprefix("decoder_")
        if known and key.startswith("decoder_") and key not in FACTORY and name not in known:
            yield _unknown(key, [f"decoder_{choice}" for choice in known])
    yield from _check_layers(arguments)


def _unknown(key: str, choices: list[str]) -> Finding:
    hint = suggest(key, choices).strip()
    return Finding("yaml: keys", "error", f"model_args has a key '{key}' that nothing reads.", hint or "Remove it.")


def backbone_keys(arguments: Mapping[str, Any]) -> list[str]:
    """Return the arguments of a backbone of this package, without 'backbone_'; none for others."""
    from terramind_plugin.backbones.build import _arguments, build_backbone
    from terramind_plugin.backbones.tim import TerraMindTiM
    from terramind_plugin.backbones.vit import TerraMindBackbone

    name = str(arguments.get("backbone"))
    if name.removesuffix("_tim") not in VARIANTS:
        return []
    kind = TerraMindTiM if name.endswith("_tim") else TerraMindBackbone
    names = [*_arguments(kind), *inspect.signature(build_backbone).parameters]
    return sorted({name for name in names if name not in ("variant", "imagined", "kwargs", "architecture")})


def _parameters(registry: str, name: Any) -> list[str]:
    """Return the arguments of a decoder, if they can be seen."""
    from terratorch.registry import DECODER_REGISTRY

    if registry != "decoder" or not isinstance(name, str):
        return []
    try:
        found = DECODER_REGISTRY.find_class(name)
        parameters = inspect.signature(found).parameters
    except (KeyError, ValueError, TypeError):
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
    for neck in arguments.get("necks") or []:
        if isinstance(neck, Mapping) and neck.get("name") == "SelectIndices":
            # Indices count the layers of the model, or those that backbone_out_indices has left.
            places["necks: SelectIndices"] = (neck.get("indices"), variant.depth if chosen else count)
    for where, (indices, limit) in places.items():
        wrong = [index for index in indices or [] if isinstance(index, int) and not -limit <= index < limit]
        if wrong:
            yield Finding(
                "yaml: layers",
                "error",
                f"{where} names layer {wrong[0]}; {variant.name} has {variant.depth}: 0 to {variant.depth - 1}.",
                f"E.g. {[variant.depth // 4 * step - 1 for step in range(1, 5)]}.",
            )


def check_agreement(data: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what data and model are told differently.

    Args:
        data: init_args of the data module.
        model: init_args of the task.
    """
    arguments = model.get("model_args") or {}
    taken = arguments.get("backbone_modalities")
    given = data.get("image_modalities") or data.get("modalities")
    if isinstance(taken, list) and isinstance(given, list):
        names = [name for entry in taken for name in (entry if isinstance(entry, Mapping) else [entry])]
        if set(names) != set(given):
            yield Finding(
                "yaml: modalities",
                "error" if not set(given) <= set(names) else "warning",
                f"the data have {given}, the model takes {names}.",
                "Use the same names in modalities and backbone_modalities.",
            )
    classes, count = data.get("num_classes"), arguments.get("num_classes")
    if classes is not None and count is not None and classes != count:
        yield Finding(
            "yaml: classes", "error", f"the data have num_classes {classes}, the model {count}.", "Align them."
        )
    bands = arguments.get("backbone_bands") or {}
    for name, wanted in bands.items() if isinstance(bands, Mapping) else ():
        read = (data.get("output_bands") or {}).get(name) or (data.get("dataset_bands") or {}).get(name)
        if read is not None and list(map(str, read)) != list(map(str, wanted)):
            yield Finding(
                "yaml: bands",
                "error" if len(read) != len(wanted) else "warning",
                f"{name}: the data give {list(map(str, read))}, the model takes {list(map(str, wanted))}.",
                "List the same bands in the same order.",
            )


def check_training(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what would go wrong in the training loop: monitors that are never logged, precision, learning rates.

    Args:
        config: The whole configuration.
    """
    yield from _check_monitors(config)
    trainer = config.get("trainer") or {}
    yield from check_precision(str(trainer.get("precision") or "32-true"), str(trainer.get("accelerator") or "auto"))
    initial = (config.get("model") or {}).get("init_args") or {}
    if config.get("optimizer") and initial.get("lr") is not None and "lr" in initial and initial["lr"] != 0.001:
        rate = (config["optimizer"].get("init_args") or {}).get("lr")
        if rate is not None and rate != initial["lr"]:
            yield Finding(
                "yaml: learning rate",
                "warning",
                f"model.init_args.lr is {initial['lr']:g}, optimizer.init_args.lr {rate:g}: the latter is used.",
                "Remove one.",
            )


METRICS = {
    "segmentation": ("loss", "mIoU", "mIoU_Micro", "Accuracy", "Pixel_Accuracy", "F1_Score", "Boundary_mIoU"),
    "regression": ("loss", "MAE", "MSE", "RMSE", "R2"),
}


def _check_monitors(config: Mapping[str, Any]) -> Iterator[Finding]:
    task = str((config.get("model") or {}).get("class_path", "")).rpartition(".")[2].lower()
    known = next((names for key, names in METRICS.items() if key in task), None)
    if known is None:
        return
    monitors: dict[str, Any] = {}
    for callback in (config.get("trainer") or {}).get("callbacks") or []:
        if isinstance(callback, Mapping):
            name = str(callback.get("class_path", "")).rpartition(".")[2]
            monitors[name] = (callback.get("init_args") or {}).get("monitor")
    scheduler = config.get("lr_scheduler") or {}
    monitors["lr_scheduler"] = scheduler.get("monitor") or (scheduler.get("init_args") or {}).get("monitor")
    names = [f"{split}/{metric}" for split in ("val", "train") for metric in known]
    for where, monitor in monitors.items():
        if not isinstance(monitor, str) or monitor in names:
            continue
        # The metrics of single classes have names of their own.
        if monitor.startswith(("val/", "train/")) and monitor.count("_") and "classwise" in monitor.lower():
            continue
        near = suggest(monitor, names).strip()
        if monitor.startswith(("val/", "train/")) and not near:
            continue
        yield Finding(
            "yaml: monitor", "error", f"{where} monitors '{monitor}', which is never logged.", near or "E.g. val/loss."
        )


def check_precision(precision: str, accelerator: str) -> Iterator[Finding]:
    """Yield a finding if the hardware lacks the precision.

    Args:
        precision: Of the trainer, e.g. '16-mixed'.
        accelerator: Of the trainer, e.g. 'auto'.
    """
    import torch

    cuda = torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda")
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        yield Finding("run: hardware", "error", "accelerator gpu, but this machine has none.", "Set accelerator: auto.")
    if precision.startswith("16") and not cuda:
        yield Finding(
            "run: precision",
            "note",
            f"precision {precision} is made for GPUs; this machine has none that is used.",
            "Set bf16-mixed for a CPU.",
        )
    if precision.startswith("bf16") and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding("run: precision", "error", f"this GPU has no {precision}.", "Set 16-mixed.")
