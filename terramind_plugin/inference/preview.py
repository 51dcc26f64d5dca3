"""A picture of a scene and of its results at reduced size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from matplotlib.figure import Figure
from numpy.typing import NDArray

from terramind_plugin.model.modalities import find
from terramind_plugin.plotting.panels import make_axes
from terramind_plugin.plotting.pictures import bands_shown, draw_classes, draw_values, modality_picture, plot_modality
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.raster.reader import Expected, FilledPixels, Source
from terramind_plugin.raster.series import Series
from terramind_plugin.raster.writer import Layer

LONGER_SIDE = 900
"""Maximum height and width of a scene in the picture, in pixels."""
MOST_COLUMNS = 4
MOST_SAMPLES = 4
"""Maximum number of samples of a modality that are drawn."""


def draw_scene(
    sources: Mapping[str, Source | Series],
    layers: Sequence[tuple[Path, Layer]],
    tags: Mapping[str, str],
    given: Mapping[str, NDArray[Any]] | None = None,
    found: Mapping[str, NDArray[Any]] | None = None,
    pictures: Mapping[str, NDArray[np.uint8]] | None = None,
) -> Figure:
    """Return a figure of the inputs and results of a scene, at reduced size.

    Args:
        sources: Inputs by modality; the first one gives the name of the scene.
        layers: Rasters of the result; of many samples, only the first ones are drawn.
        tags: Description of the run.
        given: Positions [2] in degrees that are inputs, by modality.
        found: Likely positions [N, 2] in degrees that are results, by modality.
        pictures: Results that are already pictures, [h, w, 3], by title.
    """
    given, found, pictures = given or {}, found or {}, pictures or {}
    layers = [(path, layer) for path, layer in layers if _sample_of(layer) <= MOST_SAMPLES]
    first = next(iter(sources.values()))
    grid, size = first.grid, size_shown(first.grid)
    inputs = [panel for name, source in sources.items() for panel in _panels(name, source, size)]
    count = len(inputs) + len(given) + len(layers) + len(found) + len(pictures)
    columns = min(MOST_COLUMNS, count)
    rows = -(-count // columns)
    side = 4.2
    height = side * min(2.0, max(0.5, grid.height / grid.width))
    title = _title(first.path, tags)
    figure, grid_of_axes = make_axes(rows, columns, (side * columns, (height + 0.7) * rows + 0.5), title)
    axes = iter(grid_of_axes.flat)
    for name_shown, expected, (values, valid) in inputs:
        axis = next(axes)
        values = np.where(valid, values, 0 if expected.classes else np.nan)
        shown = bands_shown(expected.name, expected.bands, len(expected.bands))
        _draw_modality(axis, values, expected.name, [expected.bands[band] for band in shown])
        axis.set_title(f"{name_shown} (input)", fontsize=10)
    for name, position in given.items():
        plot_modality(name, position, next(axes)).set_title(f"{name} (input)", fontsize=10)
    for path, layer in layers:
        with rasterio.open(path) as file:
            values = file.read(out_shape=(file.count, *size))
        _draw_layer(next(axes), values, layer)
    for name, positions in found.items():
        plot_modality(name, positions, next(axes)).set_title(f"{name} (model)", fontsize=10)
    for title, picture in pictures.items():
        axis = next(axes)
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(f"{title} (model)", fontsize=10)
    return figure


def _panels(name: str, source: Source | Series, size: tuple[int, int]) -> list[tuple[str, Expected, FilledPixels]]:
    """Return the title, bands and pixels of each panel of an input: one panel, or one for each of a few dates."""
    expected = source.expected
    shown = bands_shown(expected.name, expected.bands, len(expected.bands))
    if isinstance(source, Source):
        return [(name, expected, source.preview(size, shown))]
    dates = source.previews(size, shown)
    return [(f"{name}, date {date}" if source.dates > 1 else name, expected, pixels) for date, pixels in dates]


def _sample_of(layer: Layer) -> int:
    """Return the number of the sample that a layer shows, counted from 1."""
    number = layer.ending.partition("_sample")[2].partition("_")[0]
    return int(number) if number.isdigit() else 1


def size_shown(grid: Grid) -> tuple[int, int]:
    """Return the height and width of a scene in the picture, in pixels."""
    factor = min(1.0, LONGER_SIDE / max(grid.shape))
    return max(1, round(grid.height * factor)), max(1, round(grid.width * factor))


def _title(first: Path, tags: Mapping[str, str]) -> str:
    return f"{first.name}: {tags['model']}\nweights: {tags['weights']}, {tags['written']}"


def _draw_modality(axis: Any, values: NDArray[Any], name: str, bands: Sequence[str]) -> None:
    entry = find(name)
    if entry is not None and tuple(bands) == entry.band_names:
        plot_modality(name, values, axis)
    else:
        axis.imshow(modality_picture(values, name, bands), interpolation="nearest")


def _draw_layer(axis: Any, values: NDArray[Any], layer: Layer) -> None:
    if layer.modality is not None:
        plot_modality(layer.modality, values, axis)
    elif layer.colormap is not None:
        ids = values[0].astype(int)
        colors = ["#{:02x}{:02x}{:02x}".format(*color[:3]) for color in layer.colormap.values()]
        names = layer.class_names or tuple(map(str, layer.colormap))
        draw_classes(axis, ids, names, colors, None if layer.nodata is None else int(layer.nodata))
    else:
        shown = values[-1]
        known = shown[np.isfinite(shown)]
        shares = layer.units == "1" and known.size and 0 <= known.min() <= known.max() <= 1
        label = layer.units if layer.units != "1" else layer.descriptions[-1]
        draw_values(axis, shown, label, (0.0, 1.0) if shares else None)
    of = f": {layer.descriptions[-1]}" if len(values) > 1 and layer.modality is None else ""
    axis.set_title(f"{layer.ending}{of} (model)", fontsize=10)
