"""Measurements of a model on simulated chips that were not used for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import multiclass_confusion_matrix

from terramind_plugin.builders import build_image_tokenizer
from terramind_plugin.errors import DataError
from terramind_plugin.evaluate import few_shot
from terramind_plugin.evaluate import locate as places
from terramind_plugin.evaluate.locate import Errors
from terramind_plugin.evaluate.overlap import Overlap, count_overlap, ratio
from terramind_plugin.evaluate.scores import Score, score_chips, score_overlaps
from terramind_plugin.evaluate.testset import Labels
from terramind_plugin.evaluate.zero_shot import LAND_COVER, build_land_cover_generator
from terramind_plugin.generation.generator import TerraMindGenerator
from terramind_plugin.inference.settings import fixed_random_weights
from terramind_plugin.model.modalities import MODALITIES, Modality
from terramind_plugin.model.standardisation import Standardisation
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.raster.chips import Chip, read_chip
from terramind_plugin.simulation.dataset import chip_files
from terramind_plugin.tokenizers.image import ImageTokenizer
from terramind_plugin.tokenizers.variants import tokenizers_of

INPUTS = (("S2L2A",), ("S2L1C",), ("S1GRD",), ("S2L2A", "S1GRD"))
"""Inputs from which land cover is generated."""
WATER = (1, 3)
"""Water and flooded vegetation, which the labels of the simulated floods hold as one."""
FEATURES = "S2L2A"
"""Modality from which locations and features are computed."""
STEPS = 10
"""Denoising steps of a reconstruction."""
BATCH = 32
TASKS = (few_shot.Task(5, 1), few_shot.Task(5, 5))


@dataclass(frozen=True)
class Weights:
    """Weights of a model."""

    pretrained: bool
    ckpt_path: Path | None = None
    tokenizer_ckpt_paths: Mapping[str, Path] | None = None


RANDOM = Weights(False)


@dataclass(frozen=True)
class World:
    """Simulated chips in memory."""

    names: Sequence[str]
    images: Mapping[str, Sequence[Chip]]
    """Images by modality."""
    water: NDArray[np.bool_]
    """Pixels that the label calls water, [chips, H, W]."""
    labelled: NDArray[np.bool_]
    """Pixels with a label, [chips, H, W]."""

    @property
    def biomes(self) -> list[str]:
        """Return the first part of each name."""
        return [name.split("_")[0] for name in self.names]

    def stack(self, modality: str) -> NDArray[np.float32]:
        """Return the images of a modality, [chips, bands, H, W]."""
        return np.stack([chip.values for chip in self.images[modality]])


def read_world(root: Path, variant: str) -> World:
    """Return the middles of the chips of a simulated data set, as large as the model's image.

    Args:
        root: Folder of `terramind simulate`.
        variant: Name of the model.

    Raises:
        DataError: There are no chips, or they are smaller than the model's image.
    """
    numbers = VARIANTS[variant]
    size = numbers.img_size
    ending = "_LabelHand.tif"
    labels = sorted((root / "data" / "LabelHand").glob(f"*{ending}"))
    names = [path.name.removesuffix(ending) for path in labels]
    if not names:
        raise DataError(f"{root} holds no simulated chips. Make some: terramind simulate --world globe --out {root}.")
    wanted = sorted({name for one in INPUTS for name in one} | set(tokenizers_of(numbers.family)))
    images: dict[str, list[Chip]] = {modality: [] for modality in wanted}
    water, labelled = [], []
    for name, path in zip(names, labels, strict=True):
        files = chip_files(root, name)
        for modality in wanted:
            chip = read_chip(files[modality], MODALITIES[modality], side=size, multiple=numbers.patch_size)
            images[modality].append(chip)
        ids, known = Labels(-1, False, 2).read(path)
        if min(ids.shape) < size:
            raise DataError(f"{path} has {ids.shape[0]} x {ids.shape[1]} pixels. Simulate chips with --size {size}.")
        rows, columns = (slice((side - size) // 2, (side - size) // 2 + size) for side in ids.shape)
        water.append(ids[rows, columns] == 1)
        labelled.append(known[rows, columns])
    return World(names, images, np.stack(water), np.stack(labelled))


@dataclass(frozen=True)
class Reconstruction:
    """Quality of one tokenizer's reconstructions."""

    modality: str
    quality: float
    """PSNR in dB, or share of right pixels for classes."""
    baseline: float
    """Quality of the mean of each band, or of the most frequent class."""
    used: int
    """Token ids that occur."""
    vocabulary: int
    perplexity: float
    """Number of ids that would occur as evenly."""
    example: NDArray
    """Reconstruction of the first chip, [bands, H, W] in its units, or class ids [1, H, W]."""


def measure_tokenizers(world: World, variant: str, weights: Weights) -> Iterator[Reconstruction]:
    """Yield how well each tokenizer of a model reconstructs.

    Args:
        world: Test chips.
        variant: Name of the model.
        weights: Of the tokenizers.

    Raises:
        WeightsError: They are not there or do not fit.
    """
    for name, tokenizer in tokenizers_of(VARIANTS[variant].family).items():
        with fixed_random_weights():
            model = build_image_tokenizer(
                tokenizer.name,
                pretrained=weights.pretrained,
                ckpt_path=(weights.tokenizer_ckpt_paths or {}).get(name),
            )
        yield _reconstruct(model, MODALITIES[name], world)


@torch.no_grad()
def _reconstruct(model: ImageTokenizer, modality: Modality, world: World) -> Reconstruction:
    classes = modality.kind == "classes"
    scale = None if classes else Standardisation(modality.mean, modality.std)
    images = torch.from_numpy(world.stack(modality.name))
    made, ids = [], []
    for batch in images.split(BATCH):
        x = batch[:, 0].long() if classes or scale is None else scale(batch)
        tokens = model.tokenize(x)
        decoded = model.decode_tokens(tokens, STEPS, seed=0)
        made.append(decoded.argmax(dim=1, keepdim=True) if scale is None else scale.undo(decoded))
        ids.append(tokens.flatten())
    again, true = torch.cat(made).numpy(), images.numpy()
    valid = np.stack([chip.valid for chip in world.images[modality.name]])
    counts = np.bincount(torch.cat(ids).numpy())
    shares = counts[counts > 0] / counts.sum()
    quality, baseline = _accuracies(again, true, valid) if classes else peak_signal_to_noise(again, true, valid)
    return Reconstruction(
        modality.name,
        quality,
        baseline,
        int((counts > 0).sum()),
        int(np.prod(model.variant.levels)),
        float(np.exp(-(shares * np.log(shares)).sum())),
        again[0],
    )


def peak_signal_to_noise(made: NDArray, true: NDArray, valid: NDArray[np.bool_]) -> tuple[float, float]:
    """Return PSNR in dB of images, and of the mean of each band in their place; both are means over bands.

    The peak is the range between the 0.1st and the 99.9th percentile of a band.

    Args:
        made: [chips, bands, H, W].
        true: True images of the same shape.
        valid: [chips, H, W], pixels that count.
    """
    pairs = []
    for band in range(true.shape[1]):
        wanted, found = (array[:, band][valid].astype(np.float64) for array in (true, made))
        low, high = np.quantile(wanted, [0.001, 0.999])
        errors = ((found - wanted) ** 2).mean(), wanted.var()
        pairs.append([10 * np.log10((high - low) ** 2 / error) for error in errors])
    quality, baseline = np.mean(pairs, axis=0)
    return float(quality), float(baseline)


def _accuracies(made: NDArray, true: NDArray, valid: NDArray[np.bool_]) -> tuple[float, float]:
    found, wanted = made[:, 0][valid], true[:, 0][valid]
    most = np.bincount(wanted.astype(int)).argmax()
    return float((found == wanted).mean()), float((wanted == most).mean())


@dataclass(frozen=True)
class LandCover:
    """Scores of the land cover generated from some inputs."""

    inputs: tuple[str, ...]
    agreement: Score
    """Mean IoU of the classes."""
    water: Score
    """IoU of water."""
    maps: NDArray
    """Class ids [chips, H, W]."""


def measure_land_cover(world: World, variant: str, weights: Weights) -> list[LandCover]:
    """Return how well land cover is generated from each set of inputs.

    Args:
        world: Test chips.
        variant: Name of the model.
        weights: Of the model and its tokenizer of land cover.

    Raises:
        WeightsError: They are not there or do not fit.
    """
    model = build_land_cover_generator(
        variant,
        list(dict.fromkeys(name for names in INPUTS for name in names)),
        pretrained=weights.pretrained,
        ckpt_path=weights.ckpt_path,
        tokenizer_ckpt_paths=_only(weights.tokenizer_ckpt_paths, [LAND_COVER]),
    )
    return [judge_land_cover(world, names, generate_land_cover(model, world, names)) for names in INPUTS]


def _only(paths: Mapping[str, Path] | None, names: Sequence[str]) -> dict[str, Path]:
    return {name: path for name, path in (paths or {}).items() if name in names}


def generate_land_cover(model: TerraMindGenerator, world: World, names: Sequence[str]) -> NDArray[np.int64]:
    """Return class ids [chips, H, W] generated from some inputs."""
    images = {name: torch.from_numpy(world.stack(name)) for name in names}
    made = []
    for first in range(0, len(world.names), BATCH):
        scores = model({name: image[first : first + BATCH] for name, image in images.items()})[LAND_COVER]
        made.append(scores.argmax(dim=1))
    return torch.cat(made).numpy()


def judge_land_cover(world: World, names: tuple[str, ...], maps: NDArray[np.int64]) -> LandCover:
    """Return how maps [chips, H, W] agree with the chips' land cover and water."""
    true = world.stack(LAND_COVER)[:, 0].astype(np.int64)
    classes = len(MODALITIES[LAND_COVER].class_names)
    pairs = zip(torch.from_numpy(maps), torch.from_numpy(true), strict=True)
    confusions = np.stack([multiclass_confusion_matrix(*pair, classes, ignore_index=0).numpy() for pair in pairs])
    overlaps: list[Overlap] = [
        count_overlap(np.isin(one, WATER), water, known)
        for one, water, known in zip(maps, world.water, world.labelled, strict=True)
    ]
    return LandCover(
        names, score_chips(confusions, lambda chips: mean_class_iou(chips.sum(axis=0))), score_overlaps(overlaps), maps
    )


def mean_class_iou(confusion: NDArray) -> float:
    """Return the mean IoU of the classes that the labels hold.

    Args:
        confusion: Pixels by label and by map, [classes, classes].
    """
    hits, labelled, mapped = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return float(np.mean(ratio(hits, labelled + mapped - hits)[labelled > 0]))


def majority_land_cover(world: World) -> LandCover:
    """Return what a map of nothing but the most frequent class gives."""
    true = world.stack(LAND_COVER)[:, 0].astype(np.int64)
    most = int(np.bincount(true[true > 0]).argmax())
    return judge_land_cover(world, (MODALITIES[LAND_COVER].class_names[most],), np.full_like(true, most))


@dataclass(frozen=True)
class Located:
    """Locations that a model predicts for chips."""

    true: NDArray[np.float64]
    """[chips, 2] as (longitude, latitude)."""
    middles: NDArray[np.float64]
    """Locations of least expected distance, [chips, 2]."""
    errors: list[Errors]
    """Result of `compare_errors`."""


def measure_places(world: World, variant: str, weights: Weights) -> Located:
    """Return where a model takes the chips to be; arguments as in `measure_land_cover`."""
    chips = world.images[FEATURES]
    model = places.build_locator(variant, FEATURES, pretrained=weights.pretrained, ckpt_path=weights.ckpt_path)
    likeliest, middles = [], []
    for _, belief in places.locate(model, FEATURES, chips, mass=1, batch_size=BATCH):
        likeliest.append(belief.likeliest(1)[0][0])
        middles.append(belief.middle())
    true = np.array([chip.grid.centre() for chip in chips])
    return Located(true, np.stack(middles), places.compare_errors(true, np.stack(likeliest), np.stack(middles)))


def measure_few_shot(world: World, variant: str, weights: Weights) -> dict[str, list[Score]]:
    """Return the accuracy of each few-shot task by kind of features; arguments as in `measure_land_cover`."""
    modality, chips = MODALITIES[FEATURES], world.images[FEATURES]
    encoders = {
        name: few_shot.build_encoder(variant, FEATURES, pretrained=one.pretrained, ckpt_path=one.ckpt_path)
        for name, one in (("model", weights), ("random weights", RANDOM))
    }
    features = few_shot.measure_features(encoders, modality, chips, batch_size=BATCH)
    episodes = [few_shot.draw_episodes(world.biomes, task) for task in TASKS]
    return {name: [few_shot.evaluate(one, drawn) for drawn in episodes] for name, one in features.items()}


@dataclass(frozen=True)
class Results:
    """Everything that a results page shows."""

    world: World
    tokenizers: list[Reconstruction]
    land_cover: dict[str, list[LandCover]]
    """Scores of land cover by weights: 'model', 'random weights', 'most frequent class'."""
    places: dict[str, Located]
    """Locations by weights."""
    few_shot: dict[str, list[Score]]


def measure(world: World, variant: str, weights: Weights, on_step: Callable[[str], Any] = lambda what: None) -> Results:
    """Return all results of a model.

    Args:
        world: Test chips.
        variant: Name of the model.
        weights: Of the model and its tokenizers.
        on_step: Called before each part.

    Raises:
        DataError: There are too few chips of some biomes.
        WeightsError: The weights are not there or do not fit.
    """
    for task in TASKS:
        task.check(world.biomes)  # before what takes long
    on_step("tokenizers")
    tokenizers = list(measure_tokenizers(world, variant, weights))
    on_step("land cover")
    cover = {
        "model": measure_land_cover(world, variant, weights),
        "random weights": measure_land_cover(world, variant, RANDOM),
        "most frequent class": [majority_land_cover(world)],
    }
    on_step("places")
    located = {
        "model": measure_places(world, variant, weights),
        "random weights": measure_places(world, variant, RANDOM),
    }
    on_step("few-shot")
    return Results(world, tokenizers, cover, located, measure_few_shot(world, variant, weights))
