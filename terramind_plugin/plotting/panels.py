"""Panels of pictures, and the legends, colour bars and coasts around them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch

COASTS = Path(__file__).parents[1] / "shipped" / "coasts.npz"
"""Coasts of Natural Earth 1:110 million (public domain) in tenths of a degree, see the README beside it."""
SIDE = 3.2
"""Width and height of a panel, in inches."""
LINE = 15
"""Number of characters of a title per inch."""
LINE_HEIGHT = 0.16
"""Height of a further line of a title, in inches."""
LEGEND_HEIGHT = 0.21
"""Height of a row of a legend below the panels, in inches."""


def make_axes(rows: int, columns: int, size: tuple[float, float], title: str | None = None) -> tuple[Figure, Any]:
    """Return a figure and its axes [rows, columns] without frames.

    The size is width and height in inches; the title is above all panels.
    """
    figure = Figure(figsize=size, layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def draw_panels(
    rows: Sequence[tuple[str, Mapping[str, np.ndarray]]],
    legend: Sequence[tuple[str, str]] = (),
    title: str | None = None,
    side: float = SIDE,
    figure: Any = None,
) -> Any:
    """Return a figure with a row of pictures for each sample, and a legend.

    Args:
        rows: For each sample, the text below it and its pictures by title. Pictures with the same title share a
            column; the columns 'label' and 'prediction' are on the right.
        legend: Names and colours.
        title: Text above all panels.
        side: Width and height of a panel, in inches.
        figure: Part of a figure to draw on; a new one by default.
    """
    columns = list(dict.fromkeys(name for _, pictures in rows for name in pictures))
    columns.sort(key=lambda name: {"label": 1, "prediction": 2}.get(name, 0))
    width = int(LINE * side) * len(columns)
    texts = ["\n".join(textwrap.fill(part, width) for part in text.splitlines()) for text, _ in rows]
    height = side * len(rows) + (1.1 if title else 0.7) + LINE_HEIGHT * sum(text.count("\n") for text in texts)
    height += LEGEND_HEIGHT * _legend_rows(legend, side * len(columns))
    if figure is None:
        figure, axes = make_axes(len(rows), len(columns), (side * len(columns), height), title)
    else:
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for name, axis in zip(columns, axes[0], strict=True):
        axis.set_title(name, fontsize=10)
    for text, (_, pictures), line in zip(texts, rows, axes, strict=True):
        for name, axis in zip(columns, line, strict=True):
            axis.set_axis_off()
            axis.set_anchor("N")  # spare room is at the bottom, where the text is
            if name in pictures:
                axis.imshow(pictures[name], interpolation="nearest")
        line[0].text(0, -0.02, text, transform=line[0].transAxes, va="top", fontsize=8, parse_math=False)
    add_legend(figure, legend)
    return figure


def add_legend(target: Any, pairs: Sequence[tuple[str, str]], **options: Any) -> None:
    """Add a legend of colours, by default below the figure in as many columns as fit.

    Args:
        target: A figure, a subfigure, or axes.
        pairs: Names and colours; without any, no legend is added.
        options: Options of Matplotlib's legend.
    """
    if not pairs:
        return
    handles = [Patch(facecolor=color, edgecolor="#888888", label=name.replace("$", r"\$")) for name, color in pairs]
    if "loc" not in options:
        rows = _legend_rows(pairs, target.bbox.width / target.dpi)
        options |= {"loc": "outside lower center", "ncols": -(-len(pairs) // rows), "fontsize": 9}
    target.legend(handles=handles, frameon=False, handlelength=1.2, columnspacing=1.0, **options)


def _legend_rows(pairs: Sequence[tuple[str, str]], width: float) -> int:
    """Return the number of rows of a legend below a figure of a width in inches; 0 without entries."""
    fitting = int(width / (0.6 + 0.075 * max((len(name) for name, _ in pairs), default=0)))
    return -(-len(pairs) // max(1, fitting))


def add_bar(axes: Any, colors: Colormap, limits: tuple[float, float], label: str, extend: str = "neither") -> None:
    """Add a colour bar to one axis, or to several that share it.

    Args:
        axes: An axis, or several.
        colors: Colour map.
        limits: Values at the ends of the bar.
        label: Text beside the bar, e.g. the unit.
        extend: Ends of the bar beyond which there are values: 'neither', 'both', 'min' or 'max'.
    """
    figure = np.ravel(axes)[0].figure
    bar = figure.colorbar(ScalarMappable(Normalize(*limits), colors), ax=axes, shrink=0.8, extend=extend)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def frame_globe(axis: Any, step: int = 30) -> None:
    """Draw coasts and a grid on a map of the globe, with `step` degrees between lines of latitude."""
    longitudes, latitudes = range(-180, 181, 2 * step), range(-90, 91, step)
    axis.set(xlim=(-180, 180), ylim=(-90, 90), xticks=longitudes, yticks=latitudes, aspect="equal")
    axis.set_xlabel("longitude", fontsize=8)
    axis.set_ylabel("latitude", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.grid(color="#000000", alpha=0.12, linewidth=0.6)
    axis.add_collection(LineCollection(read_coasts(), colors="#606060", linewidths=0.6, zorder=1.5), autolim=False)


@cache
def read_coasts() -> list[np.ndarray]:
    """Return the coasts of the continents and larger islands, each as positions [N, 2] (longitude, latitude)."""
    with np.load(COASTS) as stored:
        return np.split(stored["points"] / 10.0, stored["starts"][1:-1])
