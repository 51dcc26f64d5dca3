"""Splits of chips by groups of neighbours, so that few test chips lie beside training chips."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from terramind_plugin.sources.grids import Place

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
"""Share of the groups of each split."""
OVERLAP = 0.005
"""Tolerated share of a chip on ground of another split: half of the share that `terramind check` allows."""
MANY = 40
"""Number of groups from which splits follow the hash of each group; with fewer, shares would be far from `SHARES`."""
LARGE = 0.35
"""Maximum share of the chips in one group of validation or test, if there is a choice."""
SALTS = 200
"""Maximum number of assignments that are tried to get all classes into training and validation."""


def hash_share(text: str, salt: int = 0) -> float:
    """Return a number from 0 to 1 that depends only on a text and a salt."""
    return int(hashlib.sha256(f"{salt}:{text}".encode()).hexdigest()[:12], 16) / 16**12


def assign_splits(groups: Sequence[str], classes: Sequence[frozenset[int]] | None = None) -> dict[str, str]:
    """Return the split of each group.

    If there are many groups, a group keeps its split when others are added. If there are few, the splits are chosen to
    match their shares.

    Args:
        groups: Group of each chip.
        classes: Classes of each chip's label. The first assignment with all classes in training and in validation is
            used, or the one with most of them.
    """
    sizes = Counter(sorted(groups))
    best: dict[str, str] = {}
    most = -1
    for salt in range(1 if classes is None else SALTS):
        found = _assign(sizes, salt)
        if classes is None:
            return found
        seen: dict[str, set[int]] = {"train": set(), "val": set(), "test": set()}
        for group, own in zip(groups, classes, strict=True):
            seen[found[group]] |= own
        both = len(seen["train"] & seen["val"])
        if both > most:
            best, most = found, both
        if both == len(set().union(*classes)):
            break
    return best


def _assign(sizes: Mapping[str, int], salt: int) -> dict[str, str]:
    """Return the split of each group, given the number of its chips."""
    numbers = {name: hash_share(name, salt) for name in sizes}
    order = sorted(sizes, key=lambda name: numbers[name])
    if len(order) < MANY:
        return _fill(sizes, order)
    edges = np.cumsum(list(SHARES.values()))
    splits = list(SHARES)
    return {name: splits[min(int(np.searchsorted(edges, numbers[name], side="right")), 2)] for name in sizes}


def _fill(sizes: Mapping[str, int], order: Sequence[str]) -> dict[str, str]:
    """Return the split of each of a few groups: test and validation get groups from the end up to their shares."""
    total = sum(sizes.values())
    found: dict[str, str] = {}
    rest = list(order)
    for split in ("test", "val"):
        taken = 0
        while len(rest) > 1 and (taken == 0 or taken < (SHARES[split] - 0.05) * total):
            fitting = [name for name in rest if sizes[name] <= LARGE * total] or rest
            name = fitting[-1]
            if taken and taken + sizes[name] > (SHARES[split] + 0.1) * total:
                break
            rest.remove(name)
            found[name] = split
            taken += sizes[name]
    return found | dict.fromkeys(rest, "train")


def group_places(places: Sequence[Place], side: int) -> list[str]:
    """Return the group of each chip, for groups of `side` times `side` chips."""
    return [
        f"{place.crs}_{place.left // (side * place.width * place.pixel_width):.0f}"
        f"_{-place.top // (side * place.height * place.pixel_height):.0f}"
        for place in places
    ]


def merge_groups(groups: Sequence[str], outlines: Any) -> list[str]:
    """Return the groups after merging those with chips on the same ground.

    Args:
        groups: Group of each chip.
        outlines: Footprint of each chip, as an array of shapely polygons.
    """
    parent = {name: name for name in groups}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for one, other in overlapping(outlines):
        first, second = sorted((root(groups[one]), root(groups[other])))
        parent[second] = first
    return [root(name) for name in groups]


def overlapping(outlines: Any) -> list[tuple[int, int]]:
    """Return the pairs of chips that share more ground than `OVERLAP`, as indices with the smaller one first."""
    from shapely import STRtree, area, intersection

    if not len(outlines):
        return []
    tree = STRtree(outlines)
    rows, columns = tree.query(outlines, predicate="intersects")
    kept = rows < columns
    rows, columns = rows[kept], columns[kept]
    shared = area(intersection(outlines[rows], outlines[columns]))
    smaller = np.minimum(area(outlines[rows]), area(outlines[columns]))
    much = shared > OVERLAP * smaller
    return list(zip(rows[much].tolist(), columns[much].tolist(), strict=True))


def find_leaks(splits: Sequence[str], outlines: Any) -> set[int]:
    """Return the chips to leave out so that no two splits share ground: first training chips, then validation chips.

    Args:
        splits: Split of each chip.
        outlines: Footprint of each chip, as an array of shapely polygons.
    """
    rank = {split: number for number, split in enumerate(SHARES)}
    dropped: set[int] = set()
    for one, other in overlapping(outlines):
        if splits[one] != splits[other] and not {one, other} & dropped:
            dropped.add(one if rank[splits[one]] < rank[splits[other]] else other)
    return dropped
