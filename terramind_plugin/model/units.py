"""Detection of values in a wrong unit, from the values alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.model.modalities import OPTICAL, RADAR, Modality

FACTORS = (10, 100, 1000)
"""Factors by which decibels are stored as whole numbers."""
MOST = 255
"""Maximum value of an 8-bit picture."""


@dataclass(frozen=True)
class Guess:
    """A wrong unit of values."""

    text: str
    """Name of the wrong unit, e.g. 'linear power, not decibels'."""
    advice: str
    """Advice on converting the values, as a sentence."""
    scale: float | None = None
    """Factor that converts the values into the modality's units; None if a factor is not enough."""

    def __str__(self) -> str:
        return self.text


EIGHT_BIT = Guess("pictures of 8 bits", "Use the original product.")


def other_unit(modality: Modality, values: NDArray[Any]) -> Guess | None:
    """Return the wrong unit in which values seem to be; None if they are in the modality's units.

    Args:
        modality: Expected modality of the values.
        values: Finite values, at least one.
    """
    low, high = float(values.min()), float(values.max())
    if modality.name in OPTICAL and high <= 10:
        return Guess("reflectance that was not multiplied by 10000", "Multiply them by 10000.", 10000)
    if modality.name in RADAR and low >= 0:
        if np.median(values) < 2:
            return Guess("linear power, not decibels", "Convert with 10 * log10(power).")
        return Guess("amplitudes, not decibels", "Convert with 20 * log10(amplitude).")
    if modality.name == "RGB" and high <= 1:
        return Guess("colours from 0 to 1, not 0 to 255", "Multiply them by 255.", 255)
    if modality.name == "NDVI" and low >= 0 and high > 2:
        return Guess("NDVI stretched to whole numbers, not -1 to 1", "Convert the files.")
    outside = _outside(modality, values)
    if outside <= 0.5:
        return None
    if modality.name in RADAR:
        for factor in FACTORS:
            if _outside(modality, values / factor) < 0.01:
                return Guess(f"decibels x {factor}", f"Divide them by {factor}.", 1 / factor)
    smallest, largest = modality.valid_range
    text = f"another unit: {outside:.0%} of them are outside {smallest:g} to {largest:g}"
    return Guess(text, "Convert the files.")


def is_eight_bit(modality: Modality, values: NDArray[Any]) -> bool:
    """Return whether values are those of 8-bit pictures; reflectances of a whole file or data set are never that low.

    Args:
        modality: Expected modality of the values.
        values: Values of a whole file, or of 8-bit files.
    """
    return modality.name in OPTICAL and 10 < values.max() <= MOST


def _outside(modality: Modality, values: NDArray[Any]) -> float:
    """Return the share of values that are outside the range of their modality."""
    smallest, largest = modality.valid_range
    return float(np.mean((values < smallest) | (values > largest)))
