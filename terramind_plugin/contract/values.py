"""Checks of pixel values against the table of modalities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.contract.findings import Finding, some
from terramind_plugin.contract.order import check_order
from terramind_plugin.contract.plan import DataPlan, ImagePlan
from terramind_plugin.contract.sample import Sample, Summary
from terramind_plugin.modalities import MODALITIES
from terramind_plugin.units import RADAR, REFLECTANCE, other_unit

OFFSET = 1000
"""Added to digital numbers of Sentinel-2 from processing baseline 4 on."""
GAPS = 0.01
"""Share of zeros from which on they are taken for pixels without data."""
FOOT = 0.3048
"""In metres."""


def check_values(plan: DataPlan, sample: Sample) -> Iterator[Finding]:
    """Yield what is wrong with the values of a sample of images.

    Args:
        plan: What the configuration says.
        sample: What was read.
    """
    if sample.problems:
        path, problem = sample.problems[0]
        yield Finding(
            "values: readable", "error", f"{len(sample.problems)} files, e.g. {path}: {problem}.", "Replace them."
        )
    for image in plan.images:
        summaries = sample.images.get(image.name, [])
        # Another number of bands is an error of its own, see check_headers.
        summaries = [s for s in summaries if len(s.median) == (len(image.file_bands) or len(summaries[0].median))]
        if not summaries:
            continue
        yield from _check_gaps(plan, image, summaries)
        filled = [summary for summary in summaries if summary.pixels.size]
        yield from check_statistics(image, filled)
        special = image.modality is not None and image.modality.name in ("DEM", "LULC")
        wrong = [] if special else list(_check_units(image, filled))
        yield from wrong
        if not wrong:
            yield from _check_modality(image, filled)


def _check_gaps(plan: DataPlan, image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    empty = [summary for summary in summaries if np.isnan(summary.median).all()]
    where = f"values: {image.name} gaps"
    if empty:
        yield Finding(
            where,
            "error" if len(empty) == len(summaries) else "warning",
            f"{len(empty)} of {len(summaries)} files are all NaN or nodata: {some([s.path.name for s in empty])}.",
            "Remove them, or set allow_missing_modalities: true.",
        )
    partly = [s for s in summaries if np.isnan(s.median).any() and s not in empty]
    if partly:
        yield Finding(where, "warning", f"{len(partly)} files have bands without data, e.g. {partly[0].path}.")
    share = float(np.mean([summary.missing for summary in summaries if summary not in empty] or [0.0]))
    if share and plan.no_data_replace is None and not plan.own:
        yield Finding(
            where,
            "error",
            f"{share:.1%} of the pixels have no data and no_data_replace is not set: the loss becomes NaN.",
            "Use terramind_plugin.TerraMindDataModule, which fills with the mean.",
        )
    elif share > 0 and plan.no_data_replace is not None and image.means:
        away = max(abs(plan.no_data_replace - m) / s for m, s in zip(image.means, image.stds, strict=True))
        if away > 2:
            yield Finding(
                where,
                "warning",
                f"{share:.1%} of the pixels have no data and take {plan.no_data_replace:g}, "
                f"{away:.1f} standard deviations from the mean.",
                "Leave no_data_replace out." if plan.own else "Set it to a typical value.",
            )
    if image.modality is None or image.modality.name in (*REFLECTANCE, *RADAR):
        zeros = [summary for summary in summaries if summary.zero > GAPS]
        if zeros:
            yield Finding(
                where,
                "warning",
                f"{len(zeros)} of {len(summaries)} files have pixels that are 0 in all bands, up to "
                f"{max(s.zero for s in zeros):.0%}: {some([s.path.name for s in zeros])}.",
                "If 0 means no data, say so in the files: gdal_edit.py -a_nodata 0.",
            )
    level = image.modality is not None and image.modality.name in ("DEM", "LULC")
    flat = [s for s in summaries if s.constant.any() and s.zero != 1]
    if flat and not level:
        bands = sorted({_band(image, int(index)) for s in flat for index in np.flatnonzero(s.constant)})
        yield Finding(
            f"values: {image.name} constant",
            "warning",
            f"{len(flat)} files have one value only in {some(bands)}, e.g. {flat[0].path.name}.",
            "Check how the files were made.",
        )


def _band(image: ImagePlan, index: int) -> str:
    return image.file_bands[index] if index < len(image.file_bands) else f"band {index + 1}"


def _read(image: ImagePlan, pixels: NDArray) -> NDArray:
    """Return the bands that the model gets."""
    return pixels[list(image.read)] if image.read and max(image.read) < len(pixels) else pixels


def _pooled(image: ImagePlan, summaries: Sequence[Summary]) -> NDArray:
    bands = min(len(summary.pixels) for summary in summaries)
    return np.concatenate([_read(image, summary.pixels)[:bands] for summary in summaries], axis=1)


def _own_units(image: ImagePlan, pixels: NDArray) -> bool:
    """Whether given statistics, other than the table's, describe these values whatever their unit."""
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
    if image.modality is None or not summaries or _own_units(image, _pooled(image, summaries)):
        return
    guesses = [other_unit(image.modality, summary.pixels) for summary in summaries]
    wrong = [(summary, guess) for summary, guess in zip(summaries, guesses, strict=True) if guess]
    where = f"values: {image.name} units"
    if wrong:
        mixed = "the others do not: one unit is needed" if len(wrong) < len(summaries) else "all of them"
        yield Finding(
            where,
            "error",
            f"{len(wrong)} of {len(summaries)} files ({mixed}) look like {wrong[0][1]}, e.g. {wrong[0][0].path.name}.",
            f"Expected: {image.modality.units}. {_conversion(image)}",
        )
        return
    pooled = _pooled(image, summaries)
    if image.modality.name in REFLECTANCE and pooled.max() <= 255:
        yield Finding(
            where,
            "error",
            f"no value above {pooled.max():g}: pictures of 8 bits, not {image.modality.units}.",
            "Use the original product.",
        )


def _conversion(image: ImagePlan) -> str:
    assert image.modality is not None
    if image.modality.name in REFLECTANCE:
        return f"Set constant_scale: {{{image.name}: 10000}} if they are 0 to 1."
    return "Convert with 10 * log10(power)." if image.modality.name in RADAR else "Convert the files."


def _check_modality(image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    name = image.modality.name if image.modality is not None else ""
    if not summaries:
        return
    if name in REFLECTANCE:
        yield from check_offset(image, summaries)
        yield from check_order(image, summaries)
    elif name in RADAR:
        yield from _check_polarisations(image, summaries)
    elif name == "DEM":
        yield from _check_heights(image, summaries)
    elif name == "LULC":
        yield from _check_classes(image, summaries)


def check_offset(image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Yield a finding if the +1000 offset of newer Sentinel-2 products is not in the files as the configuration says.

    Args:
        image: What the configuration says.
        summaries: What the files hold.
    """
    shifted = [summary for summary in summaries if has_offset(image, summary) is True]
    plain = [summary for summary in summaries if has_offset(image, summary) is False]
    added = (image.offset or 0.0) * image.scale
    where, declared = f"values: {image.name} offset", f"offsets: {{{image.name}: {-OFFSET / image.scale:g}}}"
    if shifted and plain:
        few, what = (shifted, "have") if len(shifted) <= len(plain) else (plain, "have not")
        yield Finding(
            where,
            "warning",
            f"mixed: {len(few)} of {len(summaries)} files {what} the offset of +{OFFSET}: "
            f"{some([s.path.name for s in few])}.",
            f"Subtract {OFFSET} from files of processing baseline 4 and later.",
        )
    elif shifted and image.offset is None:
        yield Finding(
            where,
            "warning",
            f"{len(shifted)} of {len(summaries)} files have the offset of +{OFFSET}, none not; offsets says nothing.",
            f"Set {declared} to take it away while reading, or {{{image.name}: 0}} to keep it; the same for all data "
            "that the model will see.",
        )
    elif (added < 0 and plain) or (added > 0 and shifted):
        wrong, what = (plain, "have not") if plain else (shifted, "have")
        yield Finding(
            where,
            "error",
            f"{len(wrong)} of {len(summaries)} files {what} the offset of +{OFFSET}, but offsets adds "
            f"{image.offset:g}, e.g. {wrong[0].path.name}: its lowest values become {np.nanmin(wrong[0].low):g}.",
            f"Remove {image.name} from offsets.",
        )


def has_offset(image: ImagePlan, summary: Summary) -> bool | None:
    """Return whether a Sentinel-2 file has the offset; None if that cannot be seen.

    The cirrus band is nearly black in an image without clouds. Other images have some dark pixels; with the offset
    several bands end in a wall just above it, while bright ground brightens with wavelength.
    """
    in_file = summary.low - (image.offset or 0.0) * image.scale
    low = in_file[np.isfinite(in_file)]
    if not low.size or low.min() < 0.85 * OFFSET:
        return False if low.size else None
    cirrus = [index for index, band in enumerate(image.file_bands) if band.upper() in ("B10", "CIRRUS")]
    if cirrus:
        return True if in_file[cirrus[0]] < 1.2 * OFFSET else None
    near = (low < 1.5 * OFFSET).sum()
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
            f"{len(swapped)} of {len(summaries)} files have VH brighter than VV, e.g. {swapped[0].path.name}: swapped.",
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
            f"{len(gaps)} of {len(summaries)} files hold {lowest:g}, e.g. {gaps[0].path.name}: no height, but no data.",
            f"Declare it in the files: gdal_edit.py -a_nodata {lowest:g}.",
        )
    heights = np.concatenate([s.pixels[s.pixels >= low] for s in summaries])
    if heights.size and (heights.max() > high or _whole_metres_in_feet(heights)):
        yield Finding(
            where,
            "error",
            f"heights up to {heights.max():g} look like feet.",
            f"Multiply by {FOOT}: metres are expected.",
        )


def _whole_metres_in_feet(heights: NDArray) -> bool:
    """Whether these are whole metres that were converted to feet, rounded or not."""
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
            "Map 1, 2, 4, 5, 7, 8, 9, 10, 11 to 1 to 9, in this order.",
        )
    else:
        seen, advice = f"values {some([f'{value:g}' for value in wrong])}", "Class ids are 0 to 9."
    yield Finding(f"values: {image.name} classes", "error", f"{seen}.", advice)


def check_statistics(image: ImagePlan, summaries: Sequence[Summary]) -> Iterator[Finding]:
    """Yield what is wrong with means and stds: missing, of another modality, or far from the data."""
    where = f"values: {image.name} statistics"
    if not image.means or not image.stds:
        yield Finding(
            where,
            "error",
            "no means and stds: its values are not standardised.",
            "Names must match in modalities, means.",
        )
        return
    yield from _check_whose(image, where)
    if not summaries:
        return
    pixels = _pooled(image, summaries)
    if len(pixels) != len(image.means):
        return
    away = np.abs(np.median(pixels, axis=1) - image.means) / image.stds
    if away.max() > 4:
        band = image.bands[int(away.argmax())] if image.bands else f"band {int(away.argmax()) + 1}"
        yield Finding(
            where,
            "warning",
            f"the median of {band} is {away.max():.1f} standard deviations from the configured mean.",
            "Compare with terramind compute_statistics.",
        )


def _check_whose(image: ImagePlan, where: str) -> Iterator[Finding]:
    own = image.modality
    if own is None:
        return
    for other in MODALITIES.values():
        if other.name == own.name or len(other.bands) != len(image.means) or other.kind != "image":
            continue
        if np.allclose(image.means, other.mean, rtol=1e-3) and not np.allclose(
            image.means, own.mean[: len(image.means)]
        ):
            yield Finding(where, "error", f"these means are those of {other.name}.", "Leave means and stds out.")
    if len(own.bands) == len(image.means) > 1 and not np.allclose(image.means, own.mean, rtol=1e-3):
        same = np.allclose(sorted(image.means), sorted(own.mean), rtol=1e-3)
        if same and tuple(image.bands) == own.band_names:
            yield Finding(where, "error", "the means are in another order than the bands.", "Leave means and stds out.")
