"""Parsing and building a configuration as `terratorch fit` does, but without weights, and checks of the result."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from huggingface_hub import constants, try_to_load_from_cache
from torchmetrics.wrappers import ClasswiseWrapper

from terramind_plugin.backbones.encoder import find_backbone
from terramind_plugin.check.config import as_mapping, check_agreement, check_model_args, check_training
from terramind_plugin.check.harmless import drop_weights
from terramind_plugin.data.terratorch_internals import TerraTorchTask
from terramind_plugin.errors import ConfigError, one_line, suggest
from terramind_plugin.integration import causes, lightning_cli
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.raster.complete import GDAL_ERRORS
from terramind_plugin.raster.decoded import DecodedChips
from terramind_plugin.raster.paths import is_raster
from terramind_plugin.samples.checks.files import PatchGrid
from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.samples.plan import DataPlan
from terramind_plugin.system.files import read_yaml
from terramind_plugin.tokenizers.coordinates import COORDS_VOCABULARIES

WEIGHT_BYTES = 4
"""Bytes of a weight in a checkpoint."""


@dataclass
class Built:
    """Parts of a configuration that could be built; None for the others."""

    findings: list[Finding] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    datamodule: Any = None
    model: Any = None
    cli: Any = None
    """The parsed command line."""


def build(config: Path, overrides: list[str]) -> Built:
    """Return the data module and the model of a configuration, and findings on what failed. No weights are read.

    Args:
        config: The YAML file.
        overrides: Further options, as for terramind fit, e.g. ["--trainer.max_epochs=3"].
    """
    built = Built()
    content = _read(config, built)
    if content is None:
        return built
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LightningCLI's args parameter")
            cli = lightning_cli.make_cli(["--config", str(config), *overrides], kind=lightning_cli.ParsingCLI)
    except Exception as error:  # whatever jsonargparse raises at a value of another type
        logging.getLogger("terramind_plugin").debug("Parsing failed", exc_info=True)
        built.findings.append(Finding("yaml: parsing", "error", causes.describe_error(error)))
        built.findings += _static(content)
        return built
    built.cli = cli
    built.config = cli.config.as_dict()
    odd = [part for part in ("trainer", "data", "model") if not isinstance(built.config.get(part), Mapping)]
    if odd:
        built.findings.append(Finding("yaml: parsing", "error", f"{odd[0]} is not a mapping of keys to values."))
        return built
    built.findings += _static(built.config)
    drop_weights(cli.config)
    built.datamodule = _instantiate(cli, "data", built)
    broken = any(f.verdict == "error" for f in built.findings if f.check in ("yaml: keys", "yaml: layers"))
    if not broken:
        built.model = _build_model(cli, built)
    return built


def _build_model(cli: Any, built: Built) -> Any:
    """Return the task without memory for its weights, or with memory if its builder reads them."""
    trial = Built()
    with torch.device("meta"):
        model = _instantiate(cli, "model", trial)
    if any("meta tensor" in finding.seen for finding in trial.findings):
        return _instantiate(cli, "model", built)
    built.findings += trial.findings
    return model


def _read(config: Path, built: Built) -> dict[str, Any] | None:
    try:
        content = read_yaml(config)
    except ConfigError as error:
        built.findings.append(Finding("yaml: parsing", "error", one_line(error)))
        return None
    if not isinstance(content, dict):
        built.findings.append(Finding("yaml: parsing", "error", f"{config} is not a mapping of data, model, trainer."))
        return None
    return content


def _static(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the findings that come from the keys and values alone."""
    parts = {name: config.get(name) for name in ("data", "model", "trainer")}
    data, model = (
        (part.get("init_args") or {}) if isinstance(part, Mapping) else {} for part in (parts["data"], parts["model"])
    )
    if not isinstance(data, Mapping) or not isinstance(model, Mapping):
        return
    arguments = model.get("model_args")
    if isinstance(arguments, Mapping):
        yield from check_model_args(arguments, str(model.get("model_factory") or "EncoderDecoderFactory"))
        yield from check_agreement(data, model)
    if isinstance(parts["trainer"], Mapping | None):
        yield from check_training(config)


def grid_of(task: Any) -> PatchGrid | None:
    """Return the image sizes that a task's model accepts, or None if they are not known.

    Args:
        task: A task of TerraTorch, with its model on any device.
    """
    model = getattr(task, "model", None)
    patch = getattr(model, "patch_size", None)
    if isinstance(patch, int) and patch > 0:
        return PatchGrid(patch, getattr(model, "padding", None))
    own = find_backbone(model) if model else None
    return PatchGrid(own.patch_size) if own is not None else None


def _instantiate(cli: Any, part: str, built: Built) -> Any:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = cli.make_part(part)
        # Albumentations leaves out arguments that it does not know.
        texts = {str(warning.message) for warning in caught}
        ignored = sorted(text for text in texts if "not valid for transform" in text)
        built.findings += [Finding(f"yaml: {part}", "error", f"{one_line(text)}.") for text in ignored]
        return made
    except Exception as error:  # whatever a library raises at a wrong argument
        built.findings.append(Finding(f"yaml: {part}", "error", causes.describe_error(error)))
        logging.getLogger("terramind_plugin").debug("Building %s failed", part, exc_info=True)
    return None


def check_monitors(config: Mapping[str, Any], model: Any) -> Iterator[Finding]:
    """Yield an error for each callback or scheduler that monitors a value which the task never logs in training.

    Args:
        config: The configuration.
        model: The task.
    """
    names = logged_names(model)
    if not names:
        return
    for where, monitor in _monitors(config):
        if monitor in (*names, "epoch", "step"):  # a checkpoint callback counts these itself
            continue
        shown = [name for name in names if name.startswith("val/")]
        hint = suggest(monitor, shown) or suggest(f"val/{monitor.rpartition('/')[2]}", shown)
        yield Finding(
            "yaml: monitor",
            "error",
            f"{where} monitors '{monitor}', which is never logged.",
            hint.strip() or f"Logged are {', '.join(shown)}.",
        )


def logged_names(model: Any) -> list[str]:
    """Return the names that a task of TerraTorch logs in training and validation; none if they are not known."""
    names: list[str] = []
    if not isinstance(model, TerraTorchTask):  # object detection and others log under names of their own
        return names
    # Auxiliary heads log losses under names of their own.
    if (getattr(model, "hparams", {}).get("model_args") or {}).get("aux_decoders"):
        return names
    for split in ("val", "train"):
        metrics: Any = getattr(model, f"{split}_metrics", None)
        if metrics is None:
            return []
        prefix = metrics.prefix or ""
        names += [f"{prefix}{name}" for name in ("loss", *getattr(getattr(model, "criterion", None), "losses", {}))]
        for name, metric in metrics.items(keep_base=True):
            if isinstance(metric, ClasswiseWrapper):
                count = getattr(metric.metric, "num_classes", None) or getattr(metric.metric, "num_labels", None) or 0
                labels = metric.labels or range(count)
                names += [f"{prefix}{metric._prefix or ''}{label}" for label in labels]
            else:
                names.append(f"{prefix}{name}")
    return names


def _monitors(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the callback or scheduler that monitors a value, and the name of the value."""
    callbacks = (config.get("trainer") or {}).get("callbacks") or []
    found = [
        (str(callback.get("class_path", "")).rpartition(".")[2], (callback.get("init_args") or {}).get("monitor"))
        for callback in (callbacks if isinstance(callbacks, list) else [callbacks])
        if isinstance(callback, Mapping)
    ]
    scheduler = config.get("lr_scheduler") or {}
    if isinstance(scheduler, Mapping):
        found.append(("lr_scheduler", scheduler.get("monitor") or (scheduler.get("init_args") or {}).get("monitor")))
    yield from ((where, monitor) for where, monitor in found if isinstance(monitor, str))


def check_disk(config: Mapping[str, Any], model: Any) -> Iterator[Finding]:
    """Yield the size of a run's checkpoints (an error if the disk is too small), and a note if none is the best one.

    Args:
        config: The configuration.
        model: The task, whose tensors may be on the meta device.
    """
    parameters = list(model.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    trainer = config.get("trainer") or {}
    size = kept = named = 0
    for callback in trainer.get("callbacks") or []:
        name = str(callback.get("class_path", "")) if isinstance(callback, Mapping) else ""
        if not name.endswith("ModelCheckpoint"):
            continue
        named += 1
        options = callback.get("init_args") or {}
        copies = _copies(options, trainer)
        # AdamW keeps two numbers for each weight that it trains.
        size += copies * WEIGHT_BYTES * (total + (0 if options.get("save_weights_only") else 2 * trained))
        kept += copies
    if not named and trainer.get("enable_checkpointing") is None:  # if true, TerraTorch saves the lowest val/loss
        kept, size = 1, WEIGHT_BYTES * (total + 2 * trained)
        yield Finding(
            "run: checkpoint",
            "note",
            "no ModelCheckpoint: Lightning keeps the weights of the last epoch, not those of the best.",
            "Add to trainer.callbacks: {class_path: ModelCheckpoint, init_args: {filename: best, monitor: val/loss}}.",
        )
    folder = Path(os.path.abspath(str(trainer.get("default_root_dir") or ".")))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    checkpoints = "1 checkpoint" if kept == 1 else f"{kept} checkpoints"
    seen = f"{total / 1e6:.1f} M weights, {trained / 1e6:.1f} M trainable; {checkpoints} of {size / 1e9:.2f} GB in all"
    if size > free:
        yield Finding("run: disk", "error", f"{seen}, {free / 1e9:.2f} GB free in {folder}.", "Keep fewer checkpoints.")
    else:
        yield Finding("run: disk", "ok", f"{seen}, {free / 1e9:.0f} GB free.")


def check_cache(datamodule: Any, plan: DataPlan) -> Iterator[Finding]:
    """Yield the size of the decoded chips, with a warning if the `cache` or its disk is too small for them.

    Args:
        datamodule: The data module.
        plan: The plan of its data set.
    """
    cache = getattr(datamodule, "cache", None)
    if not isinstance(cache, DecodedChips):
        return
    chips = [files for split in plan.splits for files in split.samples.values()]
    kinds = {path: kind for files in chips for kind, path in files.items() if is_raster(path)}
    needed = 0
    for kind, count in Counter(kinds.values()).items():
        # One file stands for all: other checks compare sizes and report damaged files.
        with suppress(*GDAL_ERRORS), rasterio.open(next(path for path in kinds if kinds[path] == kind)) as file:
            needed += count * file.height * file.width * sum(np.dtype(name).itemsize for name in file.dtypes)
    seen = f"decoded, {len(kinds)} rasters take {needed / 2**30:.3g} GiB"
    free = shutil.disk_usage(next(folder for folder in cache.folder.absolute().parents if folder.exists())).free
    if needed > cache.limit:
        yield Finding(
            "run: cache", "warning", f"{seen}, cache_gib is {cache.limit / 2**30:.3g}: the rest is not kept.",
            f"Set cache_gib: {needed * 1.05 / 2**30:.2g} or more.",
        )  # fmt: skip
    elif needed > free + cache.measure():
        yield Finding(
            "run: cache", "warning", f"{seen}, {free / 2**30:.2f} GiB free in {cache.folder}.",
            "Name a folder on a larger disk; otherwise the rest is decoded again at every read.",
        )  # fmt: skip
    else:
        yield Finding("run: cache", "ok", f"{seen}, {free / 2**30:.0f} GiB free.")


def _copies(options: Mapping[str, Any], trainer: Mapping[str, Any]) -> int:
    """Return the number of files that a checkpoint callback keeps; the number of saves if it keeps all."""
    count = options.get("save_top_k")
    count = 1 if count is None else int(count)
    if count < 0:
        steps, every = int(trainer.get("max_steps") or -1), int(options.get("every_n_train_steps") or 0)
        if every and steps > 0:
            count = steps // every
        else:
            # Lightning's default number of epochs, where none is given.
            epochs = trainer.get("max_epochs")
            count = max(1, int(1000 if epochs is None else epochs) // int(options.get("every_n_epochs") or 1))
    return count + bool(options.get("save_last"))


def check_vocabulary(config: Mapping[str, Any], datamodule: Any) -> Iterator[Finding]:
    """Yield a finding if coordinates are tokenized and their vocabulary is not on this machine.

    Args:
        config: The configuration.
        datamodule: Data module of the configuration; None if it cannot be built.
    """
    family = _family_of_coords(config, datamodule)
    vocabulary = COORDS_VOCABULARIES.get(family or "")
    if vocabulary is None or vocabulary.hub_repo is None:
        return
    if isinstance(try_to_load_from_cache(vocabulary.hub_repo, vocabulary.hub_file), str):
        return
    seen = f"{vocabulary.hub_file} of https://huggingface.co/{vocabulary.hub_repo}, which has the token ids of coords"
    if constants.HF_HUB_OFFLINE:
        advice = "Download it once without HF_HUB_OFFLINE, or leave coords out."
        yield Finding("yaml: coords", "error", f"{seen}, is not in {constants.HF_HUB_CACHE}.", advice)
    else:
        yield Finding("yaml: coords", "note", f"{seen}, is not on this machine yet: fit downloads it.")


def _family_of_coords(config: Mapping[str, Any], datamodule: Any) -> str | None:
    """Return the family of models whose vocabulary of coordinates is needed; None if none is."""
    if getattr(datamodule, "has_coords", False):  # pre-training
        return str(datamodule.variant.family)
    arguments = as_mapping(as_mapping(as_mapping(config.get("model")).get("init_args")).get("model_args"))
    variant = VARIANTS.get(str(arguments.get("backbone")).removesuffix("_tim"))
    loads = arguments.get("backbone_pretrained") or arguments.get("backbone_ckpt_path")
    names = [*(arguments.get("backbone_modalities") or ()), *(arguments.get("backbone_tim_observed") or ())]
    if variant is None or not loads or "coords" not in map(str, names):
        return None
    return variant.family
