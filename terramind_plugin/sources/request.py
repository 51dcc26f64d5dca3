"""The request for chips, and the places that follow from it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from terramind_plugin.errors import ConfigError, counted
from terramind_plugin.model.variants import find_variant
from terramind_plugin.sources.area import read_area, read_points
from terramind_plugin.sources.grids import (
    LARGEST_CHIP,
    MESH,
    SMALLEST_CHIP,
    Place,
    make_majortom_grid,
    make_point_grid,
    make_utm_grid,
    outlines,
)
from terramind_plugin.sources.labels import (
    Burnable,
    burn,
    classes_of,
    find_near,
    make_label_grid,
    read_label,
    read_vectors,
)
from terramind_plugin.sources.plan import (
    READING_VERSION,
    SourceRequest,
)

DEFAULT_SIZE = 256
"""Default side of a chip in pixels."""


@dataclass(frozen=True)
class ChipRequest:
    """Request for chips."""

    source: SourceRequest
    out: Path
    aoi: Path | None = None
    labels: Path | None = None
    label_field: str | None = None
    points: Path | None = None
    grid: str | None = None
    size: int | None = None
    max_cloud: float = 0.1
    per_place: int = 1
    model: str = "terramind_sim_nano"

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine the plan, as values for JSON."""
        files = {"aoi": self.aoi, "labels": self.labels, "points": self.points}
        return {
            "version": READING_VERSION,
            **self.source.describe(),
            **{name: None if path is None else _fingerprint(path) for name, path in files.items()},
            "label_field": self.label_field,
            "grid": self.grid,
            "size": self.size,
            "max_cloud": self.max_cloud,
            "per_place": self.per_place,
        }


def _fingerprint(path: Path) -> str:
    """Return a hash of a file, or of the names and sizes of the files in a folder."""
    if path.is_dir():
        text = "".join(f"{one.name}:{one.stat().st_size};" for one in sorted(path.iterdir()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return "missing"


@dataclass
class PlaceLabels:
    """Labels of the places of a plan."""

    vectors: Burnable | None = None
    near: list[list[int]] = field(default_factory=list)
    """Indices of the geometries near each place."""
    classes: list[frozenset[int]] = field(default_factory=list)
    """Classes of each place's label."""

    def values(self, place: Place, near: Sequence[int]) -> Any:
        """Return the label [height, width] of a place."""
        return burn(place, self.vectors, near) if self.vectors is not None else read_label(place)[0]


def check_request(request: ChipRequest) -> None:
    """Raise a ConfigError if options exclude each other or a number is not possible."""
    find_variant(request.model)
    if not 0 <= request.max_cloud <= 1:
        raise ConfigError(f"--max_cloud is a share from 0 to 1, got {request.max_cloud:g}.")
    if request.per_place < 1:
        raise ConfigError(f"--per_place must be at least 1, got {request.per_place}.")
    if request.size is not None and not SMALLEST_CHIP <= request.size <= LARGEST_CHIP:
        raise ConfigError(f"--size must be from {SMALLEST_CHIP} to {LARGEST_CHIP} pixels, got {request.size}.")
    folder = request.labels is not None and not is_vector(request.labels)
    if request.grid == "labels" and not folder:
        raise ConfigError("--grid labels needs a folder of label rasters: --labels DIR.")
    if folder and request.grid not in (None, "labels"):
        raise ConfigError(f"A folder of label rasters has its own grid: leave out --grid {request.grid}.")
    if folder and request.points is not None:
        raise ConfigError("A folder of label rasters determines the positions of the chips: leave out --points.")
    if request.aoi is None and request.points is None and request.labels is None:
        raise ConfigError("No area is given. Give --aoi AREA.geojson, --points POINTS.geojson, or --labels.")
    if request.points is not None and request.grid == "majortom":
        raise ConfigError(
            "--points makes chips around points, and --grid majortom has its own places: give one of them."
        )


def is_vector(path: Path) -> bool:
    """Return whether labels are vectors, not a folder of rasters."""
    return path.suffix.lower() in (".geojson", ".json")


def find_places(request: ChipRequest) -> tuple[list[Place], PlaceLabels | None, list[str]]:
    """Return the places of the chips, their labels, and notes on what was left out.

    Raises:
        ConfigError: A file is wrong, or there is no place.
    """
    from shapely import intersects, union_all

    area = None if request.aoi is None else read_area(request.aoi)
    vectors = None
    if request.labels is not None and is_vector(request.labels):
        vectors = read_vectors(request.labels, request.label_field)
    notes: list[str] = []
    if request.labels is not None and vectors is None:
        places = make_label_grid(request.labels, request.size)
    elif request.points is not None:
        places = make_point_grid(read_points(request.points), request.size or DEFAULT_SIZE)
    else:
        ground = area
        if ground is None:
            assert vectors is not None
            ground = union_all(list(vectors.shapes))
        if request.grid == "majortom":
            places = make_majortom_grid(ground, request.size or MESH)
        else:
            places = make_utm_grid(ground, request.size or DEFAULT_SIZE)
    if area is not None and (request.points is not None or (request.labels is not None and vectors is None)):
        inside = intersects(area, outlines(places))
        outside = int((~inside).sum())
        if outside:
            notes.append(f"{counted(outside, 'chip', 'lies/lie')} outside of {request.aoi} and {be(outside)} left out.")
        places = [place for place, here in zip(places, inside, strict=True) if here]
    if not places:
        raise ConfigError("No chip lies in the area.")
    labels = _label(places, vectors) if request.labels is not None else None
    if labels is None:
        return places, None, notes
    kept = [index for index, own in enumerate(labels.classes) if own]
    if len(kept) < len(places):
        empty = len(places) - len(kept)
        notes.append(f"{counted(empty, 'chip', 'has/have')} no labelled pixel and {be(empty)} left out.")
    if not kept:
        raise ConfigError(f"No chip has a labelled pixel of {request.labels}.")
    labels.near = [labels.near[index] for index in kept] if labels.near else []
    labels.classes = [labels.classes[index] for index in kept]
    return [places[index] for index in kept], labels, notes


def be(count: int) -> str:
    """Return 'is' or 'are'."""
    return "is" if count == 1 else "are"


def _label(places: Sequence[Place], vectors: Burnable | None) -> PlaceLabels:
    labels = PlaceLabels(vectors)
    if vectors is not None:
        labels.near = find_near(places, vectors)
        labels.classes = [
            classes_of(burn(place, vectors, near), None) for place, near in zip(places, labels.near, strict=True)
        ]
    else:
        labels.classes = [classes_of(*read_label(place)) for place in places]
    return labels
