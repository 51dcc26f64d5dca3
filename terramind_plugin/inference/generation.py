"""Scenes whose modalities a model generates from others, or encodes to tokens and decodes again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from terramind_plugin.builders import build_generator, build_image_tokenizer
from terramind_plugin.errors import ConfigError
from terramind_plugin.generation.generator import TerraMindGenerator
from terramind_plugin.generation.token_generator import plan_targets
from terramind_plugin.inference.job import Job
from terramind_plugin.inference.noise import SceneNoise
from terramind_plugin.inference.options import Options
from terramind_plugin.inference.outputs import count_channels, finish_modality, modality_layers
from terramind_plugin.inference.planning import plan_jobs, refuse_empty
from terramind_plugin.inference.runner import run_jobs
from terramind_plugin.inference.settings import Settings, loading_weights
from terramind_plugin.model.checkpoints import hash_weights
from terramind_plugin.model.modalities import Modality, find, resolve
from terramind_plugin.model.planning import plan_inputs
from terramind_plugin.model.standardisation import Standardisation
from terramind_plugin.model.variants import Variant
from terramind_plugin.raster.paths import raster_path
from terramind_plugin.raster.reader import Expected
from terramind_plugin.tokenizers.image import ImageTokenizer
from terramind_plugin.tokenizers.noise import Noise
from terramind_plugin.tokenizers.variants import tokenizers_of

LIKELY_POSITIONS = 5
"""Number of the likeliest positions that are written."""


class SceneImages(nn.Module):
    """A model of a scene that makes modalities: images in their units, and classes as probabilities.

    Args:
        targets: Modalities that the model makes; those without pixels get no layer.
        patch: Patch size of the model in pixels.
        names: First part of the endings of a modality's files.
        seed: Seed of the first sample.
        samples: Number of samples, from seeds one after the other.
        probabilities: Also make layers with the probability of the class.
    """

    def __init__(
        self,
        targets: Sequence[Modality],
        patch: int,
        names: Mapping[str, str],
        *,
        seed: int = 0,
        samples: int = 1,
        probabilities: bool = False,
    ) -> None:
        super().__init__()
        self.targets = [modality for modality in targets if modality.bands]
        self.patch = patch
        self.seed = seed
        self.samples = samples
        self.probabilities = probabilities
        self.layers = tuple(
            layer
            for modality in self.targets
            for layer in modality_layers(modality, names[modality.name], seed, samples, probabilities)
        )
        self.channels = samples * sum(map(count_channels, self.targets))

    @property
    def mixes_scenes(self) -> bool:
        """Return whether windows of several scenes may be in one batch."""
        return bool(self.layers)

    def make(self, images: Mapping[str, Tensor], noise: Noise) -> Mapping[str, Tensor]:
        """Return what the model makes of windows, by modality: images [B, bands, h, w] or scores of the classes.

        Args:
            images: By modality [B, bands, h, w] in its units, or class ids [B, h, w].
            noise: Random numbers of the windows.
        """
        raise NotImplementedError

    def forward(self, images: Mapping[str, Tensor], corners: Sequence[tuple[int, int]]) -> Tensor:
        """Return all samples of all modalities one after the other, [B, channels, h, w]."""
        x = {name: image[:, 0].long() if _has_classes(name) else image for name, image in images.items()}
        first = next(iter(images.values()))
        count, _, height, width = first.shape
        made = []
        for number in range(self.samples):
            outputs = self.make(x, SceneNoise(self.seed + number, corners, (height, width), self.patch))
            for modality in self.targets:
                values = outputs[modality.name].float()
                if modality.kind == "classes":
                    made.append(values.softmax(dim=1))
                    continue
                # The lower end of the decoder's range is below the smallest reflectance of some bands.
                finite = values.isfinite()
                made.append(values.clamp(*modality.valid_range).masked_fill(~finite, torch.nan))
        return torch.cat(made, dim=1) if made else first.new_empty(count, 0, height, width)

    def finish(self, blended: Tensor) -> list[Tensor]:
        """Return the values of each layer, [bands, rows, W]."""
        if not self.targets:
            return []
        all_samples = blended.reshape(self.samples, -1, *blended.shape[1:])
        by_target = torch.split(all_samples, list(map(count_channels, self.targets)), dim=1)
        return [
            result
            for modality, samples in zip(self.targets, by_target, strict=True)
            for result in finish_modality(modality, samples, self.probabilities)
        ]


def _has_classes(name: str) -> bool:
    modality = find(name)
    return modality is not None and modality.kind == "classes"


class SceneGenerator(SceneImages):
    """A generator as the model of a scene.

    Args:
        generator: Generator with `standardize`.
        positions: Inputs that are the same for all windows, [1, 2] as (longitude, latitude).
        sampling: As in `SceneImages`: seed, samples, probabilities.
    """

    def __init__(
        self, generator: TerraMindGenerator, *, positions: Mapping[str, Tensor] | None = None, **sampling: Any
    ) -> None:
        targets = generator.sampler.targets
        names = {name: name for name in targets}
        super().__init__(list(targets.values()), generator.sampler.model.patch_size, names, **sampling)
        self.generator = generator
        self.positions = dict(positions or {})
        self.sequences = [name for name, modality in targets.items() if modality.kind == "sequence"]
        self.found: dict[str, dict[str, Any]] = {}
        """Positions of the last window, by the ending of the file that they are written to."""
        self._drawn: list[Mapping[str, Tensor]] = []

    @property
    def mixes_scenes(self) -> bool:
        """Return whether windows of several scenes may be in one batch: positions that are found belong to one."""
        return bool(self.layers) and not self.sequences

    def make(self, images: Mapping[str, Tensor], noise: Noise) -> Mapping[str, Tensor]:
        """Return generated modalities, see `SceneImages.make`."""
        outputs: dict[str, Tensor] = self.generator(self._add_positions(images), noise=noise)
        self._drawn.append({name: outputs[name][0] for name in self.sequences})
        return outputs

    def forward(self, images: Mapping[str, Tensor], corners: Sequence[tuple[int, int]]) -> Tensor:
        """Return all samples of all images, see `SceneImages.forward`, and keep positions in `found`."""
        self._drawn = []
        made = super().forward(images, corners)
        if self.sequences:
            places = self.generator.locate(self._add_positions(images), LIKELY_POSITIONS)
            pairs = zip(places.positions[0].tolist(), places.probabilities[0].tolist(), strict=True)
            likely = [
                {"longitude": longitude, "latitude": latitude, "probability": float(f"{share:.6g}")}
                for (longitude, latitude), share in pairs
            ]
            for name in self.sequences:
                drawn = [_position(*outputs[name].tolist()) for outputs in self._drawn]
                self.found[name] = {"positions": likely, "samples": drawn, "grid": f"{places.step:g} degrees"}
        return made

    def _add_positions(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        count = len(next(iter(images.values())))
        return {**images, **{name: position.expand(count, -1) for name, position in self.positions.items()}}


def _position(longitude: float, latitude: float) -> dict[str, float] | None:
    """Return a position for JSON; None for NaN, where the drawn text is no position."""
    return None if math.isnan(longitude) else {"longitude": longitude, "latitude": latitude}


class SceneTokenizer(SceneImages):
    """A tokenizer as the model of a scene: images encoded to tokens and decoded again.

    Args:
        tokenizer: Tokenizer of one modality.
        steps: Denoising steps of an image.
        seed: Seed of the random numbers.
        probabilities: As in `SceneImages`.
    """

    def __init__(self, tokenizer: ImageTokenizer, steps: int, seed: int, probabilities: bool = False) -> None:
        modality = tokenizer.variant.modality
        names = {modality.name: f"{modality.name}_reconstructed"}
        super().__init__([modality], tokenizer.patch_size, names, seed=seed, probabilities=probabilities)
        self.tokenizer = tokenizer
        self.steps = steps
        self.scale = None if modality.kind == "classes" else Standardisation(modality.mean, modality.std)

    def make(self, images: Mapping[str, Tensor], noise: Noise) -> Mapping[str, Tensor]:
        """Return the reconstruction, see `SceneImages.make`."""
        ((name, image),) = images.items()
        if self.scale is None:  # a decoder of classes starts from no noise
            return {name: self.tokenizer(image)}
        start = noise.normal(self.tokenizer.channels, *image.shape[-2:])
        return {name: self.scale.undo(self.tokenizer(self.scale(image), self.steps, noise=start))}


def reconstruct(
    files: Sequence[Path],
    modality: str,
    settings: Settings,
    options: Options,
    variant: Variant,
    *,
    probabilities: bool = False,
) -> list[Path]:
    """Write scenes encoded to tokens and decoded again, and return the files written.

    Args:
        files: Rasters with the modality in its units.
        modality: Name of the modality.
        settings: How to run the tokenizer.
        options: How to go through scenes.
        variant: Model whose tokenizer it is.
        probabilities: Also write the probability of each pixel's class.

    Raises:
        ConfigError: The modality has no tokenizer, or a setting is not possible.
        DataError: A file cannot be used.
        WeightsError: The weights are not there or do not fit.
    """
    settings.check()
    entry = resolve(modality)
    known = tokenizers_of(variant.family)
    if entry.name not in known:
        raise ConfigError(f"{entry.name} has no image tokenizer. These have one: {', '.join(known)}.")
    name, patch = known[entry.name].name, known[entry.name].patch_size
    expected = {entry.name: Expected.of(entry)}
    options = options.settle(known[entry.name].image_size, patch)
    jobs = plan_jobs([{entry.name: path} for path in files], expected, options, patch, align=True)
    refuse_empty(jobs)
    with loading_weights():
        tokenizer = build_image_tokenizer(name, pretrained=settings.pretrained, ckpt_path=settings.ckpt_path)
    model = SceneTokenizer(tokenizer, settings.steps, settings.seed, probabilities)
    return _run(model, jobs, f"{entry.name}_reconstructed", settings.describe(name, variant), options)


def generate(
    files: Sequence[Path],
    modality: str,
    to: Sequence[str],
    settings: Settings,
    options: Options,
    variant: Variant,
    *,
    samples: int = 1,
    further: Mapping[str, str] | None = None,
    bands: Sequence[str] | None = None,
    probabilities: bool = False,
) -> list[Path]:
    """Write other modalities of scenes, generated window by window, and return the files written.

    Args:
        files: Rasters with the modality in its units.
        modality: Name of the modality.
        to: Names of the outputs, in the order of generation; each conditions those after it.
        settings: How to run the model.
        options: How to go through scenes.
        variant: Model.
        samples: Number of samples, from seeds one after the other.
        further: Other inputs of one scene: rasters by modality, and 'longitude,latitude' for coords.
        bands: Bands of `files`, where they have not all of the modality; None for all.
        probabilities: Also write the probability of each pixel's class.

    Raises:
        ConfigError: A modality or setting is not possible.
        DataError: A file cannot be used.
        WeightsError: The weights are not there or do not fit.
    """
    settings.check()
    if samples < 1:
        raise ConfigError(f"samples must be at least 1, got {samples}.")
    targets = {target.name: target for target in plan_targets(to).values()}
    further = further or {}
    scenes, positions = sort_inputs(files, modality, further)
    given = [*scenes[0], *positions]
    chosen = {next(iter(scenes[0])): list(bands)} if bands else None
    check_modalities(given, targets, chosen)
    expected = {name: Expected.of(resolve(name)) for name in scenes[0]}
    expected |= {name: _expect_some(name, some) for name, some in (chosen or {}).items()}
    options = options.settle(variant.img_size, variant.patch_size)
    jobs = plan_jobs(scenes, expected, options, variant.patch_size, align=True)
    sequences = [name for name, target in targets.items() if target.kind == "sequence"]
    for job in jobs:
        if sequences and len(job.plan) > 1:
            raise ConfigError(
                f"{sequences[0]} says where one chip is, not a scene: {job.path} is larger than a window. Leave "
                f"{sequences[0]} out of --to, or set --crop to the size of the image."
            )
        job.positions = {name: position[0].tolist() for name, position in positions.items()}
    refuse_empty(jobs)
    generator = _build_generator(variant, given, list(targets), settings, chosen)
    model = SceneGenerator(
        generator, positions=positions, seed=settings.seed, samples=samples, probabilities=probabilities
    )
    described = settings.describe(f"{variant.name}_generate", variant)
    described |= {"to": ", ".join(targets), "samples": str(samples)}
    described |= {"bands": ", ".join(bands)} if bands else {}
    described |= {name: further[name] for name in further if resolve(name).name in positions}
    return _run(model, jobs, "generated", described, options, sequences)


def _build_generator(
    variant: Variant,
    given: Sequence[str],
    targets: Sequence[str],
    settings: Settings,
    bands: Mapping[str, Sequence[str]] | None,
) -> TerraMindGenerator:
    with loading_weights():
        return build_generator(
            variant.name,
            list(given),
            targets,
            pretrained=settings.pretrained,
            ckpt_path=settings.ckpt_path,
            tokenizer_ckpt_paths=settings.tokenizer_ckpt_paths,
            tokenizer_file=settings.tokenizer_file,
            standardize=True,
            timesteps=settings.steps,
            bands=bands,
        )


def _run(
    model: SceneImages,
    jobs: Sequence[Job],
    command: str,
    described: Mapping[str, str],
    options: Options,
    sequences: Sequence[str] = (),
) -> list[Path]:
    described = {**described, "weights_sha256": hash_weights(model.state_dict())[:16]}
    for job in jobs:
        job.decide(command, model.layers, described, options, found=sequences)
    return run_jobs(model, jobs, options)


def sort_inputs(
    files: Sequence[Path], modality: str, further: Mapping[str, str]
) -> tuple[list[dict[str, Path]], dict[str, Tensor]]:
    """Return the files of each scene by modality, and positions [1, 2] that are the same for all.

    Args:
        files: As in `generate`.
        modality: As in `generate`.
        further: As in `generate`.

    Raises:
        ConfigError: A modality is unknown or named twice, a position is none, or there are several scenes.
    """
    first = resolve(modality).name
    positions: dict[str, Tensor] = {}
    others: dict[str, Path] = {}
    for name, source in further.items():
        entry = resolve(name)
        if entry.name in (first, *positions, *others):
            raise ConfigError(f"{entry.name} is given twice as input.")
        if entry.kind == "sequence":
            positions[entry.name] = read_position(entry, source)
        else:
            others[entry.name] = raster_path(source)
    if others and len(files) > 1:
        raise ConfigError(f"--input {next(iter(others))} belongs to one scene, got {len(files)}. Run one command each.")
    return [{first: path, **others} for path in files], positions


def _expect_some(name: str, bands: Sequence[str]) -> Expected:
    """Return what a raster with some of a modality's bands holds."""
    entry = resolve(name)
    some = [entry.bands[entry.band_index(band)] for band in bands]
    return replace(Expected.of(entry), bands=tuple(band.name for band in some), fill=tuple(band.mean for band in some))


def read_position(entry: Modality, text: str) -> Tensor:
    """Return [1, 2] of a text 'longitude,latitude'.

    Raises:
        ConfigError: The text is no position.
    """
    try:
        longitude, latitude = map(float, text.split(","))
    except ValueError:
        raise ConfigError(f"{entry.name} is given as longitude,latitude in degrees, got '{text}'.") from None
    return torch.tensor([[longitude, latitude]], dtype=torch.float64)


def check_modalities(
    given: Sequence[str], targets: Mapping[str, Modality], bands: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Check names before weights are loaded.

    Args:
        given: Names of the inputs.
        targets: Outputs by name.
        bands: Bands of an input that has not all of its modality.

    Raises:
        ConfigError: One is no input, or input and output.
    """
    plan_inputs(given, bands, tokens=True)
    both = [name for name in targets if name in given]
    if both:
        raise ConfigError(
            f"{both[0]} is input and output. To see a chip encoded and decoded, use terramind reconstruct."
        )
