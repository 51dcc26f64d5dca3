"""Mean, standard deviation and percentiles of each band of a data set, in one pass and with little memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from terramind_plugin.errors import counted
from terramind_plugin.model.modalities import band_text, find
from terramind_plugin.raster.missing import is_odd

PERCENTILES = (1, 5, 50, 95, 99)
BITS = 18
"""Number of bits of a float32 that percentiles use: sign, exponent and nine of the fraction, i.e. 1 part in 512."""
FAR_MEAN = 1.0
"""Minimum distance of a mean from the pre-training mean that is marked, in pre-training standard deviations."""


@dataclass(frozen=True)
class Statistics:
    """Statistics of one modality; each list has one item per band."""

    mean: list[float]
    std: list[float]
    percentiles: dict[int, list[float]]
    """Percentiles by their rank in per cent, exact to 1 part in 512."""
    samples: int
    missing: float
    """Share of the values that have no data."""


class RunningStatistics:
    """Statistics of values that are added in parts.

    Args:
        bands: Number of bands.
    """

    def __init__(self, bands: int) -> None:
        self.samples = self.size = 0
        self.count, self.mean, self.squares = (np.zeros(bands) for _ in range(3))
        self.low, self.high = np.full(bands, np.inf), np.full(bands, -np.inf)
        self.histogram = np.zeros((bands, 1 << BITS), dtype=np.int64)

    def add(self, values: NDArray[np.float32]) -> None:
        """Add the values of a sample.

        Args:
            values: Values [bands, n]; NaN values are left out.
        """
        self.samples += 1
        self.size += values.size
        for band, row in enumerate(values):
            known = row[~is_odd(row)]
            if not known.size:
                continue
            exact = known.astype(np.float64)
            mean, count = exact.mean(), self.count[band] + known.size
            # Merged by differences of means: sums of squares would lose precision if values are far from zero.
            away = mean - self.mean[band]
            self.squares[band] += np.square(exact - mean).sum() + away**2 * self.count[band] * known.size / count
            self.mean[band] += away * known.size / count
            self.count[band] = count
            self.low[band], self.high[band] = min(self.low[band], exact.min()), max(self.high[band], exact.max())
            self.histogram[band] += np.bincount(_keys(known), minlength=1 << BITS)

    def result(self) -> Statistics:
        """Return the statistics of all values added so far. Every band must have had a value."""
        return Statistics(
            mean=_round(self.mean),
            std=_round(np.sqrt(self.squares / self.count)),
            percentiles={share: _round(self._percentile(share)) for share in PERCENTILES},
            samples=self.samples,
            missing=1 - float(self.count.sum()) / self.size,
        )

    def _percentile(self, share: float) -> NDArray[Any]:
        below = self.histogram.cumsum(axis=1)
        found = np.empty(len(below))
        for band, counts in enumerate(below):
            rank = share / 100 * (self.count[band] - 1)
            key = int(np.searchsorted(counts, rank, side="right"))
            inside = (rank - (counts[key] - self.histogram[band, key]) + 0.5) / self.histogram[band, key]
            start, end = _values(np.array([key, key + 1]))
            found[band] = start + inside * (end - start)
        return np.clip(found, self.low, self.high)


def _keys(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return the first bits of each number as an integer key; keys sort like the numbers."""
    bits = (values + np.float32(0)).view(np.uint32)  # -0 becomes 0
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return ordered >> np.uint32(32 - BITS)


def _values(keys: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the smallest number that has each key."""
    ordered = (keys << (32 - BITS)).astype(np.uint32)
    bits = np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def _round(numbers: NDArray[Any]) -> list[float]:
    return [float(f"{value:.6g}") for value in numbers.tolist()]


def describe_statistics(statistics: Mapping[str, Statistics], bands: Mapping[str, Any]) -> str:
    """Return YAML for data.init_args: means and stds, with comments that compare them with the pre-training data.

    Args:
        statistics: Statistics by modality.
        bands: Names of the bands that the model reads, by modality; None for all bands of the modality table.
    """
    lines = ["# Per band: mean, std and percentiles of these data; then mean and std of the pre-training data, and how"]
    lines += ["# many of its standard deviations the means are apart."]
    for name, numbers in statistics.items():
        lines += ["#", *_table(name, numbers, bands.get(name))]
    kept = {
        what: {name: getattr(numbers, what[:-1]) for name, numbers in statistics.items()} for what in ("means", "stds")
    }
    return "\n".join(lines) + "\n" + yaml.safe_dump(kept, sort_keys=False, default_flow_style=None)


def _table(name: str, numbers: Statistics, bands: Any) -> list[str]:
    entry = find(name)
    names = [band_text(band) for band in bands or (entry.band_names if entry is not None else ())]
    if len(names) != len(numbers.mean):
        names = [f"band {number + 1}" for number in range(len(numbers.mean))]
    head = ["mean", "std", *(f"{share} %" for share in PERCENTILES), "pre-train", "std", "apart"]
    lines = [f"# {name}: {counted(numbers.samples, 'sample')}, {numbers.missing:.1%} of the values without data"]
    lines += [f"# {'':<16}" + "".join(f"{word:>10}" for word in head)]
    for index, band in enumerate(names):
        cells = [numbers.mean[index], numbers.std[index], *(values[index] for values in numbers.percentiles.values())]
        line = f"# {band:<16}" + "".join(f"{value:>10.5g}" for value in cells)
        place = entry.find_band(band) if entry is not None else None
        if entry is not None and place is not None:
            mean, std = entry.mean[place], entry.std[place]
            apart = (numbers.mean[index] - mean) / std
            line += f"{mean:>10.5g}{std:>10.5g}{apart:>+10.1f}" + ("  !" if abs(apart) > FAR_MEAN else "")
        lines.append(line)
    return lines
