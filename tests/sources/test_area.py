"""Areas, points and grids of chips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from terramind_plugin.errors import ConfigError
from terramind_plugin.sources.area import DateRange, read_area, read_points
from terramind_plugin.sources.grids import (
    make_majortom_grid,
    make_point_grid,
    make_utm_grid,
    name_cell,
    outlines,
    utm_epsg,
)
from terramind_plugin.sources.splits import SHARES, assign_splits, find_leaks, merge_groups

REAL = Path(__file__).parents[3] / "shared" / "data" / "terramesh" / "S2L2A"


def square(left: float, bottom: float, right: float, top: float) -> dict:
    return {
        "type": "Polygon",
        "coordinates": [[[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]]],
    }


UTM = {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid GeoJSON"),
        ("[]", "holds a list"),
        ({"type": "FeatureCollection", "features": []}, "it is empty"),
        ({"type": "Polygon", "coordinates": []}, "empty geometry"),
        ({"type": "Point", "coordinates": [10, 47]}, "has no area"),
        (square(500000, 5200000, 510000, 5210000), "in another CRS"),
        (square(10, 47, 11, 48) | UTM, "EPSG::32632"),
        (square(179, 10, 181, 11), "antimeridian"),
        (square(-179, 10, 179, 11), "antimeridian"),
        (square(10, 83, 11, 85), "reaches a pole"),
        (square(10, -85, 11, -82), "reaches a pole"),
    ],
)  # fmt: skip
def test_areas_that_are_not_possible(tmp_path: Path, content, message):
    path = tmp_path / "aoi.geojson"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=message) as caught:
        read_area(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_area_is_told(tmp_path: Path):
    with pytest.raises(ConfigError, match="no file"):
        read_area(tmp_path / "nothing.geojson")


def test_degrees_in_a_member_crs_are_fine(tmp_path: Path):
    path = tmp_path / "aoi.geojson"
    member = {"crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}}
    path.write_text(json.dumps(square(10, 47, 11, 48) | member))
    assert read_area(path).bounds == (10, 47, 11, 48)


def test_points(tmp_path: Path):
    path = tmp_path / "points.csv"
    path.write_text("id,longitude,latitude\nfirst,10.1,47.5\nsecond one,10.2,-33\n")
    places = make_point_grid(read_points(path), 256)
    assert [place.id for place in places] == ["first", "second_one"]
    assert [place.crs for place in places] == ["EPSG:32632", "EPSG:32732"]
    for place, outline in zip(places, outlines(places), strict=True):
        assert place.left % 10 == place.top % 10 == 0
        longitude = 10.1 if place.id == "first" else 10.2
        assert abs(outline.centroid.x - longitude) < 1e-3
    path.write_text("id,lon\nfirst,10\n")
    with pytest.raises(ConfigError, match="lacks the column longitude"):
        read_points(path)


def test_dates():
    assert str(DateRange.read("2023-06-12")) == "2023-06-12/2023-06-12"
    assert DateRange.read("2023-06-12").middle.isoformat()[:16] == "2023-06-12T12:00"


@pytest.mark.parametrize(
    ("longitude", "latitude", "epsg"),
    [(11.9, 47, 32632), (12.1, 47, 32633), (12.1, -1, 32733), (5, 60, 32632), (2.9, 60, 32631), (15, 78, 32633),
     (179.9, 10, 32660), (-180, 10, 32601)],
)  # fmt: skip
def test_zones(longitude, latitude, epsg):
    assert utm_epsg(longitude, latitude) == epsg


def test_a_utm_grid_covers_an_area_over_two_zones_and_the_equator():
    area = shapely.box(11.9, -0.05, 12.1, 0.05)
    places = make_utm_grid(area, 128)
    assert {place.crs for place in places} == {"EPSG:32632", "EPSG:32633", "EPSG:32732", "EPSG:32733"}
    assert len({place.id for place in places}) == len(places)
    shapes = outlines(places)
    # At the edge of a zone, gaps are narrower than a chip.
    assert shapely.union_all(shapes).intersection(area).area > 0.93 * area.area
    for place in places:
        assert place.left % 1280 == place.top % 1280 == 0
    inside = [place for place in places if place.crs == "EPSG:32632"]
    pairs = np.array([(place.left, place.top) for place in inside])
    assert len(np.unique(pairs, axis=0)) == len(inside)


def test_names_of_cells():
    assert [name_cell(*cell) for cell in ((433, -629), (-38, 378), (0, 0))] == ["433U_629L", "38D_378R", "0U_0R"]


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL}")
def test_majortom_makes_terrameshs_grid():
    import rasterio

    paths = sorted(REAL.glob("*.tif"))
    assert paths
    for path in paths:
        with rasterio.open(path) as file:
            longitude, latitude = file.lnglat()
            transform, crs = file.transform, file.crs.to_string()
        (place,) = make_majortom_grid(shapely.Point(longitude, latitude).buffer(1e-5), 224)
        assert (place.id, place.crs) == (path.stem, crs)
        assert abs(place.left - transform.c) < 0.1
        assert abs(place.top - transform.f) < 0.1


def test_splits_keep_groups_and_none_is_empty():
    groups = [f"g{number % 60}" for number in range(600)]
    found = assign_splits(groups)
    assert set(found.values()) == set(SHARES)
    assert assign_splits(groups[::-1]) == found
    for count in range(3, 40):
        few = assign_splits([f"f{number}" for number in range(count) for _ in range(16)])
        shares = [list(few.values()).count(split) / count for split in SHARES]
        assert 0 < shares[1] <= max(0.25, 1 / count)
        assert 0 < shares[2] <= max(0.25, 1 / count)
    more = assign_splits([*groups, *(f"h{number}" for number in range(60))])
    assert all(more[name] == split for name, split in found.items())
    shares = [list(more.values()).count(split) / len(more) for split in SHARES]
    np.testing.assert_allclose(shares, list(SHARES.values()), atol=0.12)


def test_all_classes_are_in_training_and_validation():
    groups = [f"g{number}" for number in range(20)]
    classes = [frozenset({0, 1}) if number in (3, 11, 17) else frozenset({0}) for number in range(20)]
    found = assign_splits(groups, classes)
    for split in ("train", "val"):
        own = set().union(*(one for group, one in zip(groups, classes, strict=True) if found[group] == split))
        assert own == {0, 1}


def test_chips_on_the_same_ground_do_not_leak():
    shapes = shapely.box([0, 0.5, 3, 4], 0, [1, 1.5, 4, 5], 1)
    assert merge_groups(["a", "b", "c", "d"], shapes) == ["a", "a", "c", "d"]
    assert find_leaks(["train", "test", "val", "train"], shapes) == {0}
