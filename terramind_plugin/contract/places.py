"""Whether chips show the same ground."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds

UNREADABLE = (RasterioError, OSError, ValueError, MemoryError)
"""What reading a damaged file may raise: ValueError stands for a CRS or text in it."""
OVERLAP = 0.01
"""Share of a chip that may lie in one of another split: neighbours that share a row of pixels."""
OVERLAP_OF_SYSTEMS = 0.2
"""The same where chips have different CRSs: boxes in degrees around boxes in metres are larger than these."""
Bounds = tuple[float, float, float, float]
"""Left, bottom, right, top."""


@dataclass(frozen=True)
class Place:
    """Where a chip is."""

    crs: CRS
    bounds: Bounds
    """In the units of the CRS."""
    degrees: Bounds


def place_of(crs: CRS, bounds: Bounds) -> Place | None:
    """Return where a chip is, or None if that is nowhere on Earth.

    Args:
        crs: Of its file.
        bounds: In units of the CRS.
    """
    try:
        degrees = bounds if crs.is_geographic else transform_bounds(crs, "EPSG:4326", *bounds)
    except UNREADABLE:
        return None
    return Place(crs, bounds, degrees) if np.isfinite([*bounds, *degrees]).all() else None


def find_same_ground(here: Mapping[str, Place], there: Mapping[str, Place]) -> list[str]:
    """Return, for each chip of one split that overlaps some of another, its name and one of theirs.

    Args:
        here: Places of the other split's chips, by name.
        there: Places of the chips that are looked at.
    """
    from shapely import STRtree, box

    names = list(here)
    tree = STRtree([box(*place.degrees) for place in here.values()])
    systems: dict[CRS, int] = {}
    numbers = np.array([systems.setdefault(place.crs, len(systems)) for place in here.values()])
    bounds, degrees = (np.array([getattr(p, what) for p in here.values()]) for what in ("bounds", "degrees"))
    pairs = []
    for other, place in there.items():
        near = tree.query(box(*place.degrees))
        same = numbers[near] == systems.get(place.crs, -1)
        found = np.where(
            same,
            _share(bounds[near], place.bounds) > OVERLAP,
            _share(degrees[near], place.degrees) > OVERLAP_OF_SYSTEMS,
        )
        # A sample that is in both lists is an error of its own.
        name = next((names[index] for index in near[found] if names[index] != other), None)
        if name is not None:
            pairs.append(f"{name} and {other}")
    return pairs


def _share(boxes: NDArray, box: Bounds) -> NDArray:
    """Return the share of the smaller of two boxes that lies in the other one, for each of the boxes [n, 4]."""
    own = np.array(box)
    sides = np.minimum(boxes[:, 2:], own[2:]) - np.maximum(boxes[:, :2], own[:2])
    smaller = np.minimum(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), np.prod(own[2:] - own[:2]))
    return np.prod(sides.clip(0), axis=1) / np.maximum(smaller, np.finfo(float).tiny)
