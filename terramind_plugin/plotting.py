"""Pictures of modalities, labels and predictions, drawn the way people expect them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LightSource, ListedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from terramind_plugin.errors import ConfigError
from terramind_plugin.model.modalities import find

LABEL_COLORS = ("#d9cfb4", "#1f6fb4", "#4f9d5d", "#c44e52", "#8172b3", "#ccb974", "#64b5cd", "#8c8c8c", "#dd8452")
NO_LABEL = "#000000"
STRETCH = (2.0, 98.0)
"""Percentiles that become black and white."""
MIDDLE = 0.35
"""Brightness of the median pixel of an image that clouds would otherwise leave nearly black."""
RADAR_RANGES = ((-22.0, 0.0), (-28.0, -6.0), (2.0, 20.0))
"""Decibels that become black and white, for VV, VH and VV - VH."""
LAND = ListedColormap(colormaps["terrain"](np.linspace(0.25, 1, 256)))
"""Colours of elevations; the lower quarter of 'terrain' is the sea."""
NO_VALUE = "#c0c0c0"
VALUES = colormaps["viridis"].with_extremes(bad=NO_VALUE)
"""Colours of continuous labels and predictions."""
MOST_DATES = 4
"""Number of dates up to which each is drawn; of more, the first and the last."""
LINE = 50
"""Characters of a title that fit below one panel."""
LINE_HEIGHT = 0.16
"""Height of a further line of a title, in inches."""


def stretch(image: np.ndarray) -> np.ndarray:
    """Return an image [H, W, channels] stretched to 0..1; NaN is black.

    Each channel goes from its lower to its upper percentile. Where clouds leave the rest dark, it is brightened.

    Args:
        image: Values in any unit.
    """
    channels = []
    for i in range(image.shape[-1]):
        values = image[..., i][np.isfinite(image[..., i])]
        low, high = np.percentile(values, STRETCH) if values.size else (0.0, 1.0)
        channels.append(_scale(image[..., i], low, high))
    stretched = np.stack(channels, axis=-1)
    seen = stretched[np.isfinite(image)]
    middle = float(np.clip(np.median(seen), 0.02, MIDDLE)) if seen.size else MIDDLE
    return stretched ** (np.log(MIDDLE) / np.log(middle))


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.nan_to_num(np.clip((values - low) / max(high - low, 1e-6), 0, 1), nan=0.0)


def _radar_picture(vv: np.ndarray, vh: np.ndarray) -> np.ndarray:
    channels = np.stack([vv, vh, vv - vh], axis=-1)
    finite = vv[np.isfinite(vv)]
    if finite.size and np.median(finite) < -3:  # decibels; otherwise standardised, or linear power
        return np.stack([_scale(channels[..., i], *RADAR_RANGES[i]) for i in range(3)], axis=-1)
    return stretch(channels)


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
    array = _array(values).astype(np.float32)
    array[~np.isfinite(array)] = np.nan
    array = array[None] if array.ndim == 2 else array
    entry = find(modality)
    name = entry.name if entry is not None else ""
    if entry is not None and entry.kind == "classes":
        return class_picture(array[0], entry.class_colors)
    if name == "DEM":
        known = array[0][np.isfinite(array[0])]
        heights = np.nan_to_num(array[0], nan=float(known.min()) if known.size else 0.0)
        return LightSource(azdeg=315, altdeg=45).shade(heights, cmap=LAND, vert_exag=0.5, blend_mode="soft")[..., :3]
    if name == "NDVI":
        return colormaps["RdYlGn"](np.clip((np.nan_to_num(array[0]) + 1) / 2, 0, 1))[..., :3]
    if name in ("S1GRD", "S1RTC") and len(array) == 2:
        return _radar_picture(array[0], array[1])
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
    bands: Mapping[str, Sequence[object] | None] | None = None,
    pictures: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """Return a figure with the inputs, the label and the prediction of one sample side by side.

    Args:
        images: Arrays or tensors [bands, H, W] or [bands, dates, H, W] by modality.
        label: Class ids [H, W]; negative or unknown ones are black.
        prediction: Class ids [H, W].
        class_names: Names of the classes, for the legend.
        title: Text below.
        bands: Bands of a modality, where they are not all of them.
        pictures: Further panels behind the inputs, [height, width, 3] in 0..1 by title.
    """
    return plot_samples([(title or "", images, label, prediction)], class_names, bands, [pictures or {}])


def plot_values(
    images: Mapping[str, Any],
    label: Any,
    prediction: Any,
    title: str | None = None,
    unit: str | None = None,
    bands: Mapping[str, Sequence[object] | None] | None = None,
    pictures: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """Return a figure with the inputs, and label and prediction of a regression on one scale with a colour bar.

    The scale is that of the label, without its outer 2 percent, so that figures of several epochs can be compared.

    Args:
        images: As in `plot_sample`.
        label: Values [H, W], or [variables, H, W] with a scale for each variable; grey where they are not finite.
        prediction: Values of the same shape.
        title: Text below.
        unit: Unit of the values, for the colour bar.
        bands: As in `plot_sample`.
        pictures: As in `plot_sample`.
    """
    variables = list(zip(_maps(label), _maps(prediction), strict=False))
    panels = dict(pictures or {})
    bars = []
    for number, pair in enumerate(variables, start=1):
        limits = _limits(*pair)
        names = [f"{what} {number}" if len(variables) > 1 else what for what in ("label", "prediction")]
        panels |= {name: VALUES(Normalize(*limits)(values))[..., :3] for name, values in zip(names, pair, strict=True)}
        bars.append((names, limits))
    figure = plot_samples([(title or "", images, None, None)], None, bands, [panels])
    axes = {axis.get_title(): axis for axis in figure.axes}
    for names, limits in bars:
        _add_bar([axes[name] for name in names], VALUES, limits, unit or "", extend="both")
    return figure


def _maps(values: Any) -> np.ma.MaskedArray:
    """Return values [variables, H, W], masked where they are not finite."""
    array = _array(values)
    return np.ma.masked_invalid(array[None] if array.ndim == 2 else array)


def _limits(label: np.ma.MaskedArray, prediction: np.ma.MaskedArray) -> tuple[float, float]:
    """Return the range of the label, or where it has no value, of the prediction."""
    known = next((values.compressed() for values in (label, prediction) if values.count()), np.array([0.0, 1.0]))
    low, high = map(float, np.percentile(known, STRETCH))
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def plot_boxes(
    images: Mapping[str, Any],
    label: tuple[Any, Any],
    prediction: tuple[Any, Any],
    class_names: Sequence[str] | None = None,
    title: str | None = None,
    bands: Mapping[str, Sequence[object] | None] | None = None,
) -> Figure:
    """Return a figure with the inputs, and the boxes of label and prediction on the first of them.

    Args:
        images: As in `plot_sample`.
        label: Boxes [N, 4] as (left, top, right, bottom) in pixels, and their class ids [N].
        prediction: The predicted boxes and class ids.
        class_names: Names of the classes, for the legend.
        title: Text below.
        bands: As in `plot_sample`.
    """
    first = next(iter(_image_panels(images, bands or {})))[1]
    panels = {"label": first, "prediction": first}
    figure = plot_samples([(title or "", images, None, None)], None, bands, [panels])
    axes = {axis.get_title(): axis for axis in figure.axes}
    colors: dict[int, str] = {}
    for what, (boxes, ids) in (("label", label), ("prediction", prediction)):
        for (left, top, right, bottom), number in zip(_array(boxes), map(int, _array(ids)), strict=True):
            color = colors.setdefault(number, LABEL_COLORS[number % len(LABEL_COLORS)])
            corner = (left - 0.5, top - 0.5)
            axes[what].add_patch(Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=color, lw=1.5))
    if colors:
        names = dict(enumerate(class_names or ()))
        _name_classes(figure, [(names.get(i, f"class {i}"), colors[i]) for i in sorted(colors)], len(axes))
    return figure


def plot_samples(
    rows: Sequence[tuple[str, Mapping[str, Any], Any, Any]],
    class_names: Sequence[str] | None = None,
    bands: Mapping[str, Sequence[object] | None] | None = None,
    pictures: Sequence[Mapping[str, np.ndarray]] | None = None,
    figure: Any = None,
) -> Any:
    """Return a figure with a row for each sample and a column for each input, label and prediction, and a legend.

    Args:
        rows: For each sample its title, images by modality, label and prediction, as in `plot_sample`.
        class_names: Names of the classes.
        bands: Bands of a modality, where they are not all of them.
        pictures: For each sample, as in `plot_sample`.
        figure: Part of a figure to draw on; a new one by default.
    """
    classes = [ids for row in rows for ids in row[2:] if ids is not None]
    count = len(class_names) if class_names else 1 + max((_highest(ids) for ids in classes), default=0)
    colors = [LABEL_COLORS[i % len(LABEL_COLORS)] for i in range(count)]
    panels = [
        _panels(images, label, prediction, colors, bands or {}, more)
        for (_, images, label, prediction), more in zip(rows, pictures or [{}] * len(rows), strict=True)
    ]
    columns = _columns(panels)
    titles = ["\n".join(textwrap.fill(text, LINE * len(columns)) for text in row[0].splitlines()) for row in rows]
    if figure is None:
        height = 3.2 * len(rows) + 0.9 + LINE_HEIGHT * sum(title.count("\n") for title in titles)
        figure = Figure(figsize=(3.2 * len(columns), height), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for name, axis in zip(columns, axes[0], strict=True):
        axis.set_title(name, fontsize=10)
    for line, (title, drawn) in enumerate(zip(titles, panels, strict=True)):
        for name, axis in zip(columns, axes[line], strict=True):
            axis.set_axis_off()
            if name in drawn:
                axis.imshow(drawn[name], interpolation="nearest")
        axes[line][0].text(0, -0.02, title, transform=axes[line][0].transAxes, va="top", fontsize=8, parse_math=False)
    if classes:
        names = list(class_names) if class_names else [str(i) for i in range(count)]
        _name_classes(figure, [*zip(names, colors, strict=True), ("no data", NO_LABEL)], len(columns))
    return figure


def _name_classes(figure: Any, pairs: Sequence[tuple[str, str]], columns: int) -> None:
    """Name classes, given with their colours, below a figure of so many columns."""
    handles = [Patch(facecolor=color, label=name.replace("$", r"\$")) for name, color in pairs]
    most = min(len(handles), 2 * columns)
    figure.legend(handles=handles, loc="outside lower center", ncols=most, fontsize=9, frameon=False)


def _columns(panels: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
    """Return the names of all panels in the order in which they come, label and prediction last."""
    names = list(dict.fromkeys(name for row in panels for name in row))
    return sorted(
        names, key=lambda name: ("label", "prediction").index(name) if name in ("label", "prediction") else -1
    )


def _array(values: Any) -> np.ndarray:
    """Return a tensor, of whatever device and precision, or something else as an array."""
    if not hasattr(values, "detach"):
        return np.asarray(values)
    values = values.detach().cpu()
    return np.asarray(values.float() if values.is_floating_point() else values)


def _highest(ids: Any) -> int:
    """Return the highest class id; 255 and more are codes for no data."""
    known = _array(ids)
    known = known[(known >= 0) & (known < 255)]
    return int(known.max()) if known.size else 0


def _panels(
    images: Mapping[str, Any],
    label: Any,
    prediction: Any,
    colors: Sequence[str],
    bands: Mapping[str, Sequence[object] | None],
    pictures: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    panels = {**dict(_image_panels(images, bands)), **pictures}
    for name, ids in (("label", label), ("prediction", prediction)):
        if ids is not None:
            panels[name] = class_picture(_array(ids), colors)
    return panels


def _image_panels(
    images: Mapping[str, Any], bands: Mapping[str, Sequence[object] | None]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield titles and pictures of modalities, of several dates one each."""
    for name, values in images.items():
        if values.ndim != 4:
            yield name, modality_picture(values, name, bands.get(name))
            continue
        dates = range(values.shape[1])
        for date in dates if len(dates) <= MOST_DATES else (dates[0], dates[-1]):
            yield f"{name}, date {date + 1}", modality_picture(values[:, date], name, bands.get(name))


def plot_modality(modality: Any, data: Any, ax: Any = None) -> Any:
    """Return Matplotlib axes with one sample drawn the way people expect its modality.

    Optical images are in natural colours, radar is VV, VH and VV - VH in false colour, elevation a shaded relief and
    NDVI a ramp, both with a colour bar, land cover has its class names in a legend, and a position is a point on a map.

    Args:
        modality: Name of the modality table; another name is drawn as its first three bands, or in grey.
        data: Array or tensor [bands, H, W] or [1, bands, H, W], [H, W] for one band or class ids, scores of the
            classes [classes, H, W], or positions [2] or [N, 2] as (longitude, latitude). It may also come first.
        ax: Where to draw; by default a new figure of pyplot.

    Raises:
        ConfigError: There is no name, the data have another shape, or the modality is a text.
    """
    if isinstance(data, str):
        modality, data = data, modality
    if not isinstance(modality, str):
        raise ConfigError(
            f"plot_modality takes a modality's name and its data, got {type(modality).__name__} and data."
        )
    array = _array(data)
    entry = find(modality)
    name = entry.name if entry is not None else modality
    if entry is not None and entry.kind == "sequence":
        positions = _positions(array, name)
        ax = _axes(ax)
        _draw_positions(ax, positions)
        ax.set_title(name)
        return ax
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    if array.ndim not in (2, 3):
        raise ConfigError(f"{name}: expected one sample [bands, height, width], got shape {list(array.shape)}.")
    if entry is not None and entry.kind == "classes" and array.ndim == 3:
        array = array.argmax(axis=0) if len(array) == len(entry.class_names) else array[0]
    ax = _axes(ax)
    ax.imshow(modality_picture(array, modality), interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(name)
    if entry is not None and entry.kind == "classes":
        _add_legend(ax, array, entry.class_names, entry.class_colors)
    elif name == "NDVI":
        _add_bar(ax, colormaps["RdYlGn"], (-1, 1), "NDVI")
    elif name == "DEM":
        known = array[np.isfinite(array)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
        _add_bar(ax, LAND, (low, high) if high > low else (low - 0.5, low + 0.5), "m")
    return ax


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    from matplotlib import pyplot  # only here: it chooses a window system

    return pyplot.subplots(layout="constrained")[1]


def _positions(array: np.ndarray, name: str) -> np.ndarray:
    """Return positions [N, 2] that are known."""
    if name != "coords" or array.ndim not in (1, 2) or array.shape[-1] != 2:
        raise ConfigError(f"{name}: only positions [2] or [N, 2] can be drawn, got shape {list(array.shape)}.")
    positions = array.reshape(-1, 2).astype(float)
    return positions[np.isfinite(positions).all(axis=1)]


def _draw_positions(ax: Any, positions: np.ndarray) -> None:
    ax.set_axis_on()
    ax.plot(positions[:, 0], positions[:, 1], "o", color=LABEL_COLORS[3], markersize=5)
    ax.set(xlim=(-180, 180), ylim=(-90, 90), xticks=range(-180, 181, 90), yticks=range(-90, 91, 45), aspect="equal")
    ax.tick_params(labelsize=7)
    ax.grid(linewidth=0.5, alpha=0.5)
    for longitude, latitude in positions[:1]:
        ax.set_xlabel(f"longitude {longitude:g}, latitude {latitude:g}", fontsize=8)


def _add_legend(ax: Any, ids: np.ndarray, names: Sequence[str], colors: Sequence[str]) -> None:
    """Name the classes that are there, below the axes."""
    present = [number for number in range(len(names)) if (ids == number).any()]
    handles = [Patch(facecolor=colors[number], edgecolor="#888888", label=names[number]) for number in present]
    ax.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        ncols=min(3, max(len(handles), 1)),
        fontsize=7,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.0,
    )


def _add_bar(axes: Any, colors: Any, limits: tuple[float, float], label: str, extend: str = "neither") -> None:
    figure = np.ravel(axes)[0].figure
    bar = figure.colorbar(ScalarMappable(Normalize(*limits), colors), ax=axes, shrink=0.8, extend=extend)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
