"""Overlap of a map with its label, and scores computed from it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Overlap(NamedTuple):
    """Overlap of two sets of pixels."""

    hits: int
    """Pixels in both."""
    false: int
    """Pixels in the map alone."""
    missed: int
    """Pixels in the label alone."""


def count_overlap(predicted: NDArray[np.bool_], true: NDArray[np.bool_], known: NDArray[np.bool_]) -> Overlap:
    """Return the overlap of a map with its label, counted where `known` is True; all arrays have one shape."""
    return Overlap(
        int((predicted & true & known).sum()),
        int((predicted & ~true & known).sum()),
        int((~predicted & true & known).sum()),
    )


def intersection_over_union(counts: ArrayLike) -> NDArray[np.float64]:
    """Return the intersection over union; NaN if both the map and the label are empty.

    Args:
        counts: Numbers of pixels [..., 3], in the order of `Overlap`.
    """
    hits, false, missed = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    return ratio(hits, hits + false + missed)


def precision(counts: ArrayLike) -> NDArray[np.float64]:
    """Return the share of the map that is right; arguments as in `intersection_over_union`."""
    hits, false, _ = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    return ratio(hits, hits + false)


def recall(counts: ArrayLike) -> NDArray[np.float64]:
    """Return the share of the label that was found; arguments as in `intersection_over_union`."""
    hits, _, missed = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    return ratio(hits, hits + missed)


def ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return part / whole, and NaN where the whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0))
