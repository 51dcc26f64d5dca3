"""A picture of the data: some samples, and histograms of each band beside the pre-training data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from matplotlib.figure import Figure
from numpy.typing import NDArray

from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import find
from terramind_plugin.plotting.pictures import LABEL_COLORS, plot_samples
from terramind_plugin.raster.bands import bands_of_date
from terramind_plugin.raster.complete import GDAL_ERRORS
from terramind_plugin.raster.netcdf import raster_name
from terramind_plugin.raster.paths import is_raster
from terramind_plugin.samples.checks.headers import OPTIONS
from terramind_plugin.samples.checks.labels import read_labels
from terramind_plugin.samples.checks.sample import Sample, draw_samples, read_middle, read_sample
from terramind_plugin.samples.dates import modality_of
from terramind_plugin.samples.layout import LABEL
from terramind_plugin.samples.plan import DataPlan, ImagePlan
from terramind_plugin.system.files import write_figure

SheetRow = tuple[str, dict[str, NDArray[Any]], Any, None]
"""Title, images by modality, label and prediction of a sample."""
MOST_LABELS = 200
"""Maximum number of labels whose classes are counted."""
ROWS = 4
"""Number of samples to draw."""
PICTURE = 256
"""Maximum height and width of a picture in pixels."""
PANEL, HISTOGRAM = (2.6, 2.8), (2.1, 1.55)
"""Width and height of a picture and of a histogram in inches."""
DATA_COLOR, CURVE_COLOR = "#3b7dd8", "#d9480f"
"""Colours of the histograms of these data and of the curves of the pre-training data."""
BINS = 60
"""Number of bins of a histogram."""
LEGEND = (
    "these data; sd: how far their mean is from that of the pre-training data, in its standard deviations",
    "pre-training data: a normal curve of mean and standard deviation",
)
HIGHEST = 5
"""Maximum ratio of the heights of a histogram and its curve, so that both are visible."""


def draw_sheet(plan: DataPlan, path: Path, samples: int = 64) -> None:
    """Write a PNG with some samples, and a histogram of each band beside the pre-training mean and deviation.

    Args:
        plan: Description of the data set.
        path: Picture to write.
        samples: Maximum number of samples whose pixels go into the histograms.

    Raises:
        DataError: There is nothing to draw, or the picture cannot be written there.
    """
    rows = [row for row in (_row(plan, *entry) for entry in draw_samples(plan, ROWS)) if row[1]]
    sample = read_sample(plan, samples)
    if not rows or not any(summary.pixels.size for summaries in sample.images.values() for summary in summaries):
        raise DataError("No sample can be drawn on the sheet: see the table of findings.")
    axes_of = [(image, number) for image in plan.images for number in range(_count(image, sample))]
    labels = _label_shares(plan)
    columns = len(dict.fromkeys(name for row in rows for name in row[1])) + (rows[0][2] is not None)
    width = max(PANEL[0] * columns, 5 * HISTOGRAM[0])
    across = int(width // HISTOGRAM[0])
    down = -(-(len(axes_of) + bool(labels)) // across)
    heights = (PANEL[1] * len(rows) + 0.5, HISTOGRAM[1] * down + 0.6)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=heights)
    upper, lower = parts
    plot_samples(rows, plan.class_names or None, {image.name: image.bands for image in plan.images}, figure=upper)
    axes = lower.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(axes_of) + bool(labels) :]:
        axis.set_axis_off()
    for axis, (image, number) in zip(axes, axes_of, strict=False):
        _histogram(axis, image, sample, number)
    if labels:
        _bars(axes[len(axes_of)], labels, "labels", LABEL_COLORS)
    known = next((axis for axis in axes if len(axis.lines)), axes[0])
    handles = [*known.patches[:1], *known.lines[:1]]
    lower.legend(handles, list(LEGEND), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    write_figure(path, figure)


def _row(plan: DataPlan, split: str, name: str, files: dict[str, Path]) -> SheetRow:
    """Return the title, the images by modality and the label of a sample, without files that cannot be read."""
    images = {}
    for image in plan.images:
        values = _read(files.get(image.name), modality_of(image.name), image.file_bands)
        if values is not None:
            bands = _bands(image, values)
            images[image.name] = (bands + (image.offset or 0.0)) * image.scale
    label = _read(files.get(LABEL)) if plan.task == "segmentation" else None
    ids = None if label is None else np.nan_to_num(label[0], nan=-1) - plan.reduce_zero_label
    return f"{name} ({split})", images, ids, None


def _read(path: Path | None, name: str = "", bands: Sequence[str] = ()) -> NDArray[Any] | None:
    """Return a raster at reduced resolution, with NaN where it has no data.

    Args:
        path: The file; None if there is none.
        name: Modality; '' for a label.
        bands: Names of the bands of one date in the file.
    """
    if path is None or not is_raster(path):
        return None
    try:
        with rasterio.Env(**OPTIONS), rasterio.open(raster_name(path, name, bands)) as raster:
            pixels = read_middle(raster)
    except (*GDAL_ERRORS, DataError):
        return None  # the table reports it
    step = -(-max(pixels.values.shape[1:]) // PICTURE)
    values = pixels.values[:, ::step, ::step].astype(np.float32)
    return values if pixels.missing is None else np.where(pixels.missing[:, ::step, ::step], np.float32(np.nan), values)


def _bands(image: ImagePlan, values: NDArray[Any]) -> NDArray[Any]:
    """Return the bands that the model reads; of a series, those of the first date."""
    count = len(image.file_bands)
    if image.dates and count and not len(values) % count:
        values = values[bands_of_date(count, len(values) // count, 0, by_band=image.by_band)]
    return values[list(image.read)] if image.read and max(image.read) < len(values) else values


def _count(image: ImagePlan, sample: Sample) -> int:
    """Return the number of bands of a modality that can be drawn."""
    counts = [
        len(_bands(image, summary.pixels)) for summary in sample.images.get(image.name, []) if summary.pixels.size
    ]
    return min(counts, default=0)


def _histogram(axis: Any, image: ImagePlan, sample: Sample, number: int) -> None:
    summaries = [summary for summary in sample.images[image.name] if summary.pixels.size]
    values = np.concatenate([_bands(image, summary.pixels)[number] for summary in summaries])
    band = image.bands[number] if number < len(image.bands) else f"band {number + 1}"
    title = image.name if band == image.name else f"{image.name} {band}"
    entry = find(image.name)
    if entry is not None and entry.kind == "classes":
        counts = Counter(values.astype(int).tolist())
        shares = {f"{key} {name}": counts[key] / len(values) for key, name in enumerate(entry.class_names)}
        _bars(axis, shares, title, entry.class_colors)
        return
    low, high = np.percentile(values, (0.2, 99.8))
    place = None if entry is None else entry.find_band(band)
    if entry is not None and place is not None:
        mean, std = entry.mean[place], entry.std[place]
        start, end = max(mean - 3 * std, entry.valid_range[0]), min(mean + 3 * std, entry.valid_range[1])
        low, high = min(low, start), max(high, end)
        x = np.linspace(start, end, 200)
        axis.plot(
            x, np.exp(-(((x - mean) / std) ** 2) / 2) / (std * np.sqrt(2 * np.pi)), color=CURVE_COLOR, linewidth=1.2
        )
        title += f"  {(values.mean() - mean) / std:+.1f} sd"
    high = high if high > low else low + 1
    top = HIGHEST * max((line.get_ydata().max() for line in axis.lines), default=np.inf)
    heights, _, _ = axis.hist(values, bins=BINS, range=(low, high), density=True, color=DATA_COLOR, alpha=0.55)
    axis.set_ylim(0, 1.05 * min(top, heights.max()) if axis.lines else None)
    axis.set_title(title, fontsize=8, pad=3)
    axis.set_yticks([])
    axis.tick_params(axis="x", labelsize=6.5)
    axis.locator_params(axis="x", nbins=4)
    for side in ("top", "left", "right"):
        axis.spines[side].set_visible(False)


def _bars(axis: Any, shares: dict[str, float], title: str, colors: Any) -> None:
    """Draw a bar for each class, with its share in per cent."""
    names = list(shares)
    axis.barh(
        range(len(names)), [100 * shares[name] for name in names],
        color=[colors[index % len(colors)] for index in range(len(names))], edgecolor="#666666", linewidth=0.4,
    )  # fmt: skip
    axis.set_yticks(range(len(names)), names, fontsize=6 if len(names) < 8 else 4.5)
    axis.invert_yaxis()
    axis.set_title(f"{title}, %", fontsize=8, pad=3)
    axis.tick_params(axis="x", labelsize=6.5)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _label_shares(plan: DataPlan) -> dict[str, float]:
    """Return the share of each class in the labels; an empty mapping if there are no classes."""
    if plan.task != "segmentation" or not plan.num_classes:
        return {}
    total: Counter[float] = Counter()
    for mask in read_labels(plan, MOST_LABELS):
        total.update(mask.counts)
    counts = [total[float(value + plan.reduce_zero_label)] for value in range(plan.num_classes)]
    if not sum(counts) or plan.num_classes > 2 * len(LABEL_COLORS):
        return {}
    names = plan.class_names if len(plan.class_names) == plan.num_classes else tuple(map(str, range(plan.num_classes)))
    return {name: count / sum(counts) for name, count in zip(names, counts, strict=True)}
