"""Files and figures of the locations of chips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rasterio.transform import Affine

from terramind_plugin.evaluate.locate import ANYWHERE, NEAR, Belief, Errors
from terramind_plugin.evaluate.scores import great_circle
from terramind_plugin.files import write_rows
from terramind_plugin.plotting import LABEL_COLORS, frame_globe, plot_modality
from terramind_plugin.raster.chips import Chip
from terramind_plugin.raster.writer import write_geotiff

SHADES = 1e3
"""Ratio of the largest to the smallest probability in the colour scale."""


def write_belief(path: Path, belief: Belief, tags: Mapping[str, str]) -> None:
    """Write the probabilities of all locations as a GeoTIFF in degrees; pixels are centred on the grid's locations.

    Args:
        path: Path of the file.
        belief: Probabilities.
        tags: Description of the model.
    """
    step = float(belief.longitudes[1] - belief.longitudes[0])
    write_geotiff(
        path,
        belief.probabilities[None].astype(np.float32),
        crs="EPSG:4326",
        transform=Affine(step, 0, belief.longitudes[0] - step / 2, 0, -step, belief.latitudes[0] + step / 2),
        descriptions=("probability",),
        units=("1",),
        tags={"probability": "of each location of the grid, among all", **tags},
    )


def write_places(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV with one row for each chip; it appears when it is complete."""
    write_rows(path, [rows[0].keys(), *(row.values() for row in rows)])


def describe(chip: Chip, places: NDArray[Any], shares: NDArray[Any], middle: NDArray[Any]) -> dict[str, Any]:
    """Return one row of the CSV.

    Args:
        chip: Chip.
        places: Likeliest locations [N, 2], as (longitude, latitude).
        shares: Probabilities of these locations [N].
        middle: Location of least expected distance [2].
    """
    row: dict[str, Any] = {"chip": chip.path.name}
    for number, ((longitude, latitude), share) in enumerate(zip(places, shares, strict=True), start=1):
        row |= {
            f"longitude_{number}": longitude,
            f"latitude_{number}": latitude,
            f"probability_{number}": f"{share:.4g}",
        }
    row |= {"longitude_middle": middle[0], "latitude_middle": middle[1], "longitude_true": "", "latitude_true": ""}
    row |= {"error_likeliest_km": "", "error_middle_km": ""}
    true = chip.grid.centre()
    if true is not None:
        row |= {"longitude_true": f"{true[0]:.5f}", "latitude_true": f"{true[1]:.5f}"}
        row["error_likeliest_km"] = f"{great_circle(places[0], true):.1f}"
        row["error_middle_km"] = f"{great_circle(middle, true):.1f}"
    return row


def sentence(row: Mapping[str, Any]) -> str:
    """Return a row of the CSV in words."""
    count = sum(key.startswith("probability_") for key in row)
    places = [
        f"{_degrees(row[f'latitude_{n}'], 'NS')} {_degrees(row[f'longitude_{n}'], 'EW')} ({row[f'probability_{n}']})"
        for n in range(1, count + 1)
    ]
    middle = f"{_degrees(row['latitude_middle'], 'NS')} {_degrees(row['longitude_middle'], 'EW')}"
    true = f"; true place {row['error_middle_km']} km from there" if row["error_middle_km"] else ""
    return f"{row['chip']}: {', '.join(places)}; least expected distance at {middle}{true}"


def _degrees(value: float, signs: str) -> str:
    return f"{abs(value):.2f}{signs[0] if value >= 0 else signs[1]}"


def record(errors: Sequence[Errors]) -> dict[str, Any]:
    """Return all numbers for a JSON file, in km."""
    found: dict[str, Any] = {
        one.name: {
            "median": one.median.value,
            "low": one.median.interval[0],
            "high": one.median.interval[1],
            "near": one.near,
        }
        for one in errors
    }
    return found | {"anywhere": {"median": ANYWHERE, "near": _share_within(NEAR)}}


def table(errors: Sequence[Errors]) -> list[list[str]]:
    """Return head and rows."""
    rows = []
    for one in errors:
        median = one.median
        low, high = median.interval
        rows.append([one.name, f"{median.value:.0f}", f"{low:.0f} to {high:.0f}", f"{100 * one.near:.0f} %"])
    rows.append(["anywhere on the globe, drawn evenly", f"{ANYWHERE:.0f}", "-", f"{100 * _share_within(NEAR):.1f} %"])
    return [["", "median error, km", "95 % interval", f"within {NEAR:.0f} km"], *rows]


def _share_within(distance: float) -> float:
    """Return the share of the sphere within some km of a location."""
    return float((1 - np.cos(distance / ANYWHERE * np.pi / 2)) / 2)


def draw_chip(chip: Chip, modality: str, belief: Belief, count: int, title: str) -> Figure:
    """Return a figure: the chip, and the probabilities of all locations with marks on the likeliest ones.

    Args:
        chip: Chip.
        modality: Name of its modality.
        belief: Probabilities of its locations.
        count: Number of marks.
        title: Title of the figure.
    """
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.4))
    plot_modality(modality, chip.measured(), left)
    left.set_title(f"{modality} (input)", fontsize=10)
    most = float(belief.probabilities.max())
    step = float(belief.longitudes[1] - belief.longitudes[0]) / 2
    extent = (
        belief.longitudes[0] - step,
        belief.longitudes[-1] + step,
        belief.latitudes[-1] - step,
        belief.latitudes[0] + step,
    )
    image = right.imshow(
        np.maximum(belief.probabilities, most / SHADES),
        extent=extent,
        cmap="magma_r",
        norm=LogNorm(most / SHADES, most),
        interpolation="nearest",
    )
    figure.colorbar(image, ax=right, shrink=0.85, label="probability", extend="min")
    places, shares = belief.likeliest(count)
    right.scatter(*places.T, s=70, facecolors="none", edgecolors=LABEL_COLORS[1], linewidths=1.5, label="likeliest")
    right.annotate(f"{shares[0]:.2g}", places[0], xytext=(7, 7), textcoords="offset points", fontsize=8)
    right.scatter(*belief.middle(), marker="s", s=40, color=LABEL_COLORS[2], label="least expected distance")
    true = chip.grid.centre()
    if true is not None:
        right.scatter(*true, marker="X", s=90, color="#00b4d8", edgecolors="#000000", label="true place")
    frame_globe(right)
    figure.legend(loc="outside lower right", ncols=3, fontsize=8, frameon=False)
    return figure


def draw_errors(true: NDArray[Any], named: NDArray[Any], errors: Sequence[Errors], title: str) -> Figure:
    """Return a figure: a line from each true location to the guess, and the distribution of the errors.

    Args:
        true: True locations [chips, 2] as (longitude, latitude) in degrees.
        named: Locations of least expected distance, of the same shape.
        errors: Errors from `compare_errors`.
        title: Title of the figure.
    """
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    for start, end in zip(true, named, strict=True):
        across = (end[0] - start[0] + 180) % 360 - 180  # the short way round
        for turn in (0, 360, -360):
            left.plot(
                [start[0] + turn, start[0] + turn + across],
                [start[1], end[1]],
                color="#999999",
                linewidth=0.5,
                zorder=1,
            )
    left.scatter(*true.T, s=12, color=LABEL_COLORS[3], label="true place", zorder=2)
    left.scatter(*named.T, s=12, color=LABEL_COLORS[2], label="least expected distance", zorder=2)
    frame_globe(left)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=2, fontsize=8, frameon=False)
    for number, one in enumerate(errors):
        order = np.sort(one.distances)
        shares = np.arange(1, len(order) + 1) / len(order)
        right.step([0, *order], [0, *shares], where="post", color=f"C{number}", label=one.name)
    reach = np.linspace(0, 2 * ANYWHERE, 200)
    right.plot(reach, [_share_within(x) for x in reach], color="#999999", linestyle="--", label="anywhere on the globe")
    right.set(
        xlabel="error, km", ylabel="share of chips", xlim=(0, 2 * ANYWHERE), ylim=(0, 1), xticks=range(0, 20001, 5000)
    )
    right.grid(alpha=0.3)
    right.legend(fontsize=8, frameon=False, loc="lower right")
    return figure
