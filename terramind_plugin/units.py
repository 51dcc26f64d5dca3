"""What unit values are in, seen from the values alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.modalities import Modality

REFLECTANCE = ("S2L2A", "S2L1C")
RADAR = ("S1GRD", "S1RTC")


def other_unit(modality: Modality, values: NDArray) -> str:
    """Return what the values look like if not in the modality's units, e.g. 'linear power, not decibels', else ''.

    Args:
        modality: What they should be.
        values: Finite values, at least one.
    """
    low, high = float(values.min()), float(values.max())
    if modality.name in REFLECTANCE and high <= 10:
        return "reflectance that was not multiplied by 10000"
    if modality.name in RADAR and low >= 0:
        return "linear power, not decibels" if np.median(values) < 2 else "amplitudes, not decibels"
    if modality.name == "RGB" and high <= 1:
        return "colours from 0 to 1, not 0 to 255"
    if modality.name == "NDVI" and low >= 0 and high > 2:
        return "NDVI stretched to whole numbers, not -1 to 1"
    smallest, largest = modality.valid_range
    outside = float(np.mean((values < smallest) | (values > largest)))
    return f"another unit: {outside:.0%} of them are outside {smallest:g} to {largest:g}" if outside > 0.5 else ""
