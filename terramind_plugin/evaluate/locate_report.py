"""Files and figures of the locations of chips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from rasterio.transform import Affine

from terramind_plugin.errors import counted
from terramind_plugin.evaluate.locate import ANYWHERE, NEAR, Belief, Errors, compare_errors
from terramind_plugin.evaluate.output import show, write_json
from terramind_plugin.evaluate.scores import great_circle
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.plotting.panels import frame_globe
from terramind_plugin.plotting.pictures import LABEL_COLORS, plot_modality
from terramind_plugin.raster.chips import Chip
from terramind_plugin.raster.writer import write_geotiff
from terramind_plugin.system.files import write_figure, write_rows

CELL = 10
"""Side in degrees of a cell in the maps of many chips."""
SHADES = 1e3
"""Ratio of the largest to the smallest probability in the colour scale."""


def write_belief(path: Path, belief: Belief, tags: Mapping[str, str]) -> None:
    """Write the probabilities of all locations as a GeoTIFF in degrees, whose pixel centres are the grid's locations.

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


@dataclass(frozen=True)
class LocatedChip:
    """Location of a chip, to be printed and written."""

    chip: str
    """Name of the file."""
    likeliest: NDArray[np.float64]
    """Most likely locations [N, 2], as (longitude, latitude)."""
    shares: NDArray[np.float64]
    """Probabilities of these locations [N]."""
    middle: NDArray[np.float64]
    """Location of least expected distance [2]."""
    true: tuple[float, float] | None
    """True location; None without a georeference."""

    @classmethod
    def of(cls, chip: Chip, belief: Belief, count: int) -> LocatedChip:
        """Return the location of a chip with its `count` most likely places."""
        return cls(chip.path.name, *belief.likeliest(count), belief.middle(), chip.grid.centre())

    def row(self) -> dict[str, Any]:
        """Return one row of the CSV."""
        row: dict[str, Any] = {"chip": self.chip}
        for number, ((longitude, latitude), share) in enumerate(zip(self.likeliest, self.shares, strict=True), start=1):
            row |= {f"longitude_{number}": longitude, f"latitude_{number}": latitude}
            row[f"probability_{number}"] = f"{share:.4g}"
        true = ("", "") if self.true is None else (f"{self.true[0]:.5f}", f"{self.true[1]:.5f}")
        row |= {"longitude_middle": self.middle[0], "latitude_middle": self.middle[1]}
        row |= {"longitude_true": true[0], "latitude_true": true[1]}
        return row | {"error_likeliest_km": self._error(self.likeliest[0]), "error_middle_km": self._error(self.middle)}

    def _error(self, place: NDArray[Any]) -> str:
        return "" if self.true is None else f"{great_circle(place, np.array(self.true)):.1f}"

    def __str__(self) -> str:
        """Return the location in words."""
        places = [f"{_words(place)} ({share:.4g})" for place, share in zip(self.likeliest, self.shares, strict=True)]
        true = "" if self.true is None else f"; true place {self._error(self.middle)} km from there"
        return f"{self.chip}: {', '.join(places)}; least expected distance at {_words(self.middle)}{true}"


def _words(place: NDArray[Any]) -> str:
    return f"{_degrees(place[1], 'NS')} {_degrees(place[0], 'EW')}"


def _degrees(value: float, signs: str) -> str:
    return f"{abs(value):.2f}{signs[0] if value >= 0 else signs[1]}"


def write_places(path: Path, places: Sequence[LocatedChip]) -> None:
    """Write a CSV with one row for each chip; it appears when it is complete."""
    rows = [place.row() for place in places]
    write_rows(path, [rows[0].keys(), *(row.values() for row in rows)])


def write_chip(files: tuple[Path, Path], chip: Chip, belief: Belief, count: int, described: Mapping[str, str]) -> None:
    """Write the map and the picture of a chip.

    Args:
        files: Paths of both.
        chip: Chip.
        belief: Probabilities of its locations.
        count: Number of marks in the picture.
        described: Model, weights and modality.
    """
    write_belief(files[0], belief, {**described, "input": chip.path.name})
    title = f"Where does {chip.path.name} lie? {described['model']}, weights: {described['weights']}"
    title += remark_on_coasts(described["model"])
    write_figure(files[1], draw_chip(chip, described["modality"], belief, count, title))


def report_errors(out: Path, places: Sequence[LocatedChip], described: Mapping[str, str]) -> list[Path]:
    """Show, write and draw the errors of locations, and return the files of a labelled folder.

    Args:
        out: Folder.
        places: Locations of all chips, with true ones.
        described: Model, weights and modality.
    """
    true = np.array([place.true for place in places])
    middles = np.stack([place.middle for place in places])
    errors = compare_errors(true, np.stack([place.likeliest[0] for place in places]), middles)
    count, model = counted(len(places), "chip"), f"{described['model']}, weights: {described['weights']}"
    show(table(errors), f"{count}, {model}")
    write_json(out / "places.json", {**described, "chips": len(places), "errors": record(errors)})
    title = f"{count}, {described['modality']}: {model}{remark_on_coasts(described['model'])}"
    figure = draw_errors(true, middles, errors, title)
    write_figure(out / "places.png", figure)
    return [out / name for name in ("places.csv", "places.json", "places.png")]


def remark_on_coasts(model: str) -> str:
    """Return the end of a title: a remark if the model's locations are not on the Earth, otherwise ''."""
    imaginary = model in VARIANTS and VARIANTS[model].hub_repo is None
    return "\nthis model's globe is imaginary; the coasts of the Earth are for orientation" if imaginary else ""


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
    """Return a figure: the chip, and the probabilities of all locations with marks on the most likely ones.

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
    """Return a figure: where chips lie and where the model puts them, as densities, and the distribution of the errors.

    Args:
        true: True locations [chips, 2] as (longitude, latitude) in degrees.
        named: Locations of least expected distance, of the same shape.
        errors: Errors from `compare_errors`.
        title: Title of the figure.
    """
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    figure.suptitle(title, fontsize=9)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.4, 1))
    maps = [figure.add_subplot(grid[row, 0]) for row in range(2)]
    right = figure.add_subplot(grid[:, 1])
    edges = np.arange(-180.0, 181, CELL), np.arange(-90.0, 91, CELL)
    counts = [np.histogram2d(places[:, 0], places[:, 1], bins=list(edges))[0].T for places in (true, named)]
    scale = PowerNorm(0.5, 0, max(2.0, *(float(count.max()) for count in counts)))
    for axis, count, text in zip(maps, counts, ("where the chips lie", "where the model puts them"), strict=True):
        shown = np.ma.masked_equal(count, 0)
        image = axis.pcolormesh(*edges, shown, cmap="YlGnBu", norm=scale)
        axis.set_title(text, fontsize=10)
        frame_globe(axis)
    figure.colorbar(
        image, ax=maps, shrink=0.7, label=f"chips in a cell of {CELL} degrees", ticks=MaxNLocator(5, integer=True)
    )
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
