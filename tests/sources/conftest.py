"""Fixtures of the room: one small catalogue of analytic ground for all tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer

from tests.sources.ground import HOME, Ground, aoi

LEFT, TOP = 599040, 5299200
"""Corner of a block of chips of 128 pixels in UTM zone 32."""


def snapped(left: float, top: float, crs: str) -> tuple[float, float]:
    """Return a corner in another zone, on the lattice of its 60 m pixels."""
    x, y = Transformer.from_crs(HOME, crs, always_xy=True).transform(left, top)
    return float(np.round(x / 60) * 60), float(np.round(y / 60) * 60)


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Return a catalogue with two dates, baselines, zones and orbits, a cloud, and tiles of height and land cover."""
    made = Ground(tmp_path_factory.mktemp("ground"))
    made.s2(
        "S2B_MSIL2A_20230612T102609_R108_T32TPT_20230612T150000", "2023-06-12T10:26:09Z", LEFT - 160, TOP + 160, 560
    )
    made.s2("S2B_MSIL2A_20230617T102609_R108_T32TPT_20230617T150000", "2023-06-17T10:26:09Z",
            LEFT - 160, TOP + 160, 560, baseline="03.01", cloud=(0, 210, 0, 560))  # fmt: skip
    made.s2("S2B_MSIL2A_20230612T102609_R108_T33TUN_20230612T150000", "2023-06-12T10:26:20Z",
            *snapped(LEFT - 1000, TOP + 1500, "EPSG:32633"), 800, crs="EPSG:32633")  # fmt: skip
    made.s1("S1A_rtc_15", "2023-06-11T05:26:09Z", LEFT - 600, TOP + 600, 700, orbit=15)
    made.s1("S1A_rtc_88", "2023-06-13T17:26:09Z", LEFT - 600, TOP + 600, 700, orbit=88, gap=180)
    for east in (10.3, 10.4):
        for north in (47.7, 47.8):
            made.dem(east, north)
    made.lulc("32T_2022", 2022, LEFT - 600, TOP + 600, 700)
    made.lulc("32T_2023", 2023, LEFT - 600, TOP + 600, 700)
    made.save()
    aoi(made.root / "aoi.geojson", HOME, (LEFT + 100, TOP - 5020, LEFT + 5020, TOP - 100))
    return made


@pytest.fixture(scope="session")
def words(ground: Ground) -> list[str]:
    """Return the options of `terramind chips` for the catalogue, without --out."""
    return [
        "chips", "--stac", str(ground.root / "catalog.json"), "--catalogue", "planetary_computer",
        "--aoi", str(ground.root / "aoi.geojson"), "--date", "2023-05-01/2023-09-30",
        "--modalities", "S2L2A,S1RTC,DEM,LULC", "--size", "128",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def chips(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a data set made from the catalogue."""
    from terramind_plugin.cli import main

    out = tmp_path_factory.mktemp("chips") / "data"
    assert main([*words, "--out", str(out)]) == 0
    return out
