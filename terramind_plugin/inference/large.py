"""Generation of scenes that are larger than a chip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from terramind_plugin.cache.keys import hash_weights
from terramind_plugin.errors import ConfigError
from terramind_plugin.inference.chips import (
    Settings,
    check_generation,
    check_modalities,
    generate,
    load_generator,
    read_position,
)
from terramind_plugin.inference.job import Options, check_names, plan_job
from terramind_plugin.model.modalities import resolve
from terramind_plugin.raster.paths import raster_path
from terramind_plugin.raster.reader import Expected, Source


def generate_any(
    files: Sequence[Path],
    modality: str,
    to: Sequence[str],
    settings: Settings,
    options: Options,
    *,
    size: str = "base",
    samples: int = 1,
    further: Mapping[str, str] | None = None,
    probabilities: bool = False,
) -> list[Path]:
    """Return the files written: other modalities of chips or scenes.

    One file that is not larger than a window is a chip; everything else goes through in windows.

    Args:
        files: Rasters with the modality in its units.
        modality: Name of the modality.
        to: Names of the outputs, in the order of generation.
        settings: How to run the model.
        options: How to run it over scenes.
        size: Of the model: tiny, small, base, large or nano.
        samples: How many times to generate, from seeds one after the other.
        further: Other inputs of one file, by modality.
        probabilities: Also write the probability of each pixel's class.

    Raises:
        ConfigError: A modality or setting is not possible.
        DataError: A file cannot be used.
        WeightsError: The weights are not there or do not fit.
    """
    further = further or {}
    if len(files) == 1 and not probabilities and _is_chip(files[0], modality, options.crop):
        return generate(files[0], modality, to, options.out, settings, size=size, samples=samples, further=further)
    variant, targets = check_generation(to, settings, size, samples)
    if any(target.kind == "sequence" for target in targets):
        raise ConfigError(
            f"coords says where one chip is, not a scene: {', '.join(map(str, files))} is larger than a window. Leave "
            "coords out of --to, or set --crop to the size of the image."
        )
    inputs, positions = _sort_inputs(files, modality, further)
    expected = {name: Expected.of(resolve(name)) for name in inputs[0]}
    given = [*expected, *positions]
    check_modalities(given, targets)
    jobs = [plan_job(one, expected, options, variant.patch_size) for one in inputs]
    check_names(jobs)

    # Here and not at the top: chips do without Lightning, whose import takes seconds.
    from terramind_plugin.inference.generation import SceneGenerator
    from terramind_plugin.inference.runner import run_jobs

    model = SceneGenerator(
        load_generator(variant, given, targets, settings),
        seed=settings.seed,
        samples=samples,
        positions=positions,
        probabilities=probabilities,
    )
    described = settings.describe(f"{variant.name}_generate", variant) | {
        "weights_sha256": hash_weights(model).hexdigest()[:16]
    }
    described |= {"to": ", ".join(target.name for target in targets), "samples": str(samples)}
    described |= {name: further[name] for name in further if resolve(name).name in positions}
    for job in jobs:
        job.decide("generated", model.layers, described, options)
    return run_jobs(model, jobs, options)


def _is_chip(path: Path, modality: str, crop: int) -> bool:
    source = Source(path, Expected.of(resolve(modality)))
    source.close()
    return max(source.grid.shape) <= crop


def _sort_inputs(
    files: Sequence[Path], modality: str, further: Mapping[str, str]
) -> tuple[list[dict[str, Path]], dict[str, Tensor]]:
    """Return files by modality for each scene, and positions that are the same for all."""
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
