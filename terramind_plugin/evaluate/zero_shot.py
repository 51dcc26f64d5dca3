"""Maps of a land cover class without training: generated land cover, compared with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import Tensor

from terramind_plugin._version import __version__
from terramind_plugin.builders import build_generator
from terramind_plugin.errors import ConfigError, DataError, suggest
from terramind_plugin.evaluate.output import weights_of
from terramind_plugin.evaluate.overlap import Overlap, count_overlap, precision, recall
from terramind_plugin.evaluate.scores import Score, score_overlaps
from terramind_plugin.evaluate.testset import Experiment, LabelledChip, LabelledSet
from terramind_plugin.generation.generator import TerraMindGenerator
from terramind_plugin.inference.job import Job
from terramind_plugin.inference.makers import SceneGenerator
from terramind_plugin.inference.options import Options
from terramind_plugin.inference.outputs import NO_DATA, NO_LAND_COVER, choose_classes, class_layer
from terramind_plugin.inference.planning import plan_jobs
from terramind_plugin.inference.runner import run_jobs
from terramind_plugin.inference.settings import fixed_random_weights
from terramind_plugin.model.checkpoints import hash_weights
from terramind_plugin.model.modalities import MODALITIES, find, resolve
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.plotting.pictures import LABEL_COLORS

LAND_COVER = "LULC"
TARGET = "target"
"""Suffix of the names of the files with the pixels of the target."""


@dataclass(frozen=True)
class Target:
    """Land cover classes to map."""

    classes: tuple[int, ...]
    """Ids of land cover classes."""
    positive: tuple[int, ...] = (1,)
    """Ids of the target in the labels."""

    @property
    def name(self) -> str:
        """Return the names of the classes."""
        return ", ".join(MODALITIES[LAND_COVER].class_names[number] for number in self.classes)


@dataclass(frozen=True)
class SetScore:
    """Scores of one set of inputs."""

    inputs: tuple[str, ...]
    chips: Sequence[str]
    overlaps: Sequence[Overlap]
    """Overlap of each chip."""
    iou: Score
    precision: Score
    recall: Score


class TargetGenerator(SceneGenerator):
    """Scene model that generates land cover and marks the classes of a target.

    Args:
        generator: Generator of land cover.
        target: Classes to mark.
        scales: Offset and factor of each modality's files, see `LabelledSet`.
        seed: Seed of the first random numbers.
    """

    def __init__(
        self, generator: TerraMindGenerator, target: Target, scales: Mapping[str, tuple[float, float]], seed: int
    ) -> None:
        super().__init__(generator, seed=seed)
        self.target = target
        self.scales = dict(scales)
        self.layers += (class_layer(TARGET, ("other", target.name), LABEL_COLORS, descriptions=(target.name,)),)

    def forward(self, images: Mapping[str, Tensor], corners: Sequence[tuple[int, int]]) -> Tensor:
        """Return probabilities of the land cover classes [B, classes, h, w]."""
        in_units = {name: (image + self.scales[name][0]) * self.scales[name][1] for name, image in images.items()}
        return super().forward(in_units, corners)

    def finish(self, blended: Tensor) -> list[Tensor]:
        """Return land cover and target, [1, rows, W] each."""
        cover, probability = choose_classes(blended, NO_LAND_COVER)
        wanted = torch.tensor(self.target.classes, device=cover.device)
        found = torch.isin(cover, wanted).to(torch.uint8)
        return [cover, found.masked_fill_(~probability.isfinite(), NO_DATA)]


def read_target(names: str, positive: str = "1") -> Target:
    """Return the target that the options of a command line describe.

    Args:
        names: Names of land cover classes, separated by commas, e.g. 'water,flooded vegetation'.
        positive: Ids of the target in the labels, separated by commas.

    Raises:
        ConfigError: A class is unknown, or an id is not a whole number.
    """
    known = {name.lower(): number for number, name in enumerate(MODALITIES[LAND_COVER].class_names) if number > 0}
    classes = []
    for word in (word.strip().lower() for word in names.split(",") if word.strip()):
        if word not in known:
            raise ConfigError(f"'{word}' is not a land cover class.{suggest(word, known)} Classes: {', '.join(known)}.")
        classes.append(known[word])
    try:
        ids = [int(word) for word in positive.split(",")]
    except ValueError:
        raise ConfigError(f"--positive takes class ids of the labels, e.g. 1 or 1,2; got '{positive}'.") from None
    if not classes:
        raise ConfigError(f"--target names no class. Classes: {', '.join(known)}.")
    return Target(tuple(dict.fromkeys(classes)), tuple(dict.fromkeys(ids)))


def choose_inputs(given: Sequence[str], wanted: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return sets of inputs, with modalities spelt as in the configuration.

    Args:
        given: Modalities of the configuration.
        wanted: Sets of modalities, e.g. [['S2L1C'], ['S1GRD', 'S2L1C']]; empty for all possible sets.

    Raises:
        ConfigError: The configuration lacks a modality.
    """
    if not wanted:
        return [names for size in range(1, len(given) + 1) for names in combinations(given, size)]
    spelling = {resolve(name).name: name for name in given}
    sets = []
    for asked in wanted:
        names = []
        for name in asked:
            entry = find(name)
            if entry is None or entry.name not in spelling:
                raise ConfigError(f"--inputs names '{name}', the configuration has {', '.join(given)}.")
            names.append(spelling[entry.name])
        if not names:
            raise ConfigError("--inputs names nothing; give e.g. --inputs S2L1C,S1GRD.")
        sets.append(tuple(name for name in given if name in names))
    return list(dict.fromkeys(sets))


def settle_windows(options: Options, variant: str) -> Options:
    """Return options with the sizes of the windows of a model filled in.

    Raises:
        ConfigError: A number is not possible, or this machine lacks the requested device.
    """
    options.check()
    return options.settle(VARIANTS[variant].img_size, VARIANTS[variant].patch_size)


def describe_experiment(experiment: Experiment, temperature: float, seed: int) -> dict[str, str]:
    """Return the tags of maps that an experiment's model generates."""
    return {
        "model": f"{experiment.variant}_generate",
        "weights": weights_of(experiment.variant, experiment.pretrained, experiment.ckpt_path),
        "temperature": f"{temperature:g}",
        "seed": str(seed),
        "terramind_plugin_version": __version__,
    }


def build_target_generator(
    experiment: Experiment,
    target: Target,
    tokenizer_ckpt_paths: Mapping[str, Path] | None,
    temperature: float,
    seed: int,
) -> TargetGenerator:
    """Return the scene model of an experiment; arguments as in `build_land_cover_generator` and `TargetGenerator`."""
    generator = build_land_cover_generator(
        experiment.variant,
        list(experiment.test.expected),
        pretrained=experiment.pretrained,
        ckpt_path=experiment.ckpt_path,
        tokenizer_ckpt_paths=tokenizer_ckpt_paths,
        temperature=temperature,
    )
    return TargetGenerator(generator, target, experiment.test.scales, seed)


def build_land_cover_generator(
    variant: str,
    modalities: Sequence[str],
    *,
    pretrained: bool,
    ckpt_path: Path | None = None,
    tokenizer_ckpt_paths: Mapping[str, Path] | None = None,
    temperature: float = 0.0,
) -> TerraMindGenerator:
    """Return a generator of land cover from images in the modalities' units; random weights are the same in every run.

    Args:
        variant: Name of the model.
        modalities: Inputs; a call may omit some.
        pretrained: Load the published weights.
        ckpt_path: File with weights to load instead.
        tokenizer_ckpt_paths: Files with tokenizer weights, by modality.
        temperature: Temperature of sampling; 0 takes the most likely tokens.

    Raises:
        ConfigError: A setting is invalid.
        WeightsError: The weights are missing or do not fit.
    """
    with fixed_random_weights():
        return build_generator(
            variant,
            list(modalities),
            [LAND_COVER],
            pretrained=pretrained,
            ckpt_path=ckpt_path,
            tokenizer_ckpt_paths=tokenizer_ckpt_paths,
            standardize=True,
            temps=temperature,
        )


def map_target(
    model: TargetGenerator,
    experiment: Experiment,
    sets: Sequence[tuple[str, ...]],
    options: Options,
    described: Mapping[str, Any],
) -> dict[tuple[str, ...], list[tuple[LabelledChip, Job]]]:
    """Write the missing maps of all chips for each set of inputs, and return chips and jobs by set.

    Args:
        model: Scene model that makes the maps.
        experiment: Model and test set.
        sets: Sets of inputs.
        options: Windows and output folder.
        described: Description of the model for the tags.

    Raises:
        ConfigError: The windows are invalid, or an unfinished run has other settings.
        DataError: A file cannot be used, or no chip has the inputs.
    """
    test, patch = experiment.test, VARIANTS[experiment.variant].patch_size
    known = {**described, "weights_sha256": hash_weights(model.state_dict())[:16], "target": model.target.name}
    known["units"] = ", ".join(f"{name}: {shift:+g}, x {scale:g}" for name, (shift, scale) in test.scales.items())
    done: dict[tuple[str, ...], list[tuple[LabelledChip, Job]]] = {}
    for names in sets:
        own = replace(options, out=options.out / "+".join(names))
        chips = test.having(names)
        if not chips:
            raise DataError(f"No chip of the test set has {' and '.join(names)}. Leave the set out with --inputs.")
        jobs = plan_jobs(
            [{name: chip.files[name] for name in names} for chip in chips], test.expected, own, patch, align=True
        )
        for job in jobs:
            job.decide("zero-shot", model.layers, known, own)
        own.out.mkdir(parents=True, exist_ok=True)
        done[names] = list(zip(chips, jobs, strict=True))
    run_jobs(model, [job for pairs in done.values() for _, job in pairs], options)
    return done


def read_map(job: Job, ending: str) -> NDArray[np.uint8]:
    """Return the map [H, W] of a finished job whose name ends in `ending`."""
    layer = next(layer for layer in job.layers if layer.ending == ending)
    with rasterio.open(job.target(layer)) as file:
        return np.asarray(file.read(1))


def score(
    test: LabelledSet, target: Target, names: tuple[str, ...], pairs: Sequence[tuple[LabelledChip, Job]]
) -> SetScore:
    """Return the agreement of maps with labels; pixels without a label or without data do not count.

    Args:
        test: Test set.
        target: Target of the maps.
        names: Set of inputs.
        pairs: Chips and their maps.

    Raises:
        DataError: A label cannot be read, or has another size than its chip.
    """
    overlaps = []
    for chip, job in pairs:
        ids, known = test.labels.read(chip.label)
        found = read_map(job, TARGET)
        if found.shape != ids.shape:
            raise DataError(
                f"{chip.label} has {ids.shape[0]} x {ids.shape[1]} pixels, {chip.files[names[0]]} has "
                f"{found.shape[0]} x {found.shape[1]}. Resample them to one grid."
            )
        overlaps.append(count_overlap(found == 1, np.isin(ids, target.positive), known & (found != NO_DATA)))
    return SetScore(
        names,
        [chip.name for chip, _ in pairs],
        overlaps,
        score_overlaps(overlaps),
        score_overlaps(overlaps, precision),
        score_overlaps(overlaps, recall),
    )
