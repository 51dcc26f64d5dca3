"""Few-shot classification: the nearest class mean of a few labelled patches, over many random episodes."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from terramind_plugin.builders import build_backbone
from terramind_plugin.errors import ConfigError, DataError, check_seed, counted, one_line
from terramind_plugin.evaluate.chips import CHIP_ENDINGS, batches
from terramind_plugin.evaluate.scores import Score, score_mean
from terramind_plugin.inference.settings import fixed_random_weights
from terramind_plugin.model.compiled import compile_model
from terramind_plugin.model.modalities import Modality
from terramind_plugin.model.variants import find_variant
from terramind_plugin.raster.chips import Chip
from terramind_plugin.raster.paths import is_remote, raster_path

EPISODES_AT_ONCE = 100
"""Number of episodes that are drawn at once, to bound the memory of random numbers."""


@dataclass(frozen=True)
class Patch:
    """A labelled file."""

    path: Path
    label: str


@dataclass(frozen=True)
class Task:
    """Size and number of episodes."""

    ways: int = 5
    """Number of classes."""
    shots: int = 1
    """Number of labelled patches of each class."""
    queries: int = 15
    """Number of patches of each class to classify."""
    episodes: int = 600
    seed: int = 0

    def __str__(self) -> str:
        """Return the numbers in words, e.g. '5-way 1-shot, 600 episodes'."""
        return f"{self.ways}-way {self.shots}-shot, {counted(self.episodes, 'episode')}"

    def check(self, labels: Sequence[str]) -> None:
        """Raise a ConfigError if a number is invalid, a DataError if there are too few patches.

        Args:
            labels: Label of each patch.
        """
        for name, least in (("ways", 2), ("shots", 1), ("queries", 1), ("episodes", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        check_seed(self.seed)
        names, counts = np.unique(labels, return_counts=True)
        needed = self.shots + self.queries
        large = counts >= needed
        if large.sum() < self.ways:
            few = ", ".join(
                f"{name} {count}" for name, count in zip(names[~large][:5], counts[~large][:5], strict=True)
            )
            raise DataError(
                f"{self.ways} ways need {self.ways} classes with {needed} patches each (shots and queries), got "
                f"{int(large.sum())}" + (f"; too few: {few}" if few else "") + ". Lower --ways or --queries."
            )


def list_patches(source: Path) -> list[Patch]:
    """Return labelled files, in a fixed order.

    Args:
        source: Folder with a folder of rasters for each class, or a CSV with the columns path and label, whose paths
            are absolute, remote, or relative to the CSV.

    Raises:
        DataError: There are no files, or a file of the CSV does not exist.
    """
    if source.is_dir():
        patches = [
            Patch(path, folder.name)
            for folder in sorted(source.iterdir())
            if folder.is_dir() and not folder.name.startswith(".")
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in CHIP_ENDINGS
        ]
        if not patches:
            raise DataError(
                f"{source} has no folders of rasters. Expected one for each class: Forest/1.tif, River/2.tif."
            )
        return patches
    try:
        with open(source, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source} is neither a folder nor a CSV: {one_line(error)}") from error
    if not rows or not {"path", "label"} <= set(rows[0]):
        found = ", ".join(map(str, rows[0])) if rows else "nothing"
        raise DataError(f"{source} needs rows with the columns path and label, got {found}.")
    patches = [Patch(_seen_from(source, (row["path"] or "").strip()), (row["label"] or "").strip()) for row in rows]
    for patch in patches:
        there = is_remote(patch.path) or patch.path.is_file()
        if not there or not patch.label:
            raise DataError(f"{source}: {patch.path} {'has no label' if there else 'does not exist'}.")
    return patches


def _seen_from(table: Path, text: str) -> Path:
    return raster_path(text) if is_remote(text) else table.parent / text


def build_encoder(
    variant: str, modality: str, *, pretrained: bool = True, ckpt_path: Path | None = None, compile: str = "off"
) -> nn.Module:
    """Return an encoder; random weights are the same in every run.

    Args:
        variant: Name of the model.
        modality: Name of the input.
        pretrained: Load the published weights.
        ckpt_path: File with weights to load instead; a fine-tuned model is possible.
        compile: See `compile_model`.

    Raises:
        ConfigError: The model, modality or mode is unknown.
        WeightsError: The weights are missing or do not fit.
    """
    find_variant(variant)
    with fixed_random_weights():
        model = build_backbone(variant, [modality], pretrained=pretrained and ckpt_path is None, ckpt_path=ckpt_path)
    return compile_model(model.eval(), compile)


BAND_MEANS = "band means"
"""Name of the features that need no model."""


def measure_features(
    encoders: Mapping[str, nn.Module],
    modality: Modality,
    chips: Iterable[Chip],
    *,
    resize: int | None = None,
    batch_size: int = 32,
    on_batch: Callable[[int], object] = lambda count: None,
) -> dict[str, NDArray[np.float32]]:
    """Return the features of chips by kind, [chips, D] each: token means of each encoder, and band means.

    Chips are read once, batch by batch.

    Args:
        encoders: Encoders from `build_encoder`, by name.
        modality: Modality of the chips; its pre-training statistics standardise them.
        chips: Images in the units of the modality.
        resize: Height and width in pixels to which chips are resampled; None to keep their size.
        batch_size: Chips at once.
        on_batch: Called with the number of chips of each batch.
    """
    features: dict[str, list[NDArray[Any]]] = {name: [] for name in (*encoders, BAND_MEANS)}
    mean, std = (np.array(numbers, np.float32)[:, None, None] for numbers in (modality.mean, modality.std))
    for batch in batches(chips, batch_size):
        images = torch.from_numpy((np.stack([chip.values for chip in batch]) - mean) / std)
        if resize is not None:
            images = torch.nn.functional.interpolate(images, (resize, resize), mode="bilinear", antialias=True)
        for name, encoder in encoders.items():
            features[name].append(token_features(encoder, images))
        features[BAND_MEANS].append(band_features(modality, batch))
        on_batch(len(batch))
    return {name: np.concatenate(parts) for name, parts in features.items()}


@torch.no_grad()
def token_features(encoder: nn.Module, images: Tensor) -> NDArray[np.float32]:
    """Return the mean of the tokens in the last layer, [B, D], of standardised images [B, bands, H, W]."""
    return np.asarray(encoder(images.to(next(encoder.parameters()).device))[-1].mean(dim=1).cpu())


def band_features(modality: Modality, chips: Sequence[Chip]) -> NDArray[np.float32]:
    """Return the mean of each band of each chip, standardised with the pre-training statistics, [chips, bands]."""
    means = np.stack([chip.values.mean(axis=(1, 2), where=chip.valid) for chip in chips])
    return np.asarray((means - np.array(modality.mean)) / np.array(modality.std), np.float32)


@dataclass(frozen=True)
class Episodes:
    """Patches of each episode."""

    support: NDArray[np.int64]
    """Indices of the labelled patches, [episodes, ways, shots]."""
    query: NDArray[np.int64]
    """Indices of the patches to classify, [episodes, ways, queries]; none of them is in `support`."""


def draw_episodes(labels: Sequence[str], task: Task) -> Episodes:
    """Return random episodes: classes with enough patches are equally likely, and so are patches of a class.

    Args:
        labels: Label of each patch.
        task: Numbers and seed.

    Raises:
        ConfigError: A number is invalid.
        DataError: There are too few patches.
    """
    task.check(labels)
    names, inverse = np.unique(labels, return_inverse=True)
    needed = task.shots + task.queries
    members = [np.flatnonzero(inverse == number) for number in range(len(names))]
    members = [numbers for numbers in members if len(numbers) >= needed]
    longest = max(map(len, members))
    padded = np.stack([np.pad(numbers, (0, longest - len(numbers))) for numbers in members])
    is_padding = np.stack([np.arange(longest) >= len(numbers) for numbers in members])
    rng = np.random.default_rng(task.seed)
    drawn = []
    for first in range(0, task.episodes, EPISODES_AT_ONCE):
        count = min(EPISODES_AT_ONCE, task.episodes - first)
        classes = rng.random((count, len(members))).argsort(axis=1)[:, : task.ways]
        keys = np.where(is_padding[classes], np.inf, rng.random((count, task.ways, longest)))
        chosen = np.argsort(keys, axis=2)[:, :, :needed]
        drawn.append(np.take_along_axis(padded[classes], chosen, axis=2))
    patches = np.concatenate(drawn)
    return Episodes(patches[:, :, : task.shots], patches[:, :, task.shots :])


def nearest_mean_accuracy(features: NDArray[Any], episodes: Episodes) -> NDArray[np.float64]:
    """Return the share of queries [episodes] whose nearest class mean (Euclidean distance) is that of their class.

    Args:
        features: Features [patches, D].
        episodes: Patches of each episode.
    """
    from sklearn.metrics import pairwise_distances_argmin  # takes seconds to import

    accuracy = []
    for support, query in zip(episodes.support, episodes.query, strict=True):
        means = features[support].mean(axis=1, dtype=np.float64)
        nearest = pairwise_distances_argmin(features[query.ravel()].astype(np.float64), means)
        accuracy.append((nearest.reshape(query.shape) == np.arange(len(means))[:, None]).mean())
    return np.array(accuracy)


def evaluate(features: NDArray[Any], episodes: Episodes) -> Score:
    """Return the mean accuracy with its interval over episodes; arguments as in `nearest_mean_accuracy`."""
    return score_mean(nearest_mean_accuracy(features, episodes))


def table(arms: Mapping[str, Score], task: Task) -> list[list[str]]:
    """Return head and rows: the accuracy of each kind of features, and that of chance.

    Args:
        arms: Accuracy by kind of features.
        task: Numbers of an episode.
    """
    rows = [
        [name, f"{100 * one.value:.2f}", f"{100 * one.interval[0]:.2f} to {100 * one.interval[1]:.2f}"]
        for name, one in arms.items()
    ]
    return [["features", "accuracy, %", "95 % interval"], *rows, ["chance", f"{100 / task.ways:.2f}", "-"]]
