"""Pictures of modalities, labels and predictions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LightSource, ListedColormap, Normalize, to_rgb

from terramind_plugin.errors import ConfigError
from terramind_plugin.model.modalities import RADAR, find
from terramind_plugin.plotting.panels import add_bar, add_legend, draw_panels, frame_globe

LABEL_COLORS = ("#d9cfb4", "#1f6fb4", "#4f9d5d", "#c44e52", "#8172b3", "#ccb974", "#64b5cd", "#8c8c8c", "#dd8452")
NO_LABEL = "#000000"
STRETCH = (2.0, 98.0)
"""Percentiles that are drawn black and white."""
MIDDLE = 0.35
"""Brightness of the median pixel of an image that would be nearly black because of clouds."""
RADAR_RANGES = ((-22.0, 0.0), (-28.0, -6.0), (2.0, 20.0))
"""Decibels that are drawn black and white, for VV, VH and VV - VH."""
LAND = ListedColormap(colormaps["terrain"](np.linspace(0.25, 1, 256)))
"""Colours of elevations; the lower quarter of 'terrain' is the sea."""
RADAR_KEY = (("radar: VV", "#e00000"), ("radar: VH", "#00b000"), ("radar: VV - VH", "#3030ff"))
"""Names and colours of the channels of a radar picture; water is dark, woods are bright and yellow."""
AGREEMENT_COLORS = {"neither": "#d9cfb4", "hit": "#1f6fb4", "false alarm": "#f2c500", "missed": "#c51b7d"}
"""Colours of the agreement between map and label in a pixel."""
NO_VALUE = "#c0c0c0"
VALUES = colormaps["viridis"].with_extremes(bad=NO_VALUE)
"""Colours of continuous values."""
NDVI = colormaps["RdYlGn"]
MOST_DATES = 4
"""Maximum number of dates that are all drawn; of more dates, only the first and the last are drawn."""
Bands = Mapping[str, Sequence[object] | None]
"""Bands of each modality; None, or no entry, means all of them."""


def stretch(image: np.ndarray) -> np.ndarray:
    """Return an image [H, W, channels] stretched to 0..1; NaN is black.

    Each channel is stretched from its lower to its upper percentile. An image that is dark because of clouds is
    brightened.
    """
    channels = []
    for i in range(image.shape[-1]):
        values = image[..., i][np.isfinite(image[..., i])]
        low, high = np.percentile(values, STRETCH) if values.size else (0.0, 1.0)
        channels.append(_scale(image[..., i], low, high))
    stretched = np.stack(channels, axis=-1)
    seen = stretched[np.isfinite(image)]
    middle = float(np.clip(np.median(seen), 0.02, MIDDLE)) if seen.size else MIDDLE
    return np.asarray(stretched ** (np.log(MIDDLE) / np.log(middle)))


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.nan_to_num(np.clip((values - low) / max(high - low, 1e-6), 0, 1), nan=0.0)


def class_picture(ids: np.ndarray, colors: Sequence[str]) -> np.ndarray:
    """Return a picture [H, W, 3] in 0..1 of class ids [H, W]; ids outside the colours are black."""
    palette = np.array([to_rgb(color) for color in (*colors, NO_LABEL)])
    known = (ids >= 0) & (ids < len(colors))
    return np.asarray(palette[np.where(known, ids, len(colors)).astype(int)])


def modality_picture(values: Any, modality: str, bands: Sequence[object] | None = None) -> np.ndarray:
    """Return a picture [H, W, 3] in 0..1: optical as colours, radar as VV, VH, VV - VH, elevation as shaded relief.

    Args:
        values: Array or tensor [bands, H, W] or, for one band or class ids, [H, W].
        modality: Name of a known modality; other data are drawn as their first three bands, or in grey.
        bands: Bands of `values`, if these are not all bands of the modality.
    """
    array = as_array(values).astype(np.float32)
    array[~np.isfinite(array)] = np.nan
    array = array[None] if array.ndim == 2 else array
    entry = find(modality)
    name = entry.name if entry is not None else ""
    if entry is not None and entry.kind == "classes":
        return class_picture(array[0], entry.class_colors)
    if name == "DEM":
        heights = np.nan_to_num(array[0], nan=value_range(array[0])[0])
        return LightSource(azdeg=315, altdeg=45).shade(heights, cmap=LAND, vert_exag=0.5, blend_mode="soft")[..., :3]
    if name == "NDVI":
        return np.asarray(NDVI(np.clip((np.nan_to_num(array[0]) + 1) / 2, 0, 1))[..., :3])
    shown = array[bands_shown(modality, bands, len(array))]
    if name in RADAR and len(shown) == 2:
        return _radar_picture(*shown)
    return stretch(np.moveaxis(shown, 0, -1).repeat(3 // len(shown), axis=-1))


def _radar_picture(vv: np.ndarray, vh: np.ndarray) -> np.ndarray:
    channels = np.stack([vv, vh, vv - vh], axis=-1)
    finite = vv[np.isfinite(vv)]
    if finite.size and np.median(finite) < -3:  # decibels; otherwise standardised, or linear power
        return np.stack([_scale(channels[..., i], *RADAR_RANGES[i]) for i in range(3)], axis=-1)
    return stretch(channels)


def radar_key(modalities: Iterable[str]) -> list[tuple[str, str]]:
    """Return legend entries for the colours of radar; empty if there is no radar among the modalities."""
    entries = [find(name) for name in modalities]
    return list(RADAR_KEY) if any(entry is not None and entry.name in RADAR for entry in entries) else []


def agreement_picture(found: np.ndarray, wanted: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return a picture [H, W, 3] of hits, false alarms and misses; unknown pixels are black.

    Args:
        found: True where the map has the class, [H, W].
        wanted: True where the label has the class, [H, W].
        known: True where both have data, [H, W].
    """
    ids = np.select([found & wanted, found & ~wanted, ~found & wanted], [1, 2, 3], 0)
    return class_picture(np.where(known, ids, -1), list(AGREEMENT_COLORS.values()))


def bands_shown(modality: str, bands: Sequence[object] | None, count: int) -> list[int]:
    """Return the positions of the bands that a picture shows: three as colours, two of radar, or one in grey.

    Args:
        modality: As in `modality_picture`.
        bands: Names of the available bands; None for all bands of the modality in order.
        count: Number of available bands.
    """
    entry = find(modality)
    if entry is None:
        return [0, 1, 2] if count >= 3 else [0]
    found = list(range(count)) if bands is None else [entry.find_band(band) for band in bands]
    wanted = (0, 1) if entry.name in RADAR else entry.rgb
    return [found.index(position) for position in wanted] if set(wanted) <= set(found) else [0]


def plot_samples(
    rows: Sequence[tuple[str, Mapping[str, Any], Any, Any]],
    class_names: Sequence[str] | None = None,
    bands: Bands | None = None,
    pictures: Sequence[Mapping[str, np.ndarray]] | None = None,
    figure: Any = None,
) -> Any:
    """Return a figure with a row for each sample and a column for each input, label and prediction, and a legend.

    Args:
        rows: For each sample, the text below it; arrays or tensors [bands, H, W] or [bands, dates, H, W] by modality;
            and class ids [H, W] of label and prediction, or None. Negative and unknown ids are black.
        class_names: Names of the classes.
        bands: Bands by modality, for modalities without all their bands.
        pictures: For each sample, further pictures [H, W, 3] in 0..1 by title, drawn after the inputs.
        figure: Part of a figure to draw on; a new one by default.
    """
    classes = [ids for row in rows for ids in row[2:] if ids is not None]
    count = len(class_names) if class_names else 1 + max((_highest(ids) for ids in classes), default=0)
    names, colors = class_names or [str(i) for i in range(count)], [label_color(i) for i in range(count)]
    panels = []
    for (text, images, label, prediction), more in zip(rows, pictures or [{}] * len(rows), strict=True):
        maps = {"label": label, "prediction": prediction}
        drawn = {name: class_picture(as_array(ids), colors) for name, ids in maps.items() if ids is not None}
        panels.append((text, {**dict(image_pictures(images, bands or {})), **more, **drawn}))
    legend = [*zip(names, colors, strict=True), ("no data", NO_LABEL)] if classes else []
    legend += radar_key(dict.fromkeys(name for row in rows for name in row[1]))
    return draw_panels(panels, legend, figure=figure)


def label_color(number: int) -> str:
    """Return the colour of a class id of labels."""
    return LABEL_COLORS[number % len(LABEL_COLORS)]


def image_pictures(images: Mapping[str, Any], bands: Bands) -> Iterator[tuple[str, np.ndarray]]:
    """Yield titles and pictures of modalities, one for each date."""
    for name, values in images.items():
        if values.ndim != 4:
            yield name, modality_picture(values, name, bands.get(name))
            continue
        dates = range(values.shape[1])
        for date in dates if len(dates) <= MOST_DATES else (dates[0], dates[-1]):
            yield f"{name}, date {date + 1}", modality_picture(values[:, date], name, bands.get(name))


def _highest(ids: Any) -> int:
    """Return the highest class id; 255 and more are codes for no data."""
    known = as_array(ids)
    known = known[(known >= 0) & (known < 255)]
    return int(known.max()) if known.size else 0


def plot_modality(modality: Any, data: Any, ax: Any = None) -> Any:
    """Draw a sample in the usual way for its modality, and return the Matplotlib axes.

    Optical images are in natural colours, radar is in false colours of VV, VH and VV - VH, elevation is a shaded relief
    and NDVI a colour ramp, both with a colour bar, land cover has a legend, and a position is a point on a map.

    Args:
        modality: Name of a known modality; other data are drawn as their first three bands, or in grey.
        data: Array, tensor or xarray's DataArray [bands, H, W] or [1, bands, H, W], [H, W] for one band or class ids,
            scores of the classes [classes, H, W], or positions [2] or [N, 2] as (longitude, latitude). It may also
            come first.
        ax: Axes to draw on; by default those of a new pyplot figure.

    Raises:
        ConfigError: The name is missing, the data have another shape, or the modality is a text.
    """
    if isinstance(data, str):
        modality, data = data, modality
    if not isinstance(modality, str):
        raise ConfigError(
            f"plot_modality takes the name of a modality and data, got {type(modality).__name__} and data."
        )
    array = as_array(data)
    entry = find(modality)
    name = entry.name if entry is not None else modality
    if entry is not None and entry.kind == "sequence":
        _draw_positions(ax := _axes(ax), _positions(array, name))
        ax.set_title(name)
        return ax
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim not in (2, 3):
        raise ConfigError(f"{name}: expected one sample [bands, height, width], got shape {list(array.shape)}.")
    ax = _axes(ax)
    if entry is not None and entry.kind == "classes":
        if array.ndim == 3:
            array = array.argmax(axis=0) if len(array) == len(entry.class_names) else array[0]
        draw_classes(ax, array, entry.class_names, entry.class_colors)
    else:
        ax.imshow(modality_picture(array, modality), interpolation="nearest")
    if name == "NDVI":
        add_bar(ax, NDVI, (-1, 1), "NDVI")
    elif name == "DEM":
        add_bar(ax, LAND, value_range(array), "m")
    elif name in RADAR and array.ndim == 3 and len(array) > 1:
        pairs = [(text.removeprefix("radar: "), color) for text, color in RADAR_KEY]
        add_legend(ax, pairs, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=3, fontsize=7)
    ax.set_axis_off()
    ax.set_title(name)
    return ax


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    from matplotlib import pyplot  # only here, since it chooses a window system

    return pyplot.subplots(layout="constrained")[1]


def _positions(array: np.ndarray, name: str) -> np.ndarray:
    """Return the known positions [N, 2]."""
    if name != "coords" or array.ndim not in (1, 2) or array.shape[-1] != 2:
        raise ConfigError(f"{name}: only positions [2] or [N, 2] can be drawn, got shape {list(array.shape)}.")
    positions = array.reshape(-1, 2).astype(float)
    return np.asarray(positions[np.isfinite(positions).all(axis=1)])


def _draw_positions(ax: Any, positions: np.ndarray) -> None:
    ax.set_axis_on()
    ax.plot(positions[:, 0], positions[:, 1], "o", color=LABEL_COLORS[3], markersize=5)
    frame_globe(ax, step=45)
    for longitude, latitude in positions[:1]:
        ax.set_xlabel(f"longitude {longitude:g}, latitude {latitude:g}", fontsize=8)


def draw_classes(
    axis: Any, ids: np.ndarray, names: Sequence[str], colors: Sequence[str], no_data: int | None = None
) -> None:
    """Draw class ids [H, W], and a legend of the classes that occur below the axes.

    Args:
        axis: Axes to draw on.
        ids: Class ids.
        names: Names of the classes.
        colors: Colours of the classes.
        no_data: Id of pixels without a class, drawn in black.
    """
    axis.imshow(class_picture(ids, colors), interpolation="nearest")
    pairs = [(names[i], colors[i]) for i in range(len(names)) if i != no_data and (ids == i).any()]
    if no_data is not None and (ids == no_data).any():
        pairs.append(("no data", NO_LABEL))
    add_legend(axis, pairs, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=min(3, len(pairs)), fontsize=7)


def draw_values(axis: Any, values: np.ndarray, label: str, limits: tuple[float, float] | None = None) -> None:
    """Draw continuous values with a colour bar; values that are not finite are grey.

    Args:
        axis: Axes to draw on.
        values: Values [H, W].
        label: Text of the colour bar, e.g. the unit.
        limits: Ends of the scale; by default the smallest and the largest value.
    """
    limits = limits or value_range(values)
    shown = np.ma.masked_invalid(values)
    axis.imshow(shown, cmap=VALUES, norm=Normalize(*limits), interpolation="nearest")
    add_bar(axis, VALUES, limits, label)


def value_range(values: np.ndarray) -> tuple[float, float]:
    """Return the smallest and the largest finite value, made different if equal; 0 and 1 if there is none."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def as_array(values: Any) -> np.ndarray:
    """Return a tensor of any device and precision, or another object, as an array; NaN where xarray has no data."""
    if not hasattr(values, "detach"):
        array, fill = np.asarray(values), getattr(values, "attrs", {}).get("_FillValue")
        return array if fill is None or array.dtype.kind != "f" else np.where(array == fill, np.nan, array)
    values = values.detach().cpu()
    return np.asarray(values.float() if values.is_floating_point() else values)
