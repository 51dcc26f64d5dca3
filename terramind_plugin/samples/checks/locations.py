"""Check for chips of different splits that overlap on the ground."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from terramind_plugin.errors import counted
from terramind_plugin.raster.georeference import apply_affine
from terramind_plugin.samples.checks.findings import Finding, some
from terramind_plugin.samples.checks.headers import UNREADABLE, Header
from terramind_plugin.samples.plan import DataPlan

OVERLAP = 0.01
"""Tolerated share of a chip that overlaps a chip of another split: neighbours may share a row of pixels."""
OVERLAP_OF_SYSTEMS = 0.2
"""Tolerated share for chips in different CRSs: a box in degrees around a box in metres is larger than the latter."""
Bounds = tuple[float, float, float, float]
"""Left, bottom, right and top, in the units of the CRS."""
NOWHERE: Bounds = (np.nan, np.nan, np.nan, np.nan)
TOGETHER = 256
"""Number of chips looked up at once; it limits the memory if many chips overlap."""


@dataclass(frozen=True)
class Footprint:
    """Footprint of a chip on the ground."""

    crs: CRS
    bounds: Bounds
    """Bounds in the units of the CRS."""

    @cached_property
    def degrees(self) -> Bounds:
        """Return the bounds in degrees of longitude and latitude; NaN if they cannot be converted."""
        if self.crs.is_geographic:
            return self.bounds
        try:
            left, bottom, right, top = transform_bounds(self.crs, "EPSG:4326", *self.bounds)
            return left, bottom, right, top
        except UNREADABLE:
            return NOWHERE


def check_overlap(plan: DataPlan, headers: Mapping[Path, Header]) -> Iterator[Finding]:
    """Yield splits whose chips show the same ground."""
    footprints: dict[str, dict[str, Footprint]] = {}
    for split in plan.splits:
        for sample, files in split.samples.items():
            header = next((headers[path] for path in files.values() if path in headers), None)
            if header is not None and header.placed and not header.problem:
                footprints.setdefault(split.name, {})[sample] = footprint_of(header)
    for (one, here), (other, there) in combinations(footprints.items(), 2):
        pairs = find_same_ground(here, there)
        if pairs:
            show = "shows" if len(pairs) == 1 else "show"
            yield Finding(
                "files: overlap in space",
                "warning",
                f"{counted(len(pairs), 'chip')} of {other} {show} ground of {one}: {some(pairs, 2)}.",
                f"Split by location: results on {other} would be too good.",
            )


def footprint_of(header: Header) -> Footprint:
    """Return the footprint of a raster that has a location."""
    rows, columns = header.shape
    xs, ys = apply_affine(header.transform, np.array([0, columns, 0, columns]), np.array([0, 0, rows, rows]))
    assert header.crs is not None
    return Footprint(header.crs, (xs.min(), ys.min(), xs.max(), ys.max()))


def find_same_ground(here: Mapping[str, Footprint], there: Mapping[str, Footprint]) -> list[str]:
    """Return the names of overlapping chips of two splits, as 'A and B'; one pair for each chip of `there`.

    Args:
        here: Footprints of the other split's chips, by name.
        there: Footprints of the chips to check, by name.
    """
    from shapely import STRtree

    systems: dict[CRS, int] = {}
    for one in [*here.values(), *there.values()]:
        systems.setdefault(one.crs, len(systems))
    ours, theirs = _Table(here, systems), _Table(there, systems)
    tree = STRtree(ours.outlines)
    found: dict[str, str] = {}
    for first in range(0, len(theirs.names), TOGETHER):
        rows, columns = tree.query(theirs.outlines[first : first + TOGETHER])
        for row, column in zip(*_overlapping(theirs, rows + first, ours, columns), strict=True):
            name, other = ours.names[column], theirs.names[row]
            # A sample in both lists is reported by check_splits.
            if name != other:
                found.setdefault(other, name)
    return [f"{name} and {other}" for other, name in found.items()]


class _Table:
    """Footprints as arrays, in degrees if there are several CRSs; without those that cannot be converted."""

    def __init__(self, footprints: Mapping[str, Footprint], systems: Mapping[CRS, int]) -> None:
        from shapely import box

        bounds = np.array([one.bounds for one in footprints.values()])
        self.degrees = bounds if len(systems) == 1 else np.array([one.degrees for one in footprints.values()])
        kept = np.isfinite(bounds).all(1) & np.isfinite(self.degrees).all(1)
        self.names = [name for name, keep in zip(footprints, kept, strict=True) if keep]
        self.systems = np.array([systems[one.crs] for one in footprints.values()])[kept]
        self.bounds, self.degrees = bounds[kept], self.degrees[kept]
        self.outlines = box(*self.degrees.T)


def _overlapping(
    one: _Table, rows: NDArray[Any], other: _Table, columns: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the pairs of rows, one of each table, whose footprints overlap."""
    same = one.systems[rows] == other.systems[columns]
    shares = np.where(
        same,
        _share(one.bounds[rows], other.bounds[columns]) / OVERLAP,
        _share(one.degrees[rows], other.degrees[columns]) / OVERLAP_OF_SYSTEMS,
    )
    return rows[shares > 1], columns[shares > 1]


def _share(boxes: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Return the share of the smaller of two boxes that lies in the other one, [n], for boxes [n, 4]."""
    sides = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    smaller = np.minimum(*(np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (boxes, others)))
    shares: NDArray[Any] = np.prod(sides.clip(0), axis=1) / np.maximum(smaller, np.finfo(float).tiny)
    return shares
