"""Scores of a model over chips, with their intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyproj import Geod

from terramind_plugin.evaluate.overlap import intersection_over_union

RESAMPLES = 2000
"""Number of resamples of chips for an interval."""
CONFIDENCE = 0.95
EARTH_RADIUS = 6371.0088
"""Mean radius in km."""
GLOBE = Geod(a=1000 * EARTH_RADIUS, f=0)


@dataclass(frozen=True)
class Score:
    """A number with its 95 % interval."""

    value: float
    interval: tuple[float, float]

    def record(self) -> dict[str, float | None]:
        """Return the numbers for a JSON file, None where a number cannot be computed."""
        numbers = {"value": self.value, "low": self.interval[0], "high": self.interval[1]}
        return {name: round(number, 6) if np.isfinite(number) else None for name, number in numbers.items()}

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.interval[0]:.3f} to {self.interval[1]:.3f})"


def score_overlaps(
    counts: ArrayLike, measure: Callable[[ArrayLike], NDArray[np.float64]] = intersection_over_union
) -> Score:
    """Return a measure of all pixels of all chips.

    Args:
        counts: [chips, 3] as in `Overlap`.
        measure: Measure of summed counts.
    """
    return score_chips(np.reshape(counts, (-1, 3)), lambda chips: measure(chips.sum(axis=0)))


def score_median(values: ArrayLike) -> Score:
    """Return the median of one number a chip, [chips]."""
    return score_chips(values, np.median)


def score_chips(values: ArrayLike, measure: Callable[[NDArray[Any]], Any]) -> Score:
    """Return a measure of chips with a percentile bootstrap interval over chips; resamples that give NaN are left out.

    Args:
        values: [chips, ...].
        measure: Function of the values of some chips that returns a number.
    """
    from scipy.stats import bootstrap  # takes a second to import

    table = np.asarray(values, dtype=np.float64)
    value = float(measure(table))
    if len(table) == 1:
        return Score(value, (value, value))
    resampled = bootstrap(
        (np.arange(len(table)),),
        lambda chips: measure(table[chips]),
        n_resamples=RESAMPLES,
        batch=100,
        method="percentile",
        vectorized=False,
        rng=0,
    ).bootstrap_distribution
    known = resampled[np.isfinite(resampled)]
    if not known.size:
        return Score(value, (float("nan"), float("nan")))
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Score(value, (float(low), float(high)))


def score_mean(values: ArrayLike) -> Score:
    """Return the mean of independent numbers, with its interval from the normal distribution."""
    numbers = np.asarray(values, dtype=np.float64)
    half = 1.96 * numbers.std(ddof=1) / np.sqrt(len(numbers)) if len(numbers) > 1 else np.nan
    return Score(float(numbers.mean()), (float(numbers.mean() - half), float(numbers.mean() + half)))


def great_circle(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Return distances on the sphere in km.

    Args:
        first: [..., 2] as (longitude, latitude) in degrees.
        second: Further positions; the shapes of both are broadcast.
    """
    one, other = np.broadcast_arrays(np.asarray(first, np.float64), np.asarray(second, np.float64))
    metres = GLOBE.inv(one[..., 0], one[..., 1], other[..., 0], other[..., 1])[2]
    return np.asarray(metres) / 1000
