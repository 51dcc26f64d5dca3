"""Checks of pixels without data, and of constant bands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from terramind_plugin.errors import counted
from terramind_plugin.model.modalities import OPTICAL, RADAR
from terramind_plugin.samples.checks.findings import Finding, some
from terramind_plugin.samples.checks.sample import Summary
from terramind_plugin.samples.plan import DataPlan, ImagePlan

GAPS = 0.01
"""Minimum share of zeros for which the zeros are suspected to mean no data."""
MANY = 0.1
"""Minimum share of pixels without data that is reported."""


def check_gaps(plan: DataPlan, image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Yield the effects of pixels without data, numbers that may stand for no data, and constant bands."""
    yield from _check_missing(plan, image, summaries)
    yield from _check_odd(image, summaries)
    yield from _check_numbers(image, summaries)
    yield from _check_constant(image, summaries)


def _check_missing(plan: DataPlan, image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    empty = [summary for summary in summaries if np.isnan(summary.median).all()]
    where = f"values: {image.name} gaps"
    if empty:
        yield Finding(
            where,
            "error" if len(empty) == len(summaries) else "warning",
            f"{len(empty)} of {len(summaries)} files are all NaN or nodata: {some([s.path.name for s in empty])}.",
            "They count as missing." if plan.missing_allowed else "Remove them, or set allow_missing_modalities: true.",
        )
    partly = [s for s in summaries if np.isnan(s.median).any() and s not in empty]
    if partly:
        yield Finding(
            where, "warning", f"{counted(len(partly), 'file', 'has/have')} empty bands, e.g. {partly[0].path}."
        )
    share = float(np.mean([summary.missing for summary in summaries if summary not in empty] or [0.0]))
    if share and plan.no_data_replace is None and not plan.own:
        yield Finding(
            where,
            "error",
            f"{share:.1%} of the pixels have no data and no_data_replace is not set: the loss becomes NaN.",
            "Use terramind_plugin.TerraMindDataModule, which fills them with the mean.",
        )
    elif share > 0 and plan.no_data_replace is not None:
        away = max(
            (abs(plan.no_data_replace - m) / s for m, s in zip(image.means, image.stds, strict=False)), default=0
        )
        if away > 2:
            yield Finding(
                where,
                "warning",
                f"{share:.1%} of the pixels have no data and are set to {plan.no_data_replace:g}, which is "
                f"{away:.1f} standard deviations from the mean.",
                "Leave no_data_replace out." if plan.own else "Set it to a typical value.",
            )
    elif share > MANY:
        advice = "ignore_empty_pixels: true leaves pixels without any data out of loss and metrics." if plan.own else ""
        yield Finding(where, "note", f"{share:.1%} of the pixels have no data; they are set to the mean.", advice)


def _check_odd(image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Yield files with undeclared missing pixels: infinite or huge numbers, and NaN."""
    far = [summary for summary in summaries if summary.far]
    where = f"values: {image.name} not finite"
    if far:
        worst = max(far, key=lambda summary: summary.far)
        count = sum(summary.far for summary in far)
        yield Finding(
            where,
            "warning",
            f"{len(far)} of {len(summaries)} files hold values that are infinite or beyond 1e30, {count} pixels, most "
            f"of them ({worst.far}) in {worst.path.name}: {worst.number:g}. They count as missing.",
            "Replace them by NaN."
            if worst.tagged or not np.isfinite(worst.number or 0)
            else f"If that is meant, declare it in the files: gdal_edit.py -a_nodata {worst.number!r}.",
        )
    nan = [summary for summary in summaries if summary.undeclared > summary.far]
    if nan:
        worst = max(nan, key=lambda summary: summary.undeclared)
        yield Finding(
            where,
            "note",
            f"{len(nan)} of {len(summaries)} files hold NaN that no nodata value declares, "
            f"{sum(summary.undeclared for summary in nan)} pixels, most of them ({worst.undeclared}) in "
            f"{worst.path.name}. They count as missing.",
        )


def _check_numbers(image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Yield undeclared numbers, such as -9999 and 0, that seem to stand for no data."""
    where = f"values: {image.name} gaps"
    if image.modality is not None and image.modality.name not in ("DEM", "LULC"):
        low, high = image.modality.valid_range
        low, high = 2 * low - high, 2 * high - low
        if image.modality.name in RADAR:
            high = np.inf  # linear power may be large without being a placeholder
        odd = [s for s in summaries if s.pixels.size and (s.pixels.min() < low or s.pixels.max() > high)]
        shares = [float(((s.pixels < low) | (s.pixels > high)).mean()) for s in odd]
        # If most pixels hold the number, the unit is a different one.
        if shares and max(shares) <= 0.5:
            pixels = odd[0].pixels
            number = (pixels.min() if pixels.min() < low else pixels.max()) / image.scale - (image.offset or 0)
            yield Finding(
                where,
                "error",
                f"{len(odd)} of {len(summaries)} files hold {number:g}, e.g. {odd[0].path.name}. It cannot be a value "
                f"in {image.modality.units} and seems to mean no data.",
                f"Declare it in the files: gdal_edit.py -a_nodata {number:g}.",
            )
    if image.modality is None or image.modality.name in (*OPTICAL, *RADAR):
        zeros = [summary for summary in summaries if summary.zero > GAPS]
        if zeros:
            yield Finding(
                where,
                "warning",
                f"{len(zeros)} of {len(summaries)} files have pixels that are 0 in all bands, up to "
                f"{max(s.zero for s in zeros):.0%}: {some([s.path.name for s in zeros])}.",
                "If 0 means no data, declare it in the files: gdal_edit.py -a_nodata 0.",
            )


def _check_constant(image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    level = image.modality is not None and image.modality.name in ("DEM", "LULC")
    flat = [s for s in summaries if s.constant.any() and s.zero != 1]
    if flat and not level:
        bands = sorted({_band(image, int(index)) for s in flat for index in np.flatnonzero(s.constant)})
        yield Finding(
            f"values: {image.name} constant",
            "warning",
            f"{counted(len(flat), 'file', 'has/have')} constant bands ({some(bands)}), e.g. {flat[0].path.name}.",
            "Check how the files were made.",
        )


def _band(image: ImagePlan, index: int) -> str:
    return image.file_bands[index] if index < len(image.file_bands) else f"band {index + 1}"
