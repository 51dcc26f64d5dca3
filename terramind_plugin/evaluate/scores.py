"""Numbers that judge a model, and how sure they are: numpy alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
"""Times that chips are drawn anew for an interval."""
CONFIDENCE = 0.95
EARTH_RADIUS = 6371.0088
"""Mean radius in km."""

Interval = tuple[float, float]


class Overlap(NamedTuple):
    """How two sets of pixels overlap."""

    hits: int
    """Pixels in both."""
    false: int
    """In the map alone."""
    missed: int
    """In the label alone."""


@dataclass(frozen=True)
class Score:
    """A number with the interval that holds the true one with 95 % confidence."""

    value: float
    interval: Interval

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.interval[0]:.3f} to {self.interval[1]:.3f})"


def count_overlap(predicted: NDArray[np.bool_], true: NDArray[np.bool_], known: NDArray[np.bool_]) -> Overlap:
    """Return the overlap of a map with its label.

    Args:
        predicted: Any shape.
        true: Same shape.
        known: Same shape; pixels that count.
    """
    return Overlap(
        int((predicted & true & known).sum()),
        int((predicted & ~true & known).sum()),
        int((~predicted & true & known).sum()),
    )


def intersection_over_union(counts: ArrayLike) -> NDArray[np.float64]:
    """Return the IoU of each row; NaN where there is nothing to find and nothing was found.

    Args:
        counts: [..., 3] as in `Overlap`.
    """
    hits, false, missed = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    return _ratio(hits, hits + false + missed)


def precision(counts: ArrayLike) -> NDArray[np.float64]:
    """Return the share of the map that is right; arguments as in `intersection_over_union`."""
    hits, false, _ = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    return _ratio(hits, hits + false)


def recall(counts: ArrayLike) -> NDArray[np.float64]:
    """Return the share of the label that was found; arguments as in `intersection_over_union`."""
    hits, _, missed = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    return _ratio(hits, hits + missed)


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def score_overlaps(
    counts: ArrayLike, measure: Callable[[ArrayLike], NDArray[np.float64]] = intersection_over_union, seed: int = 0
) -> Score:
    """Return a measure of all pixels of all chips, with a percentile bootstrap interval over chips.

    Args:
        counts: [chips, 3] as in `Overlap`.
        measure: Of summed counts.
        seed: Of the bootstrap.
    """
    table = np.asarray(counts, dtype=np.float64).reshape(-1, 3)
    drawn = draw_chips(len(table), seed)
    return Score(float(measure(table.sum(axis=0))), percentiles(measure(drawn @ table)))


def mean_class_iou(confusion: ArrayLike) -> NDArray[np.float64]:
    """Return the mean IoU of the classes that the labels hold.

    Args:
        confusion: [..., classes, classes], pixels by label and by map.
    """
    table = np.asarray(confusion, dtype=np.float64)
    hits = np.diagonal(table, axis1=-2, axis2=-1)
    labelled, mapped = table.sum(axis=-1), table.sum(axis=-2)
    each = _ratio(hits, labelled + mapped - hits)
    return np.nanmean(np.where(labelled > 0, each, np.nan), axis=-1)


def count_confusion(predicted: NDArray, true: NDArray, classes: int, ignored: int | None = None) -> NDArray[np.int64]:
    """Return pixels by label and by map, [classes, classes].

    Args:
        predicted: Class ids, any shape.
        true: Class ids, same shape.
        classes: Number of classes.
        ignored: Label that does not count.
    """
    known = np.ones(np.shape(true), bool) if ignored is None else np.asarray(true) != ignored
    pairs = np.asarray(true)[known].astype(np.int64) * classes + np.asarray(predicted)[known]
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def score_confusions(confusions: NDArray, seed: int = 0) -> Score:
    """Return the mean IoU of all chips, with an interval as in `score_overlaps`.

    Args:
        confusions: [chips, classes, classes] as in `count_confusion`.
        seed: Of the bootstrap.
    """
    drawn = draw_chips(len(confusions), seed)
    summed = np.tensordot(drawn, np.asarray(confusions, dtype=np.float64), axes=1)
    return Score(float(mean_class_iou(confusions.sum(axis=0))), percentiles(mean_class_iou(summed)))


def score_median(values: ArrayLike, seed: int = 0) -> Score:
    """Return the median of one number a chip, with a percentile bootstrap interval.

    Args:
        values: [chips].
        seed: Of the bootstrap.
    """
    numbers = np.asarray(values, dtype=np.float64)
    chosen = np.random.default_rng(seed).integers(len(numbers), size=(RESAMPLES, len(numbers)))
    return Score(float(np.median(numbers)), percentiles(np.median(numbers[chosen], axis=1)))


def score_mean(values: ArrayLike) -> Score:
    """Return the mean of independent numbers, with its normal interval.

    Args:
        values: At least one number.
    """
    numbers = np.asarray(values, dtype=np.float64)
    half = 1.96 * numbers.std(ddof=1) / np.sqrt(len(numbers)) if len(numbers) > 1 else np.nan
    return Score(float(numbers.mean()), (float(numbers.mean() - half), float(numbers.mean() + half)))


def draw_chips(count: int, seed: int) -> NDArray[np.float64]:
    """Return how often each chip is drawn, [RESAMPLES, count], with replacement."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)


def percentiles(values: NDArray[np.float64]) -> Interval:
    """Return the middle 95 % of some values; NaN are left out, and of NaN alone there is no middle."""
    known = values[np.isfinite(values)]
    if not known.size:
        return (float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def great_circle(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64]:
    """Return distances on the sphere in km.

    Args:
        first: [..., 2] as (longitude, latitude) in degrees.
        second: Likewise; both are broadcast.

    Source: the haversine formula.
    """
    one, other = np.deg2rad(np.asarray(first, np.float64)), np.deg2rad(np.asarray(second, np.float64))
    across, up = np.moveaxis(other - one, -1, 0)
    chord = np.sin(up / 2) ** 2 + np.cos(one[..., 1]) * np.cos(other[..., 1]) * np.sin(across / 2) ** 2
    return 2 * EARTH_RADIUS * np.arcsin(np.sqrt(np.clip(chord, 0, 1)))
