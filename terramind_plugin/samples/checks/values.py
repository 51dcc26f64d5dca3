"""Checks of pixel values against the modality table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import counted
from terramind_plugin.model.modalities import MODALITIES, OPTICAL, RADAR
from terramind_plugin.model.units import EIGHT_BIT, Guess, is_eight_bit, other_unit
from terramind_plugin.samples.checks.dates import check_date_order
from terramind_plugin.samples.checks.findings import Finding, some
from terramind_plugin.samples.checks.gaps import check_gaps
from terramind_plugin.samples.checks.order import check_order
from terramind_plugin.samples.checks.sample import Sample, Summary, pooled
from terramind_plugin.samples.checks.statistics import check_statistics
from terramind_plugin.samples.plan import DataPlan, ImagePlan

DN_OFFSET = 1000
"""Offset of Sentinel-2's digital numbers since processing baseline 04.00."""
FOOT = 0.3048
"""A foot in metres."""
FLAT = 0.1
"""Spread in pre-training standard deviations below which values are nearly equal, which points to a wrong scale."""


def check_values(plan: DataPlan, sample: Sample) -> Iterator[Finding]:
    """Yield findings about the values of a sample of images.

    Args:
        plan: The data set as configured.
        sample: Values that were read.
    """
    if sample.problems:
        path, problem = sample.problems[0]
        yield Finding(
            "values: readable",
            "error",
            f"{counted(len(sample.problems), 'file')}, e.g. {path}: {problem}.",
            "Replace them.",
        )
    for image in plan.images:
        summaries = sample.images.get(image.name, [])
        # Wrong numbers of bands are reported by check_headers.
        summaries = [s for s in summaries if len(s.median) == (len(image.file_bands) or len(summaries[0].median))]
        if not summaries:
            continue
        yield from check_gaps(plan, image, summaries)
        yield from check_date_order(image, summaries)
        filled = [summary for summary in summaries if summary.pixels.size]
        yield from check_statistics(image, filled)
        special = image.modality is not None and image.modality.name in ("DEM", "LULC")
        wrong = [] if special else list(_check_units(image, filled))
        yield from wrong
        if not wrong:
            yield from _check_modality(image, filled)


def _own_units(image: ImagePlan, pixels: NDArray[Any]) -> bool:
    """Return whether the configured statistics differ from the table's and fit the values, whatever the unit."""
    if image.modality is None or len(image.means) != len(pixels):
        return False
    table = dict(zip(image.modality.band_names, image.modality.mean, strict=True))
    names = [image.modality.find_band(band) for band in image.bands]
    known = [table[image.modality.band_names[index]] if index is not None else np.nan for index in names]
    if len(known) == len(image.means) and np.allclose(known, image.means, rtol=1e-3):
        return False
    mean, std = np.array(image.means), np.array(image.stds)
    near = np.abs(np.median(pixels, axis=1) - mean) < 3 * std
    spread = (np.percentile(pixels, 95, axis=1) - np.percentile(pixels, 5, axis=1)) / std
    return bool(near.all() and np.median(spread) > 0.3)


def _check_units(image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    if image.modality is None or not summaries or _own_units(image, pooled(image, summaries)):
        return
    guesses = [(summary, other_unit(image.modality, summary.pixels)) for summary in summaries]
    wrong = [(summary, guess) for summary, guess in guesses if guess is not None]
    where = f"values: {image.name} units"
    pixels = pooled(image, summaries)
    expected = "-1 to 1" if image.modality.name == "NDVI" else image.modality.units
    if wrong:
        mixed = "the others do not; all need one unit" if len(wrong) < len(summaries) else "all of them"
        yield Finding(
            where,
            "error",
            f"{len(wrong)} of {len(summaries)} files ({mixed}) look like {wrong[0][1]}, e.g. {wrong[0][0].path.name}.",
            f"Expected: {expected}. {_conversion(image, wrong[0][1], wrong[0][0].pixels)}",
        )
    elif is_eight_bit(image.modality, pixels):
        yield Finding(
            where,
            "error",
            f"no value above {pixels.max():g}: {EIGHT_BIT}, not {expected}.",
            _conversion(image, EIGHT_BIT, pixels),
        )
    elif image.scale != 1 and (advice := _correct_scale(image, pixels)):
        yield Finding(where, "error", f"constant_scale is {image.scale:g} for {image.name}.", advice)


def _conversion(image: ImagePlan, guess: Guess, pixels: NDArray[Any]) -> str:
    """Return the advice on how to convert values into the units of their modality."""
    assert image.modality is not None
    if image.scale != 1:
        own = other_unit(image.modality, pixels / image.scale)
        if own is None and is_eight_bit(image.modality, pixels / image.scale):
            own = EIGHT_BIT
        return _correct_scale(image, pixels) or (
            f"constant_scale is {image.scale:g}, which is not enough: the files look like {own}. {own.advice}"
            if own is not None
            else f"Remove constant_scale ({image.scale:g}): without it the files look right."
        )
    if guess.scale is None:
        return guess.advice
    return f"Set constant_scale: {{{image.name}: {guess.scale:g}}}" + (
        " if they are 0 to 1." if image.modality.name in OPTICAL else "."
    )


def _correct_scale(image: ImagePlan, pixels: NDArray[Any]) -> str:
    """Return the advice on how to correct a constant_scale of the configuration; '' if it may be right.

    Args:
        image: Configured properties of the modality.
        pixels: Values [bands, n] in the units that the model reads.
    """
    assert image.modality is not None
    stored = pixels / image.scale
    own = other_unit(image.modality, stored)
    if own is not None and own.scale is not None and not 0.5 < image.scale / own.scale < 2:
        return (
            f"Change constant_scale from {image.scale:g} to {{{image.name}: {own.scale:g}}}: without it the files "
            f"look like {own}."
        )
    if own is not None or is_eight_bit(image.modality, stored):
        return ""
    usual = np.median(image.modality.std)
    spreads = [float(np.median(np.ptp(np.percentile(x, (5, 95), axis=1), axis=0))) / usual for x in (pixels, stored)]
    if spreads[0] < FLAT < 1 / 2 < spreads[1]:
        return f"Remove constant_scale ({image.scale:g}): without it the files look right, with it they are flat."
    return ""


def _check_modality(image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    name = image.modality.name if image.modality is not None else ""
    if not summaries:
        return
    if name in OPTICAL:
        yield from check_offset(image, summaries)
        yield from check_order(image, summaries)
    elif name in RADAR:
        yield from _check_polarisations(image, summaries)
    elif name == "DEM":
        yield from _check_heights(image, summaries)
    elif name == "LULC":
        yield from _check_classes(image, summaries)


def check_offset(image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Yield a finding if `offsets` does not agree with the +1000 offset of newer Sentinel-2 products in the files.

    Args:
        image: Configured properties of the modality.
        summaries: Values of the files.
    """
    shifted = [summary for summary in summaries if has_offset(image, summary) is True]
    plain = [summary for summary in summaries if has_offset(image, summary) is False]
    added = (image.offset or 0.0) * image.scale
    where, declared = f"values: {image.name} offset", f"offsets: {{{image.name}: {-DN_OFFSET / image.scale:g}}}"
    if shifted and plain:
        few, what = (shifted, "have") if len(shifted) <= len(plain) else (plain, "lack")
        yield Finding(
            where,
            "warning",
            f"mixed: {len(few)} of {len(summaries)} files {what} the offset of +{DN_OFFSET}: "
            f"{some([s.path.name for s in few])}.",
            f"Subtract {DN_OFFSET} from the files of processing baseline 04.00 and later.",
        )
    elif shifted and image.offset is None:
        yield Finding(
            where,
            "warning",
            f"{len(shifted)} of {len(summaries)} files have the offset of +{DN_OFFSET}, the others may have it; "
            "offsets is not set.",
            f"Set {declared} to remove it while reading, or {{{image.name}: 0}} to keep it. Do the same for all data "
            "that the model will read.",
        )
    elif (added < 0 and plain) or (added > 0 and shifted):
        wrong, what = (plain, "lack") if plain else (shifted, "have")
        yield Finding(
            where,
            "error",
            f"{len(wrong)} of {len(summaries)} files {what} the offset of +{DN_OFFSET}, but offsets adds "
            f"{image.offset:g}, e.g. {wrong[0].path.name}: its lowest values become {np.nanmin(wrong[0].low):g}.",
            f"Remove {image.name} from offsets.",
        )


def has_offset(image: ImagePlan, summary: Summary) -> bool | None:
    """Return whether a Sentinel-2 file has the offset; None if the values do not show it.

    Without clouds the cirrus band is nearly black, so its lowest values show the offset. In other images the lowest
    values of several bands lie just above the offset if there is one; bright ground alone would get brighter with
    wavelength. Files that `terramind chips` has written say in a tag that the offset was removed.
    """
    if summary.harmonised:
        return False
    return holds_offset(summary.low - (image.offset or 0.0) * image.scale, image.file_bands)


def holds_offset(in_file: NDArray[Any], bands: Sequence[str]) -> bool | None:
    """Return whether digital numbers of Sentinel-2 include the offset; None if the values do not show it.

    Args:
        in_file: First percentile of each band; NaN where a band has no pixel.
        bands: Names of the bands.
    """
    low = in_file[np.isfinite(in_file)]
    if not low.size or low.min() < 0.85 * DN_OFFSET:
        return False if low.size else None
    cirrus = [index for index, band in enumerate(bands) if band.upper() in ("B10", "CIRRUS")]
    if cirrus:
        return True if in_file[cirrus[0]] < 1.2 * DN_OFFSET else None
    near = (low < 1.5 * DN_OFFSET).sum()
    return True if near >= max(2, len(low) // 3) else None


def _check_polarisations(image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    names = [band.upper() for band in image.file_bands]
    if "VV" not in names or "VH" not in names:
        return
    vv, vh = names.index("VV"), names.index("VH")
    swapped = [s for s in summaries if s.median[vv] < s.median[vh] - 1]
    if swapped:
        yield Finding(
            f"values: {image.name} polarisations",
            "error",
            f"in {len(swapped)} of {len(summaries)} files VH is brighter than VV, so they seem to be swapped, e.g. "
            f"{swapped[0].path.name}.",
            f"Name the bands of the files in their order, dataset_bands: {{{image.name}: [VH, VV]}}, and "
            f"output_bands: {{{image.name}: [VV, VH]}}.",
        )


def _check_heights(image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    low, high = MODALITIES["DEM"].valid_range
    gaps = [s for s in summaries if (s.pixels < low).any()]
    where = f"values: {image.name} heights"
    if gaps:
        lowest = min(float(s.pixels.min()) for s in gaps)
        yield Finding(
            where,
            "error",
            f"{len(gaps)} of {len(summaries)} files hold {lowest:g}, e.g. {gaps[0].path.name}. It cannot be a height "
            "and seems to mean no data.",
            f"Declare it in the files: gdal_edit.py -a_nodata {lowest:g}.",
        )
    heights = np.concatenate([s.pixels[s.pixels >= low] for s in summaries])
    if heights.size and (heights.max() > high or _whole_metres_in_feet(heights)):
        yield Finding(
            where,
            "error",
            f"heights up to {heights.max():g} look like feet.",
            f"Multiply by {FOOT} to get metres.",
        )


def _whole_metres_in_feet(heights: NDArray[Any]) -> bool:
    """Return whether the values are whole metres converted to feet, rounded or not."""
    values = np.unique(heights)
    if len(values) < 20 or np.allclose(values, values[0]):
        return False
    metres = np.round(values * FOOT)
    exact = np.abs(values - metres / FOOT) < 1e-3 * np.maximum(1, np.abs(values) / 1000)
    rounded = (values == np.round(values)) & (np.abs(values - metres / FOOT) <= 0.5)
    return bool(max(exact.mean(), rounded.mean()) > 0.95)


def _check_classes(image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    ids = np.unique(np.concatenate([summary.pixels.ravel() for summary in summaries]))
    wrong = [float(value) for value in ids if value < 0 or value > 9 or value != round(float(value))]
    if not wrong:
        return
    if set(wrong) <= {10.0, 11.0}:
        seen, advice = (
            "codes 10 and 11 of ESRI's land cover",
            "Map the codes 1, 2, 4, 5, 7, 8, 9, 10, 11 to 1 to 9, in this order.",
        )
    else:
        seen, advice = f"values {some([f'{value:g}' for value in wrong])}", "Class ids are 0 to 9."
    yield Finding(f"values: {image.name} classes", "error", f"{seen}.", advice)
