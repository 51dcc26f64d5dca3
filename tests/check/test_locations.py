"""Chips that show the same ground, and many files read by several processes."""

from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import rasterio
from hypothesis import given
from rasterio.crs import CRS
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

from terramind_plugin.samples.checks.headers import map_files, read_header
from terramind_plugin.samples.checks.locations import OVERLAP, Footprint, find_same_ground
from terramind_plugin.system import parallel

UTM = CRS.from_epsg(32633)
corner = st.integers(0, 30)
chips = st.dictionaries(st.sampled_from("abcdefghijkl"), st.tuples(corner, corner), min_size=1)


def utm(corners: dict[str, tuple[int, int]], side: float = 160.0) -> dict[str, Footprint]:
    """Return chips of that side at multiples of 40 m."""
    places = {name: (300000 + 40.0 * x, 5000000 + 40.0 * y) for name, (x, y) in corners.items()}
    return {name: Footprint(UTM, (x, y, x + side, y + side)) for name, (x, y) in places.items()}


@given(chips, chips)
def test_overlap_is_what_each_pair_says(here: dict[str, tuple[int, int]], there: dict[str, tuple[int, int]]) -> None:
    found = find_same_ground(utm(here), utm(there))

    def share(one: tuple[int, int], other: tuple[int, int]) -> float:
        sides = [max(0, 4 - abs(a - b)) / 4 for a, b in zip(one, other, strict=True)]
        return sides[0] * sides[1]

    partners = {
        other: {name for name, own in here.items() if name != other and share(own, at) > OVERLAP}
        for other, at in there.items()
    }
    assert {text.split(" and ")[1] for text in found} == {other for other, names in partners.items() if names}
    assert all(text.split(" and ")[0] in partners[text.split(" and ")[1]] for text in found)


def test_chips_of_other_systems() -> None:
    here = utm({"one": (0, 0), "far": (3000, 3000)})
    box = here["one"].bounds
    same = Footprint(CRS.from_epsg(4326), transform_bounds(UTM, "EPSG:4326", *box))
    neighbour = Footprint(CRS.from_epsg(32632), transform_bounds(UTM, "EPSG:32632", *box))
    nowhere = Footprint(CRS.from_epsg(32632), (1e300, 1e300, 1e301, 1e301))
    assert find_same_ground(here, {"degrees": same, "zone 32": neighbour, "nowhere": nowhere}) == [
        "one and degrees",
        "one and zone 32",
    ]


def test_processes_read_what_threads_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{index}.tif" for index in range(12)]
    for index, path in enumerate(paths[:-1]):
        profile = {"driver": "GTiff", "count": 1, "height": 4, "width": 4 + index, "dtype": "uint8", "crs": UTM}
        with rasterio.open(path, "w", transform=from_origin(300000 + index, 5000000, 10, 10), **profile) as raster:
            raster.write(np.zeros((1, 4, 4 + index), np.uint8))
    by_threads = map_files(read_header, paths)
    monkeypatch.setattr(parallel, "MANY_FILES", 10)
    assert map_files(read_header, paths) == by_threads
    assert [header.shape[1] for header in by_threads[:-1]] == list(range(4, 15))
    assert "No such file" in by_threads[-1].problem
