"""Reconstruction and generation of one chip, from file to files."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from terramind_plugin._version import __version__
from terramind_plugin.builders.generators import build_generator, plan_generator_inputs
from terramind_plugin.builders.tokenizers import build_image_tokenizer
from terramind_plugin.errors import ConfigError, WeightsNotFoundError, check_seed
from terramind_plugin.generation.generator import Places, TerraMindGenerator
from terramind_plugin.generation.tokens import plan_targets
from terramind_plugin.inference.chip_picture import Output, draw_results
from terramind_plugin.inference.chip_results import NO_CLASS, Results, spread_of
from terramind_plugin.inference.classes import choose_classes
from terramind_plugin.inference.noise import SceneNoise
from terramind_plugin.model.modalities import Modality, resolve
from terramind_plugin.model.standardisation import Standardisation
from terramind_plugin.model.variants import SIZES, VARIANTS, Variant
from terramind_plugin.raster.missing import describe_undeclared
from terramind_plugin.raster.reader import Chip, pad, read_chip
from terramind_plugin.tokenizers.diffusion import TRAINING_STEPS
from terramind_plugin.tokenizers.variants import tokenizers_of

logger = logging.getLogger("terramind_plugin")

WEIGHTS_SEED = 0
"""Random weights are the same in every run, so that a seed gives the same result."""
PLACES = 5
"""Likely positions that are written."""


@dataclass(frozen=True)
class Settings:
    """How to run a model; the same for reconstruction and generation."""

    pretrained: bool = True
    """Load the published weights."""
    ckpt_path: Path | None = None
    """A file with weights that goes before them."""
    steps: int = 10
    """Denoising steps of an image."""
    seed: int = 0
    """Where random numbers start; sample i starts from seed + i."""
    verbose: bool = False
    """Show a progress bar."""
    tokenizer_ckpt_paths: Mapping[str, Path] = field(default_factory=dict)
    """Files with tokenizer weights, by modality; for generation."""
    tokenizer_file: Path | None = None
    """Vocabulary of coordinates; for generation."""

    def check(self) -> None:
        """Raise a ConfigError if a number is not possible, before anything slow begins."""
        if not 1 <= self.steps <= TRAINING_STEPS:
            raise ConfigError(f"steps must be from 1 to {TRAINING_STEPS}, got {self.steps}.")
        check_seed(self.seed)

    def describe(self, model: str, variant: Variant, chips: Sequence[Chip] = ()) -> dict[str, str]:
        """Return the tags of what the model makes."""
        own = "published" if variant.hub_repo else "shipped with terramind_plugin, trained on simulated worlds"
        weights = own if self.pretrained else f"random, from seed {WEIGHTS_SEED}"
        tags = {"model": model, "weights": weights if self.ckpt_path is None else _fingerprint(self.ckpt_path)}
        if self.tokenizer_ckpt_paths:
            files = {name: _fingerprint(path) for name, path in self.tokenizer_ckpt_paths.items()}
            tags["tokenizer_weights"] = "; ".join(f"{name}: {text}" for name, text in files.items())
        tags |= {"seed": str(self.seed), "steps": str(self.steps), "terramind_plugin_version": __version__}
        inputs = ", ".join(f"{chip.modality.name}: {chip.path.name}" for chip in chips)
        return {**tags, "input": inputs} if chips else tags


def reconstruct(
    chip: str | Path, modality: str, out: str | Path, settings: Settings, *, size: str = "base"
) -> list[Path]:
    """Return the files written: the chip after encoding to tokens and back, and a picture of both.

    Args:
        chip: A raster with the modality in its units.
        modality: Name of the modality.
        out: Folder to write to.
        settings: How to run the tokenizer.
        size: Of the model: nano has tokenizers of its own, the published ones share theirs.

    Raises:
        ConfigError: The modality has no tokenizer, or a setting is not possible.
        DataError: The file cannot be used.
        WeightsError: The weights are not there or do not fit.
    """
    settings.check()
    entry = resolve(modality)
    variant = variant_of(size)
    names = {name: one.name for name, one in tokenizers_of(variant.family).items()}
    if entry.name not in names:
        raise ConfigError(f"{entry.name} has no image tokenizer. These have one: {', '.join(names)}.")
    source = read_chip(chip, entry)
    with _weights():
        tokenizer = build_image_tokenizer(
            names[entry.name], pretrained=settings.pretrained, ckpt_path=settings.ckpt_path
        )
    _report(source)
    results = Results(out, [source], settings.describe(names[entry.name], variant, [source]))
    x = _tensor(source, variant.patch_size)
    scale = Standardisation(entry.mean, entry.std) if entry.kind == "image" else None
    with torch.no_grad():
        image = tokenizer(
            x if scale is None else scale(x), settings.steps, seed=settings.seed, verbose=settings.verbose
        )
    made = _to_array(entry, image if scale is None else scale.undo(image), source.size)
    results.write_image(f"{entry.name}_reconstructed", entry, made)
    figure = draw_results([(entry, source.measured())], [Output(entry, [made])], _title(source, results.tags))
    results.write_picture(f"{entry.name}_reconstructed", figure)
    return results.written


def generate(
    chip: str | Path,
    modality: str,
    to: Sequence[str],
    out: str | Path,
    settings: Settings,
    *,
    size: str = "base",
    samples: int = 1,
    further: Mapping[str, str] | None = None,
) -> list[Path]:
    """Return the files written: images of other modalities, imagined from a chip, and a picture of all.

    Args:
        chip: A raster with the modality in its units.
        modality: Name of the modality.
        to: Names of the outputs, in the order of generation; each conditions those after it.
        out: Folder to write to.
        settings: How to run the model.
        size: Of the model: tiny, small, base, large or nano.
        samples: How many times to generate, from seeds one after the other.
        further: Other inputs by modality: rasters on the grid of the chip, and 'longitude,latitude' for coords.

    Raises:
        ConfigError: A modality or setting is not possible.
        DataError: A file cannot be used.
        WeightsError: The weights are not there or do not fit.
    """
    variant, targets = check_generation(to, settings, size, samples)
    chips, positions = _read_inputs(chip, modality, further or {})
    given = [one.modality.name for one in chips] + list(positions)
    check_modalities(given, targets)
    model = load_generator(variant, given, targets, settings)
    for one in chips:
        _report(one)
    results = Results(out, chips, settings.describe(f"{variant.name}_generate", variant, chips))
    x = {one.modality.name: _tensor(one, variant.patch_size) for one in chips} | positions
    size_in_model = next(iter(x.values())).shape[-2:]
    drawn: list[dict[str, NDArray]] = []
    for number in range(samples):
        # As for the first window of a scene, so that a chip gives the same alone and in a scene of its size.
        noise = SceneNoise(settings.seed + number, [(0, 0)], (size_in_model[0], size_in_model[1]), variant.patch_size)
        images = model(x, noise=noise, verbose=settings.verbose)
        drawn.append({target.name: _to_array(target, images[target.name], chips[0].size) for target in targets})
    places = model.locate(x, PLACES) if any(target.kind == "sequence" for target in targets) else None
    outputs = [
        _write(results, target, [one[target.name] for one in drawn], settings.seed, places) for target in targets
    ]
    inputs = [(one.modality, one.measured()) for one in chips]
    inputs += [(resolve(name), position[0].numpy()) for name, position in positions.items()]
    results.write_picture("generated", draw_results(inputs, outputs, _title(chips[0], results.tags)))
    return results.written


def check_generation(to: Sequence[str], settings: Settings, size: str, samples: int) -> tuple[Variant, list[Modality]]:
    """Return the model and the outputs; arguments as in `generate`.

    Raises:
        ConfigError: An argument is not possible.
    """
    settings.check()
    variant = variant_of(size)
    if samples < 1:
        raise ConfigError(f"samples must be at least 1, got {samples}.")
    return variant, list(plan_targets(to).values())


def variant_of(size: str) -> Variant:
    """Return the model of a size.

    Raises:
        ConfigError: There is none.
    """
    if size not in SIZES:
        raise ConfigError(f"Unknown size '{size}'. Known: {', '.join(SIZES)}.")
    return VARIANTS[SIZES[size]]


def load_generator(
    variant: Variant, given: Sequence[str], targets: Sequence[Modality], settings: Settings
) -> TerraMindGenerator:
    """Return a generator between modalities in their units.

    Args:
        variant: The model.
        given: Names of the inputs.
        targets: Outputs.
        settings: Weights and steps.

    Raises:
        ConfigError: A setting is not possible.
        WeightsError: The weights are not there or do not fit.
    """
    with _weights():
        return build_generator(
            variant.name,
            given,
            [target.name for target in targets],
            pretrained=settings.pretrained,
            ckpt_path=settings.ckpt_path,
            tokenizer_ckpt_paths=settings.tokenizer_ckpt_paths,
            tokenizer_file=settings.tokenizer_file,
            standardize=True,
            timesteps=settings.steps,
        )


def _report(chip: Chip) -> None:
    """Say how many pixels are missing though the file does not say so."""
    if chip.undeclared:
        logger.warning("%s", describe_undeclared(chip.path, chip.undeclared))


def _write(results: Results, target: Modality, samples: Sequence[NDArray], seed: int, places: Places | None) -> Output:
    """Write all samples of one output and how far they differ, and return them."""
    if target.kind == "sequence":
        assert places is not None  # there are some if a target is a sequence
        results.write_places(target.name, places, [(float(one[0]), float(one[1])) for one in samples])
        return Output(target, [places.positions[0].numpy()])
    for number, sample in enumerate(samples):
        ending = target.name if number == 0 else f"{target.name}_sample{number + 1}"
        results.write_image(ending, target, sample, seed=str(seed + number))
    if len(samples) == 1:
        return Output(target, samples)
    spread = spread_of(target, samples)
    results.write_spread(f"{target.name}_spread", target, spread, len(samples))
    return Output(target, samples, spread)


def _read_inputs(chip: str | Path, modality: str, further: Mapping[str, str]) -> tuple[list[Chip], dict[str, Tensor]]:
    """Return the inputs on one grid, the chip first, and positions [1, 2] by modality."""
    chips = [read_chip(chip, resolve(modality))]
    positions: dict[str, Tensor] = {}
    for name, source in further.items():
        entry = resolve(name)
        if entry.name in (*positions, *(one.modality.name for one in chips)):
            raise ConfigError(f"{entry.name} is given twice as input.")
        if entry.kind == "sequence":
            positions[entry.name] = read_position(entry, source)
            continue
        chips.append(read_chip(source, entry, chips[0].grid))
    return chips, positions


def read_position(entry: Modality, text: str) -> Tensor:
    """Return [1, 2] of a text 'longitude,latitude'.

    Raises:
        ConfigError: The text is none.
    """
    try:
        longitude, latitude = map(float, text.split(","))
    except ValueError:
        raise ConfigError(f"{entry.name} is given as longitude,latitude in degrees, got '{text}'.") from None
    return torch.tensor([[longitude, latitude]], dtype=torch.float64)


def check_modalities(given: Sequence[str], targets: Sequence[Modality]) -> None:
    """Check names before weights are loaded.

    Raises:
        ConfigError: One is no input, or input and output.
    """
    plan_generator_inputs(given)
    both = [target.name for target in targets if target.name in given]
    if both:
        raise ConfigError(
            f"{both[0]} is input and output. To see a chip encoded and decoded, use terramind reconstruct."
        )


def _tensor(chip: Chip, patch: int) -> Tensor:
    """Return [1, bands, H, W] in the modality's units, or class ids [1, H, W], in whole patches."""
    values = torch.from_numpy(pad(chip.values, patch))
    return values if chip.modality.kind == "classes" else values[None]


def _to_array(modality: Modality, image: Tensor, size: tuple[int, int]) -> NDArray:
    """Return what a model made of one chip: [bands, H, W], class ids [1, H, W] or a position [2]."""
    if modality.kind == "sequence":
        return image[0].numpy()
    height, width = size
    cut = image[0, :, :height, :width].float()
    finite = cut.isfinite()
    if not finite.all():
        count = int((~finite.all(dim=0)).sum())
        logger.warning("%s: %d pixels have no finite result and hold no data. See the weights.", modality.name, count)
    if modality.kind == "classes":
        return choose_classes(cut, NO_CLASS)[0].numpy()
    # The decoder knows one standard deviation around the mean, whose lower end is no reflectance for some bands.
    return cut.clamp(*modality.valid_range).masked_fill(~finite, torch.nan).numpy()


@contextmanager
def fixed_random_weights() -> Iterator[None]:
    """Make random weights the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(WEIGHTS_SEED)
        yield


@contextmanager
def _weights() -> Iterator[None]:
    """Make random weights the same each time, and say how to do without the published ones if they are not there."""
    try:
        with fixed_random_weights():
            yield
    except WeightsNotFoundError as error:
        raise WeightsNotFoundError(
            f"{error} In this command: --ckpt_path FILE, --size nano for the small model that ships, "
            "or --pretrained false to try it with random weights."
        ) from error


def _fingerprint(path: Path) -> str:
    with open(path, "rb") as file:
        return f"{Path(path).name} (sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:16]})"


def _title(chip: Chip, tags: Mapping[str, Any]) -> str:
    made = f"weights: {tags['weights']}, seed {tags['seed']}, {tags['steps']} steps"
    return f"{chip.path.name}: {tags['model']}\n{made}"
