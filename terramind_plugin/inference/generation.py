"""The commands `generate` and `reconstruct` for scenes of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from terramind_plugin.builders import build_generator, build_image_tokenizer
from terramind_plugin.errors import ConfigError
from terramind_plugin.generation.generator import TerraMindGenerator
from terramind_plugin.generation.token_generator import plan_targets
from terramind_plugin.inference.job import Job
from terramind_plugin.inference.makers import SceneGenerator, SceneImages, SceneTokenizer
from terramind_plugin.inference.options import Options
from terramind_plugin.inference.planning import plan_jobs, refuse_empty
from terramind_plugin.inference.runner import run_jobs
from terramind_plugin.inference.settings import Settings, loading_weights
from terramind_plugin.model.checkpoints import hash_weights
from terramind_plugin.model.modalities import Modality, resolve
from terramind_plugin.model.planning import plan_inputs
from terramind_plugin.model.variants import Variant
from terramind_plugin.raster.paths import raster_path
from terramind_plugin.raster.reader import Expected
from terramind_plugin.tokenizers.variants import tokenizers_of


def reconstruct(
    files: Sequence[Path],
    modality: str,
    settings: Settings,
    options: Options,
    variant: Variant,
    *,
    probabilities: bool = False,
) -> list[Path]:
    """Encode scenes to tokens, decode them again, and return the files written.

    Args:
        files: Rasters with the modality in its units.
        modality: Name of the modality.
        settings: How to run the tokenizer.
        options: How to go through scenes.
        variant: Model that the tokenizer belongs to.
        probabilities: Also write the probability of each pixel's class.

    Raises:
        ConfigError: The modality has no tokenizer, or a setting is not possible.
        DataError: A file cannot be used.
        WeightsError: The weights are missing or do not fit.
    """
    settings.check()
    entry = resolve(modality)
    known = tokenizers_of(variant.family)
    if entry.name not in known:
        raise ConfigError(f"{entry.name} has no image tokenizer. Modalities that have one: {', '.join(known)}.")
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
    """Generate other modalities of scenes window by window, and return the files written.

    Args:
        files: Rasters with the modality in its units.
        modality: Name of the modality.
        to: Names of the outputs, in the order of generation; each output conditions the later ones.
        settings: How to run the model.
        options: How to go through scenes.
        variant: Model.
        samples: Number of samples, from consecutive seeds.
        further: Other inputs of one scene, by modality: the path of a raster, or 'longitude,latitude' for coords.
        bands: Bands of `files`, if they lack some of the modality's; None for all.
        probabilities: Also write the probability of each pixel's class.

    Raises:
        ConfigError: A modality or setting is not possible.
        DataError: A file cannot be used.
        WeightsError: The weights are missing or do not fit.
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
    _place(jobs, positions, sequences)
    generator = _build_generator(variant, given, list(targets), settings, chosen)
    model = SceneGenerator(
        generator, positions=positions, seed=settings.seed, samples=samples, probabilities=probabilities
    )
    described = settings.describe(f"{variant.name}_generate", variant)
    described |= {"to": ", ".join(targets), "samples": str(samples)}
    described |= {"bands": ", ".join(bands)} if bands else {}
    described |= {name: further[name] for name in further if resolve(name).name in positions}
    return _run(model, jobs, "generated", described, options, sequences)


def _place(jobs: Sequence[Job], positions: Mapping[str, Tensor], sequences: Sequence[str]) -> None:
    """Set the positions of scenes.

    Raises:
        ConfigError: A position is to be generated for a scene of several windows.
        DataError: The only scene has no data.
    """
    for job in jobs:
        if sequences and len(job.plan) > 1:
            raise ConfigError(
                f"{sequences[0]} is the location of one window, and {job.path} is larger than a window. Leave "
                f"{sequences[0]} out of --to, or set --crop to the size of the image."
            )
        job.positions = {name: position[0].tolist() for name, position in positions.items()}
    refuse_empty(jobs)


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
    """Return the files of each scene by modality, and the positions [1, 2] that all scenes share.

    Args:
        files: As in `generate`.
        modality: As in `generate`.
        further: As in `generate`.

    Raises:
        ConfigError: A modality is unknown or named twice, a position is not valid, or there are several scenes.
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
    """Return the bands and units of a raster with some of a modality's bands."""
    entry = resolve(name)
    some = [entry.bands[entry.band_index(band)] for band in bands]
    return replace(Expected.of(entry), bands=tuple(band.name for band in some), fill=tuple(band.mean for band in some))


def read_position(entry: Modality, text: str) -> Tensor:
    """Return the position [1, 2] in a text 'longitude,latitude'.

    Raises:
        ConfigError: The text is not a position.
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
        bands: Bands of an input that lacks some of its modality's.

    Raises:
        ConfigError: One is not an input, or is both input and output.
    """
    plan_inputs(given, bands, tokens=True)
    both = [name for name in targets if name in given]
    if both:
        raise ConfigError(
            f"{both[0]} is input and output. To see a chip encoded and decoded, use terramind reconstruct."
        )
