"""Running a fine-tuned task over whole scenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from terratorch.tasks import PixelwiseRegressionTask, SemanticSegmentationTask
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from terramind_plugin.backbones.network import compile_network
from terramind_plugin.data.classes import class_names_of
from terramind_plugin.data.dates import dates_taken
from terramind_plugin.errors import ConfigError
from terramind_plugin.inference.inputs import FileInput, band_names, entry_of
from terramind_plugin.inference.job import Job
from terramind_plugin.inference.options import Options, SatelliteArguments
from terramind_plugin.inference.outputs import NO_DATA, choose_classes, class_layer, value_layer
from terramind_plugin.inference.planning import plan_jobs, refuse_dates, refuse_nowhere
from terramind_plugin.inference.processes import quiet
from terramind_plugin.inference.runner import run_jobs
from terramind_plugin.inference.satellites import open_jobs
from terramind_plugin.inference.scenes import pair_series
from terramind_plugin.inference.windows import locate_windows, training_size
from terramind_plugin.integration.compilation import network_of
from terramind_plugin.integration.decoders import fix_kernels, upsample_at_once
from terramind_plugin.integration.fine_tuned import load_task, task_files
from terramind_plugin.integration.lightning_cli import TerraMindCLI, make_cli
from terramind_plugin.model.checkpoints import hash_weights
from terramind_plugin.model.modalities import find
from terramind_plugin.model.standardisation import Standardised
from terramind_plugin.plotting.pictures import LABEL_COLORS
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.raster.reader import Expected
from terramind_plugin.raster.writer import Layer
from terramind_plugin.system.files import hash_content

Network = TypeVar("Network", bound=nn.Module)

SETTINGS = (
    "constant_scale", "offsets", "no_data_replace", "dataset_bands", "output_bands", "allow_missing_modalities",
)  # fmt: skip
"""Attributes of data modules that determine how files are read."""


class SceneTask(nn.Module):
    """A task as the model of a scene: classes by their probabilities, or regressed values.

    Args:
        task: Task that segments or regresses pixels.
        inputs: Standardisation of each modality.
        dates: Number of dates of each series of a scene, by modality; empty if the task takes no series.
        joined: Whether the task expects one image of the bands of all modalities.
        probabilities: Also write a file with the probabilities of all classes.
        window: Height and width of a window in pixels.
        class_names: Names of the classes; empty to use their numbers.
        positions: Name of the input that is the position of a window; None if there is none.

    Raises:
        ConfigError: The task does not predict maps.
    """

    def __init__(
        self,
        task: LightningModule,
        inputs: Mapping[str, Standardised],
        probabilities: bool,
        window: tuple[int, int],
        class_names: Sequence[str] = (),
        *,
        dates: Mapping[str, int] | None = None,
        joined: bool = False,
        positions: str | None = None,
    ) -> None:
        super().__init__()
        self.positions = positions
        self.grid: Grid | None = None
        """Grid of the scene, set by `begin`."""
        if not isinstance(task, SemanticSegmentationTask | PixelwiseRegressionTask):
            raise ConfigError(
                f"{type(task).__name__} does not predict maps. `terramind map` runs SemanticSegmentationTask and "
                "PixelwiseRegressionTask; for others cut the scene into chips and use `terramind predict`."
            )
        self.task = task
        self.inputs = nn.ModuleDict(inputs)
        self.single = len(inputs) == 1 and "image" in inputs
        self.dated, self.joined = bool(dates), joined
        self.classes = isinstance(task, SemanticSegmentationTask)
        with torch.no_grad():
            sizes = {name: (len(scale.mean), *_dates_of(name, dates)) for name, scale in inputs.items()}
            made = self({name: torch.zeros(1, *bands, *window) for name, bands in sizes.items()}, [(0, 0)])
        self.channels = made.shape[1]
        if self.classes and self.channels < 2:
            raise ConfigError(f"The task has {self.channels} class; a map of classes needs two. Set num_classes: 2.")
        self.layers = self._layers(probabilities, tuple(class_names))

    def forward(self, images: Mapping[str, Tensor], corners: Sequence[tuple[int, int]]) -> Tensor:
        """Return probabilities [B, classes, h, w] or values [B, 1, h, w]."""
        x: Any = {name: scale(images[name]) for name, scale in self.inputs.items()}
        if self.dated:
            count = max(image.shape[2] for image in x.values())
            x = {name: image.expand(-1, -1, count, -1, -1) for name, image in x.items()}
        known = {name: ~image.isnan().flatten(3).all(dim=3).all(dim=1) for name, image in x.items() if self.dated}
        lacking: dict[str, Any] = {} if all(one.all() for one in known.values()) else {"modality_mask": known}
        x = torch.cat(list(x.values()), dim=1) if self.joined else x
        if self.positions is not None:
            first = next(iter(x.values()))
            x[self.positions] = locate_windows(self.grid, corners, first.shape[-2:]).to(first.device)
        given = x["image"] if self.single and not self.joined else x
        output: Tensor = self.task(given, **lacking).output.float()
        if self.classes:
            return output.softmax(dim=1)
        return output[:, None] if output.ndim == 3 else output

    def prepare(self, mode: str) -> None:
        """Prepare for windows of one size, see `SceneModel`."""
        decoder: Any = getattr(self.task.model, "decoder", None)
        if isinstance(decoder, nn.Module) and next((one.is_cuda for one in decoder.parameters()), False):
            decoder.to(memory_format=torch.channels_last)  # like its inputs, which come from tokens
        network = network_of(self.task)
        if network is not None:
            compile_network(network, mode)

    @property
    def mixes_scenes(self) -> bool:
        """Return whether windows of several scenes may be in one batch."""
        return self.positions is None

    def begin(self, grid: Grid) -> None:
        """Set the grid of the scene whose windows come next."""
        self.grid = grid

    def finish(self, blended: Tensor) -> list[Tensor]:
        """Return the values of each layer, [bands, rows, W]: class map and maybe probabilities, or regressed values."""
        if not self.classes:
            return [blended]
        return [choose_classes(blended, NO_DATA)[0]] + ([blended] if len(self.layers) > 1 else [])

    def _layers(self, probabilities: bool, given: tuple[str, ...]) -> tuple[Layer, ...]:
        if not self.classes:
            bands = [f"prediction_{number + 1}" for number in range(self.channels)]
            return (value_layer("pred", bands if len(bands) > 1 else ["prediction"], ""),)
        names = given if len(given) == self.channels else tuple(map(str, range(self.channels)))
        tags = {f"class_{number}": name for number, name in enumerate(names)}
        classes = class_layer("pred", names, LABEL_COLORS, tags=tags)
        return (classes, value_layer("probabilities", names, "1"))[: 1 + probabilities]


def _dates_of(name: str, dates: Mapping[str, int] | None) -> tuple[int, ...]:
    """Return the size of the dimension of dates, as a tuple; an empty tuple for images of one date."""
    return (dates[name],) if dates else ()


def map_scenes(
    config: Path | None,
    ckpt_path: Path | None,
    files: Sequence[Sequence[str]],
    options: Options,
    overrides: Sequence[str] = (),
    *,
    probabilities: bool = False,
    satellites: SatelliteArguments | None = None,
    model: str | None = None,
) -> list[Path]:
    """Write a fine-tuned task's maps of scenes, and return the files written.

    Args:
        config: TerraTorch YAML that the task was trained with; None with `model`.
        ckpt_path: Weights of the task: a Lightning checkpoint; None with `model`.
        files: For each modality the files of all scenes, in the same order; the first may be written NAME=FILE. The
            files of a series are separated by commas, in the order of time.
        options: Options of the run.
        overrides: Further options, as for `terramind fit`.
        probabilities: Also write the probabilities of all classes.
        satellites: Catalogues that give the scenes instead of `files`.
        model: Fine-tuned model that contains its configuration: 'hub:ORG/NAME', an exported folder or a checkpoint.

    Raises:
        ConfigError: The configuration, the windows or the names are not possible, or the checkpoint belongs to another
            model.
        DataError: A file cannot be used.
        WeightsError: The checkpoint cannot be read or does not fit.
    """
    with task_files(model, config, ckpt_path) as found, quiet():
        cli = make_cli(["--config", str(found.config), *overrides], found.weights)
    patch = patch_size(cli.model)
    expected, scales = read_data_module(cli.datamodule, cli.model)
    dated = any(one.dated for one in expected.values())
    scenes = [] if satellites is not None else pair_series(files, list(expected), dated=dated)
    crop = found.size if options.crop is None else options.crop
    crop = training_size(cli.config, cli.datamodule, cli.model, patch) if crop is None else crop
    options = options.settle(crop, patch)
    plan = partial(plan_jobs, expected=expected, options=options, patch=patch)
    jobs = plan(scenes)
    taken = dates_taken(cli.model)
    refuse_dates(jobs, taken)
    load_task(cli, found.weights)
    described = _describe(cli, found.name, scales, dated)
    with open_jobs(jobs, satellites, expected, options, plan, "map", taken) as run:
        network = _build_network(cli, scales, run.jobs, probabilities)
        for number, job in enumerate(run.jobs):
            job.decide("map", network.layers, described | run.describe(number), options)
        return run.finish(run_jobs(network, run.jobs, options))


def _describe(cli: TerraMindCLI, weights: str, scales: Mapping[str, Standardised], dated: bool) -> dict[str, Any]:
    """Return what determines the map, apart from files and windows."""
    described = {
        "model": _name(cli.model),
        "weights": weights,
        "weights_sha256": hash_weights(cli.model.model.state_dict())[:16],
        "inputs_sha256": _hash_inputs(scales),
    }
    joined = bool(getattr(cli.datamodule, "concat_bands", False))
    if joined or dated:
        described["series"] = _describe_series(cli.model, cli.datamodule, joined)
    return described


def _build_network(
    cli: TerraMindCLI, scales: Mapping[str, Standardised], jobs: Sequence[Job], probabilities: bool
) -> SceneTask:
    """Return the task as the model of scenes, for windows of the first scene's size.

    Raises:
        ConfigError: The task does not predict maps.
        DataError: A scene has no georeference, and the model needs one.
    """
    refuse_nowhere(jobs, getattr(cli.datamodule, "positions", None))
    return SceneTask(
        for_inference(cli.model),
        scales,
        probabilities,
        jobs[0].plan.window,
        class_names_of(cli.model, cli.datamodule),
        dates=jobs[0].dates,
        joined=bool(getattr(cli.datamodule, "concat_bands", False)),
        positions=getattr(cli.datamodule, "positions", None),
    )


def patch_size(task: LightningModule) -> int:
    """Return the patch size of a task's model in pixels; 1 for a model without patches."""
    patches = [getattr(module, "patch_size", None) for module in task.modules()]
    return next((patch for patch in patches if isinstance(patch, int)), 1)


def _hash_inputs(inputs: Mapping[str, Standardised]) -> str:
    """Return a hash of the numbers that standardise inputs, because the map depends on them."""
    return hash_content({name: scale.numbers() for name, scale in inputs.items()})


def _name(task: LightningModule) -> str:
    args = task.hparams.get("model_args") or {}
    parts = [args.get("backbone"), args.get("decoder")]
    return " with ".join(str(part) for part in parts if part) or type(task).__name__


def read_data_module(datamodule: Any, task: LightningModule) -> tuple[dict[str, Expected], dict[str, Standardised]]:
    """Return the bands and units of each modality's files, and the standardisation of the task's inputs.

    Args:
        datamodule: TerraMindDataModule, or one of TerraTorch's generic ones.
        task: Task, which names the modality if the data module does not.

    Raises:
        ConfigError: The data module has no means and stds, or its inputs are not images.
    """
    means, stds = (
        getattr(datamodule, f"band_{what}", None) or getattr(datamodule, what, None) for what in ("means", "stds")
    )
    if not means or not stds:
        raise ConfigError(
            f"{type(datamodule).__name__} has no means and stds, so `terramind map` cannot standardise a scene. Use "
            "terramind_plugin.TerraMindDataModule, or one of TerraTorch's generic data modules."
        )
    dated = bool(getattr(datamodule, "expand_temporal_dimension", False) or getattr(datamodule, "temporal", False))
    several = isinstance(means, Mapping)
    names = list(means) if several else ["image"]
    settings = {what: getattr(datamodule, what, None) for what in SETTINGS}
    sources = getattr(datamodule, "sources", None) or {}
    fill = settings["no_data_replace"]
    inputs = {}
    for name in names:
        mean, std = (tuple(map(float, numbers[name] if several else numbers)) for numbers in (means, stds))
        inputs[name] = FileInput(
            name,
            find(sources.get(name) or _modality(name, task)),
            mean,
            std,
            entry_of(settings, "constant_scale", name) or 1.0,
            entry_of(settings, "offsets", name) or 0.0,
            None if fill is None else float(fill),
            band_names(entry_of(settings, "dataset_bands", name)),
            band_names(entry_of(settings, "output_bands", name)),
            dated=dated,
            by_band=name in by_band(datamodule),
            keep_missing=dated and bool(settings["allow_missing_modalities"]),
        )
    expected = {name: one.expect() for name, one in inputs.items()}
    return expected, {name: one.standardise() for name, one in inputs.items()}


def _describe_series(task: LightningModule, datamodule: Any, joined: bool) -> str:
    """Return what determines the map of a series, apart from weights and files."""
    args = task.hparams.get("model_args") or {}
    parts = [f"{key.removeprefix('backbone_')} {args[key]}" for key in sorted(args) if "temporal_" in key]
    parts += [f"dates of a band together: {', '.join(sorted(by_band(datamodule)))}"] if by_band(datamodule) else []
    return "; ".join([*parts, *(["bands of all modalities joined"] if joined else [])]) or "temporal_pooling mean"


def by_band(datamodule: Any) -> frozenset[str]:
    """Return the modalities whose files hold all dates of a band together, not all bands of a date."""
    return frozenset(getattr(datamodule, "by_band", ()))


def _modality(name: str, task: LightningModule) -> str:
    listed = (task.hparams.get("model_args") or {}).get("backbone_modalities") or []
    return str(listed[0]) if name == "image" and len(listed) == 1 else name


def for_inference(model: Network) -> Network:
    """Return a model in evaluation mode, optimised so that it can no longer be trained.

    UNet blocks upsample and convolve in one step, and batch norms are merged into the preceding convolutions.

    Args:
        model: Model; its modules and weights are changed in place.
    """
    model.eval().requires_grad_(False)
    upsample_at_once(model)
    for module in list(model.modules()):
        if type(module).forward is nn.Sequential.forward:
            _fold_norms(module)
    return fix_kernels(model)


def _fold_norms(layers: nn.Module) -> None:
    for (name, layer), (next_name, norm) in pairwise(list(layers.named_children())):
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        if norm.running_mean is not None:
            setattr(layers, name, fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, nn.ConvTranspose2d)))
            setattr(layers, next_name, nn.Identity())
