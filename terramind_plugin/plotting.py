"""Pictures of modalities, labels and predictions, drawn the way people expect them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LightSource, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from terramind_plugin.modalities import find

LABEL_COLORS = ("#d9cfb4", "#1f6fb4", "#4f9d5d", "#c44e52", "#8172b3", "#ccb974", "#64b5cd", "#8c8c8c", "#dd8452")
NO_LABEL = "#000000"
STRETCH = (2.0, 98.0)
"""Percentiles that become black and white."""


def stretch(image: np.ndarray) -> np.ndarray:
    """Return an image [H, W, 3] stretched to 0..1 between its percentiles, one range for all channels; NaN is black.

    Args:
        image: Values in any unit.
    """
    finite = image[np.isfinite(image)]
    if finite.size == 0:
        return np.zeros(image.shape, dtype=np.float32)
    low, high = np.percentile(finite, STRETCH)
    return np.nan_to_num(np.clip((image - low) / max(high - low, 1e-6), 0, 1), nan=0.0)


def class_picture(ids: np.ndarray, colors: Sequence[str]) -> np.ndarray:
    """Return an image [H, W, 3] of class ids [H, W]; ids outside the colours are black."""
    palette = np.array([to_rgb(color) for color in (*colors, NO_LABEL)])
    known = (ids >= 0) & (ids < len(colors))
    return palette[np.where(known, ids, len(colors)).astype(int)]


def modality_picture(values: Any, modality: str, bands: Sequence[object] | None = None) -> np.ndarray:
    """Return an image [H, W, 3] in 0..1: optical as colours, radar as VV, VH, VV - VH, elevation as shaded relief.

    Args:
        values: Array or tensor [bands, H, W] or, for one band or class ids, [H, W].
        modality: Name of the modality table; another name is drawn as its first three bands, or in grey.
        bands: Bands of `values`, where they are not all of the modality.
    """
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float32)
    array = array[None] if array.ndim == 2 else array
    entry = find(modality)
    name = entry.name if entry is not None else ""
    if entry is not None and entry.kind == "classes":
        return class_picture(array[0], entry.class_colors)
    if name == "DEM":
        shaded = LightSource(azdeg=315, altdeg=45).shade(
            np.nan_to_num(array[0]), cmap=colormaps["gist_earth"], vert_exag=0.5, blend_mode="soft"
        )
        return shaded[..., :3]
    if name == "NDVI":
        return colormaps["RdYlGn"](np.clip((np.nan_to_num(array[0]) + 1) / 2, 0, 1))[..., :3]
    if name in ("S1GRD", "S1RTC") and len(array) == 2:
        channels = [stretch(band[..., None])[..., 0] for band in (array[0], array[1], array[0] - array[1])]
        return np.stack(channels, axis=-1)
    positions = _rgb_positions(entry, bands, len(array))
    return stretch(np.moveaxis(array[positions], 0, -1).repeat(3 // len(positions), axis=-1))


def _rgb_positions(entry: Any, bands: Sequence[object] | None, count: int) -> list[int]:
    if entry is None:
        return [0, 1, 2] if count >= 3 else [0]
    if bands is not None:
        found = [entry.find_band(band) for band in bands]
        return [found.index(i) for i in entry.rgb] if set(entry.rgb) <= set(found) else [0]
    return list(entry.rgb) if max(entry.rgb) < count else [0]


def plot_sample(
    images: Mapping[str, Any],
    label: Any = None,
    prediction: Any = None,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
) -> Figure:
    """Return a figure with the inputs, the label and the prediction of one sample side by side.

    Args:
        images: Arrays or tensors [bands, H, W] by modality.
        label: Class ids [H, W]; negative or unknown ones are black.
        prediction: Class ids [H, W].
        class_names: Names of the classes, for the legend.
        title: Text above.
    """
    return plot_samples([(title or "", images, label, prediction)], class_names)


def plot_samples(
    rows: Sequence[tuple[str, Mapping[str, Any], Any, Any]], class_names: Sequence[str] | None = None
) -> Figure:
    """Return a figure with a row for each sample: inputs, label, prediction, and a legend of the classes.

    Args:
        rows: For each sample its title, images by modality, label and prediction, as in `plot_sample`.
        class_names: Names of the classes.
    """
    count = len(class_names) if class_names else 1 + max(_highest(row) for row in rows)
    colors = [LABEL_COLORS[i % len(LABEL_COLORS)] for i in range(count)]
    panels = [_panels(images, label, prediction, colors) for _, images, label, prediction in rows]
    columns = max(len(row) for row in panels)
    figure = Figure(figsize=(3.2 * columns, 3.2 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (row, row_panels) in enumerate(zip(rows, panels, strict=True)):
        for axis in axes[line]:
            axis.set_axis_off()
        for axis, (name, picture) in zip(axes[line], row_panels, strict=False):
            axis.imshow(picture, interpolation="nearest")
            if line == 0 or name != panels[0][0][0]:
                axis.set_title(name, fontsize=10)
        axes[line][0].text(0, -0.02, row[0], transform=axes[line][0].transAxes, va="top", fontsize=8)
    names = list(class_names) if class_names else [str(i) for i in range(count)]
    handles = [Patch(facecolor=color, label=name) for color, name in zip(colors, names, strict=True)]
    handles.append(Patch(facecolor=NO_LABEL, label="no data"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), fontsize=9, frameon=False)
    return figure


def _highest(row: tuple[str, Mapping[str, Any], Any, Any]) -> int:
    values = [int(np.asarray(ids).max()) for ids in row[2:] if ids is not None]
    return max([*values, 0])


def _panels(
    images: Mapping[str, Any], label: Any, prediction: Any, colors: Sequence[str]
) -> list[tuple[str, np.ndarray]]:
    panels = [(name, modality_picture(values, name)) for name, values in images.items()]
    for name, ids in (("label", label), ("prediction", prediction)):
        if ids is not None:
            panels.append((name, class_picture(np.asarray(ids.cpu() if hasattr(ids, "cpu") else ids), colors)))
    return panels
