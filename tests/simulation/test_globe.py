"""A round world: places follow laws, chips lie where they say."""

import csv

import numpy as np
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st

from terramind_plugin.errors import ConfigError
from terramind_plugin.simulation.dataset import WORLDS, chip_files, simulate, simulate_chip
from terramind_plugin.simulation.worlds import BIOMES, Region, climate_at, region_at

PLACES = st.tuples(st.floats(-180, 180), st.floats(-60, 72))
RANGES = [name for name, kind in Region.__annotations__.items() if kind == "Range"]


@given(PLACES)
def test_every_place_has_possible_numbers(place):
    region = region_at(*place)
    for name in RANGES:
        low, high = getattr(region, name)
        assert 0 <= low <= high, name
    for name in ("farmland", "woodland", "dry"):
        assert 0 <= getattr(region, name) <= 1
    assert region.name in BIOMES
    assert region.flooded[1] < 0.6


@given(PLACES)
def test_neighbours_are_alike(place):
    longitude, latitude = place
    here, there = climate_at(longitude, latitude), climate_at(longitude, latitude + 0.01)
    assert abs(here.temperature - there.temperature) < 0.1
    assert abs(here.wetness - there.wetness) < 0.01


def test_it_is_warm_at_the_equator_and_cold_at_the_poles():
    assert climate_at(-100, 0).temperature > 20 > 0 > climate_at(-100, 70).temperature
    assert climate_at(-100, 0).wetness > climate_at(-100, 25).wetness


@pytest.fixture(scope="module")
def globe(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("globe"), chips=4, size=32, seed=3, world="globe", processes=2)


def test_chips_lie_where_the_table_says(globe):
    with (globe.root / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["chip"] for row in rows] == list(globe.chip_ids)
    for row in rows:
        with rasterio.open(chip_files(globe.root, row["chip"])["S2L2A"]) as raster:
            (east,), (north,) = rasterio.warp.transform(
                raster.crs, "EPSG:4326", [raster.transform.c], [raster.transform.f]
            )
        assert abs(east - float(row["longitude"])) < 1e-4
        assert abs(north - float(row["latitude"])) < 1e-4
        assert row["chip"].startswith(row["label"])


def test_several_processes_make_the_same_chips(globe):
    for index, name in enumerate(globe.chip_ids):
        chip = simulate_chip(3, index, 32, WORLDS["globe"])
        assert chip.name == name
        with rasterio.open(chip_files(globe.root, name)["S1GRD"]) as raster:
            assert np.array_equal(raster.read(), chip.images["S1GRD"], equal_nan=True)


def test_unknown_worlds(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean"):
        simulate(tmp_path / "a", world="glob")
    with pytest.raises(ConfigError, match="processes must be at least 1, got 0"):
        simulate(tmp_path / "a", processes=0)
