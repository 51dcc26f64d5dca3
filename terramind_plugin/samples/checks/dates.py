"""Checks of time series: the number of dates of each file, and the order of bands and dates in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import counted
from terramind_plugin.model.dates import DatesTaken
from terramind_plugin.raster.bands import bands_of_date
from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.samples.checks.headers import Header
from terramind_plugin.samples.checks.sample import Summary
from terramind_plugin.samples.dates import modality_of
from terramind_plugin.samples.plan import DataPlan, ImagePlan

CLEARLY = 0.6
"""Maximum ratio of two distances from the modality table at which the order of bands and dates is considered known.

The ratio compares one order with the other. Measured on TerraMesh samples and simulated chips, read as dates of one
file: the right order has 0.05 to 0.46 times the distance of the wrong one."""
SMALLEST_GAIN = 0.05
"""Minimum difference of the two distances in standard deviations; smaller ones are ignored."""


def check_dates(plan: DataPlan, headers: Mapping[Path, Header], taken: DatesTaken | None) -> Iterator[Finding]:
    """Yield findings about numbers of dates that differ within a sample, between samples, or from the model's number.

    Args:
        plan: The data set as configured.
        headers: Headers of its files.
        taken: Number of dates that the model expects; None for any.
    """
    bands = {image.name: len(image.file_bands) or len(image.means) for image in plan.images if image.dates}
    if not bands:
        return
    series: dict[str, tuple[int, Path]] = {}
    odd: list[str] = []
    for split, sample, files in plan.chips():
        read = {name: files[name] for name in bands if files.get(name) in headers and not headers[files[name]].problem}
        if any(not bands[name] or headers[path].bands % bands[name] for name, path in read.items()):
            continue  # reported by check_headers
        dates: Counter[str] = Counter()
        for name, path in read.items():
            dates[modality_of(name)] += headers[path].bands // bands[name]
        longest = max(dates.values(), default=0)
        if any(count not in (1, longest) for count in dates.values()):
            listed = ", ".join(f"{read[name]} has {count}" for name, count in dates.items())
            odd.append(f"{sample}: {listed}")
        elif dates:
            name = max(dates, key=lambda name: dates[name])
            series[f"{split} {sample}"] = (longest, read.get(name) or next(iter(read.values())))
    if odd:
        yield Finding(
            "files: dates",
            "error",
            f"{counted(len(odd), 'sample', 'has/have')} modalities with different numbers of dates, e.g. {odd[0]}.",
            "Give each modality the same number of dates, or one date, which is repeated.",
        )
    yield from _compare_samples(plan, series, taken)


def _compare_samples(
    plan: DataPlan, series: Mapping[str, tuple[int, Path]], taken: DatesTaken | None
) -> Iterator[Finding]:
    """Yield a finding if samples have another number of dates than the model expects, or than most samples."""
    counts = Counter(count for count, _ in series.values())
    if taken is not None and any(count != taken.count for count in counts):
        wrong = [(count, path) for count, path in series.values() if count != taken.count]
        yield Finding(
            "files: dates",
            "error",
            f"{len(wrong)} of {len(series)} samples do not have the {counted(taken.count, 'date')} that "
            f"{taken.reason} needs, e.g. {wrong[0][1]}: {wrong[0][0]}.",
            taken.advice,
        )
    elif len(counts) > 1:
        usual = counts.most_common(1)[0][0]
        count, path = next(one for one in series.values() if one[0] != usual)
        alone = plan.batch_size == 1
        yield Finding(
            "files: dates",
            "note" if alone else "error",
            f"{len(series) - counts[usual]} of {len(series)} samples do not have {counted(usual, 'date')} like the "
            f"others, e.g. {path}: {count}.",
            "" if alone else "Give every sample the same number of dates, or use batch_size: 1.",
        )


def check_date_order(image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Yield the order of bands and dates that the files' values show: an error if it is not the configured one.

    In the right order, the bands of each date differ from each other as the means in the modality table do. The
    brightness of a date does not count.

    Args:
        image: Configured properties of the modality.
        summaries: Values of the files.
    """
    bands, modality = image.file_bands, image.modality
    places = [] if modality is None else [modality.find_band(band) for band in bands]
    if not image.dates or modality is None or len(bands) < 2 or None in places:
        return
    means, stds = (
        np.array([numbers[place] for place in places if place is not None]) for numbers in (modality.mean, modality.std)
    )
    several = [s for s in summaries if len(s.levels) > len(bands) and not len(s.levels) % len(bands)]
    known = [s for s in several if np.isfinite(s.levels).all()]
    if not known:
        return
    chosen, other = (
        float(np.median([_distance(s.levels, means, stds, by_band=by_band) for s in known]))
        for by_band in (image.by_band, not image.by_band)
    )
    dates = sorted({len(s.levels) // len(bands) for s in several})
    texts = ("all bands of a date together", "all dates of a band together")
    where, shown = f"values: {image.name} dates", " or ".join(map(str, dates))
    if other < CLEARLY * chosen and chosen - other > SMALLEST_GAIN:
        key = "true" if image.by_band is False else "false"
        yield Finding(
            where,
            "error",
            f"{counted(len(known), 'file')} of {shown} dates, e.g. {known[0].path.name}: the values show "
            f"{texts[not image.by_band]}, but the configuration says {texts[image.by_band]}.",
            f"Set temporal_channel_major: {key}.",
        )
    elif chosen < CLEARLY * other:
        yield Finding(where, "ok", f"{counted(len(known), 'file')} of {shown} dates, {texts[image.by_band]}.")
    else:
        yield Finding(
            where,
            "note",
            f"{counted(len(known), 'file')} of {shown} dates, read as {texts[image.by_band]}; the values do not show "
            "which order is right.",
        )


def is_other_date_order(image: ImagePlan, summaries: Sequence[Summary]) -> bool:
    """Return whether the values show another order of bands and dates than the configured one.

    Args:
        image: Configured properties of the modality.
        summaries: Values of the files.
    """
    return any(finding.verdict == "error" for finding in check_date_order(image, summaries))


def _distance(
    levels: NDArray[np.float64], means: NDArray[np.float64], stds: NDArray[np.float64], *, by_band: bool
) -> float:
    """Return the mean distance of the bands of each date from the means of the table, in standard deviations.

    Args:
        levels: Median of each band of a file, [bands x dates].
        means: Means of the bands of one date, [bands].
        stds: Standard deviations of the bands of one date, [bands].
        by_band: True if all dates of a band come together, False if all bands of a date do.
    """
    dates = len(levels) // len(means)
    orders = [bands_of_date(len(means), dates, date, by_band=by_band) for date in range(dates)]
    away = (levels[np.array(orders)] - means) / stds
    return float(np.abs(away - np.median(away, axis=1, keepdims=True)).mean())
