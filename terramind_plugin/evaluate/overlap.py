"""Overlap of a map with its label, and the measures of it."""

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
    """Return the overlap of a map with its label in the pixels that are known; all arrays have one shape."""
    return Overlap(
        int((predicted & true & known).sum()),
        int((predicted & ~true & known).sum()),
        int((~predicted & true & known).sum()),
    )


def intersection_over_union(counts: ArrayLike) -> NDArray[np.float64]:
    """Return the IoU, NaN where there is nothing to find and nothing was found.

    Args:
        counts: [..., 3] as in `Overlap`.
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
    """Return quotients, NaN where the whole is 0."""
    return np.asarray(np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0))
