"""Locations of chips: the probability of each location, the best estimate, and its error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from terramind_plugin.builders import build_generator
from terramind_plugin.errors import ConfigError
from terramind_plugin.evaluate.chips import batches
from terramind_plugin.evaluate.scores import EARTH_RADIUS, Score, great_circle, score_median
from terramind_plugin.generation.generator import TerraMindGenerator
from terramind_plugin.inference.settings import fixed_random_weights
from terramind_plugin.model.variants import find_variant
from terramind_plugin.raster.chips import Chip

COORDS = "coords"
CANDIDATES = 500
"""Number of most likely locations among which the one of least expected distance is chosen."""
NEAR = 1000.0
"""Maximum distance in km that counts as near."""
COARSE = 5.0
"""Step in degrees of the grid of locations that are compared for all chips."""


@dataclass(frozen=True)
class Belief:
    """Probabilities of the locations of a chip."""

    longitudes: NDArray[np.float64]
    """[columns], ascending."""
    latitudes: NDArray[np.float64]
    """[rows], descending."""
    probabilities: NDArray[np.float32]
    """Probabilities [rows, columns]; their sum is the requested mass or a little more."""

    def likeliest(self, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the most likely locations [count, 2] as (longitude, latitude), and their probabilities [count]."""
        flat = self.probabilities.ravel()
        count = min(count, flat.size)
        best = np.argpartition(-flat, count - 1)[:count]
        best = best[np.lexsort((best, -flat[best]))]
        rows, columns = np.unravel_index(best, self.probabilities.shape)
        return np.stack([self.longitudes[columns], self.latitudes[rows]], axis=1), flat[best].astype(np.float64)

    def middle(self) -> NDArray[np.float64]:
        """Return the location [2] with the least expected distance to the true one, among the most likely ones."""
        locations, weights = self.likeliest(CANDIDATES)
        expected = great_circle(locations[:, None], locations[None]) @ weights
        return np.asarray(locations[int(expected.argmin())])


def build_locator(
    variant: str,
    modality: str,
    *,
    pretrained: bool = True,
    ckpt_path: Path | None = None,
    tokenizer_file: Path | None = None,
) -> TerraMindGenerator:
    """Return a generator of coordinates; random weights are the same in every run.

    Args:
        variant: Name of the model.
        modality: Name of the input.
        pretrained: Load the published weights.
        ckpt_path: File with weights to load instead.
        tokenizer_file: Vocabulary of the coordinates.

    Raises:
        ConfigError: The model or modality is unknown.
        WeightsError: The weights are missing or do not fit.
    """
    find_variant(variant)
    with fixed_random_weights():
        return build_generator(
            variant,
            [modality],
            [COORDS],
            pretrained=pretrained,
            ckpt_path=ckpt_path,
            tokenizer_file=tokenizer_file,
            standardize=True,
        )


def locate(
    model: TerraMindGenerator,
    modality: str,
    chips: Iterable[Chip],
    *,
    mass: float = 0.999,
    batch_size: int = 8,
    on_latitude: Callable[[int, int], object] = lambda done, total: None,
) -> Iterator[tuple[Chip, Belief]]:
    """Yield each chip with the probabilities of its locations.

    Args:
        model: Generator from `build_locator`.
        modality: Name of its input.
        chips: Images in the units of the modality; they are read batch by batch.
        mass: Latitudes that together are less likely than 1 - mass are left out.
        batch_size: Chips at once.
        on_latitude: As in `TerraMindGenerator.map_locations`.

    Raises:
        ConfigError: The mass is not above 0 and at most 1.
    """
    if not 0 < mass <= 1:
        raise ConfigError(f"mass must be above 0 and at most 1, got {mass}.")
    device = next(model.parameters()).device
    for batch in batches(chips, batch_size):
        images = torch.from_numpy(np.stack([chip.values for chip in batch])).to(device)
        made = model.map_locations({modality: images}, mass, on_latitude=on_latitude)
        longitudes, latitudes = made.longitudes.numpy(), made.latitudes.numpy()
        for chip, probabilities in zip(batch, made.probabilities.numpy(), strict=True):
            yield chip, Belief(longitudes, latitudes, probabilities)


@dataclass(frozen=True)
class Errors:
    """Errors of one way to estimate locations."""

    name: str
    distances: NDArray[np.float64]
    """Distance of each chip's estimate from the true location in km."""

    @property
    def median(self) -> Score:
        """Return the median distance in km."""
        return score_median(self.distances)

    @property
    def near(self) -> float:
        """Return the share of chips whose error is at most `NEAR`."""
        return float((self.distances <= NEAR).mean())


def compare_errors(true: NDArray[Any], likeliest: NDArray[Any], middle: NDArray[Any]) -> list[Errors]:
    """Return the errors of the model's estimates, and of the best single location for all chips.

    The single location is chosen by the true ones, so no estimate that ignores the chips can be better.

    Args:
        true: True locations [chips, 2] as (longitude, latitude) in degrees.
        likeliest: Most likely locations of the model, of the same shape.
        middle: Locations of least expected distance, of the same shape.
    """
    return [
        Errors("likeliest place", great_circle(likeliest, true)),
        Errors("place of least expected distance", great_circle(middle, true)),
        Errors("one place for all, the best there is", great_circle(best_constant(true), true)),
    ]


def best_constant(true: NDArray[Any]) -> NDArray[np.float64]:
    """Return the location [2] with the least median distance to some locations [N, 2], among them and a coarse grid."""
    longitudes = np.arange(-180, 180, COARSE)
    latitudes = np.arange(-90, 90 + COARSE, COARSE)
    grid = np.stack(np.meshgrid(longitudes, latitudes), axis=-1).reshape(-1, 2)
    candidates = np.concatenate([np.asarray(true, np.float64), grid])
    medians = [np.median(great_circle(candidate, true)) for candidate in candidates]
    return np.asarray(candidates[int(np.argmin(medians))])


ANYWHERE = EARTH_RADIUS * np.pi / 2
"""Median distance in km between a location and a random one of the sphere: a quarter of a great circle."""
