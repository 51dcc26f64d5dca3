"""The simulated STAC catalogue: valid, deterministic, and as hard as real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from rasterio.warp import transform as transform_positions
from rasterio.warp import transform_bounds
from shapely.geometry import Point, shape

from terramind_plugin.cli import main
from terramind_plugin.errors import ConfigError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.simulation.catalogue import simulate_catalogue
from terramind_plugin.simulation.ground import Ground
from terramind_plugin.simulation.overpasses import OPTICAL_PASSES, TILES

SIZE = 120


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("stac")
    simulate_catalogue(root, SIZE, seed=5)
    return root


def items(root, name="sentinel-2-l2a", catalogue="catalog.json"):
    found = pystac.Catalog.from_file(str(root / catalogue)).get_child(name)
    return list(found.get_items())


def read(item, asset):
    with rasterio.open(item.assets[asset].get_absolute_href()) as file:
        return file.read(1), file


def pick(root, tile, date):
    return next(i for i in items(root) if i.properties["s2:mgrs_tile"] == tile and date in i.id)


def content(root):
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_catalogue_is_complete_and_says_what_its_files_are(world):
    counts = {"sentinel-2-l2a": 9, "sentinel-1-rtc": 4, "cop-dem-glo-30": 4, "io-lulc-annual-v02": 4}
    found = {name: items(world, name) for name in counts}
    assert {name: len(one) for name, one in found.items()} == counts
    for item in (item for one in found.values() for item in one):
        for asset in item.assets.values():
            with rasterio.open(asset.get_absolute_href()) as file:
                assert list(file.shape) == asset.extra_fields["proj:shape"]
                assert list(file.transform)[:6] == asset.extra_fields["proj:transform"]
                assert f"EPSG:{file.crs.to_epsg()}" == item.properties["proj:code"]  # pystac renames proj:epsg
    assert [*items(world)[0].assets] == [*MODALITIES["S2L2A"].band_names, "SCL"]
    listed = json.loads((world / "items.json").read_text())["features"]
    assert {one["id"] for one in listed} == {item.id for one in found.values() for item in one}
    assert all((world / a["href"]).is_file() for one in listed for a in one["assets"].values())


def test_two_baselines_on_one_day_show_the_same_ground(world):
    south, north = pick(world, "33TTN", "20210710"), pick(world, "33UTP", "20210710")
    assert [i.properties["s2:processing_baseline"] for i in (south, north)] == ["03.01", "05.00"]
    assert south.datetime == north.datetime
    for band in ("B04", "B11", "B01"):
        a, file_a = read(south, band)
        b, file_b = read(north, band)
        rows = round((file_b.transform.f - file_a.transform.f) / file_b.transform.a)
        assert 0 < rows < len(b)
        common = len(b) - rows
        assert np.array_equal(a[:common].astype(int) + 1000, b[rows:].astype(int))


def test_swath_edges_hold_undeclared_zeros_and_footprints_leave_them_out(world):
    for item in items(world):
        classes, _ = read(item, "SCL")
        for band in ("B02", "B05", "B09"):
            values, file = read(item, band)
            assert file.nodata is None
            outline = shape(item.geometry)
            rows, columns = np.mgrid[: file.height, : file.width]
            x, y = file.transform @ (columns + 0.5, rows + 0.5)
            places = transform_positions(file.crs, "EPSG:4326", x.ravel(), y.ravel())
            inside = np.array([outline.contains(Point(p)) for p in zip(*places, strict=True)]).reshape(values.shape)
            edge = file.transform.a / 10 * 3 * max(file.shape)  # pixels that the line itself crosses
            assert np.sum((values > 0) != inside) <= edge
        share = 100 * float(np.mean(classes == 0))
        assert item.properties["s2:nodata_pixel_percentage"] == pytest.approx(share, abs=1e-5)
    cut = {item.id: item.properties["s2:nodata_pixel_percentage"] for item in items(world)}
    assert sum(share > 5 for share in cut.values()) >= 3
    assert sum(share == 0 for share in cut.values()) >= 3


def test_clouds_differ_from_date_to_date(world):
    cover = {
        date: np.mean([i.properties["eo:cloud_cover"] for i in items(world) if date in i.id])
        for date in ("20210710", "20220705")
    }
    assert cover["20210710"] < 1 < cover["20220705"]


def test_both_zones_show_one_ground(world):
    """A pixel of the tile in zone 32 is near the one at the same place in zone 33."""
    west, east = pick(world, TILES[0], "20210710"), pick(world, TILES[1], "20210710")
    a, file_a = read(west, "B08")
    b, file_b = read(east, "B08")
    rows, columns = np.mgrid[: file_a.height, : file_a.width]
    x, y = file_a.transform @ (columns + 0.5, rows + 0.5)
    u, v = map(np.array, transform_positions(file_a.crs, file_b.crs, x.ravel(), y.ravel()))
    q, p = ~file_b.transform @ (u, v)
    here = (q >= 0) & (p >= 0) & (q < file_b.width) & (p < file_b.height)
    assert here.sum() > 100
    other = b[p[here].astype(int), q[here].astype(int)].astype(float)
    own = a.ravel()[here].astype(float)
    assert np.corrcoef(own, other)[0, 1] > 0.9
    assert abs(np.median(own - other)) < 30


def test_radar_is_linear_power_of_two_orbits(world):
    found = items(world, "sentinel-1-rtc")
    assert {i.properties["sat:orbit_state"] for i in found} == {"ascending", "descending"}
    assert len({i.properties["proj:code"] for i in found}) == 2
    for item in found:
        values, file = read(item, "vv")
        assert (values.dtype, file.nodata) == (np.float32, -32768)
        seen = values[values != -32768]
        assert np.all(seen > 0)
        assert -20 < 10 * np.log10(np.median(seen)) < -3


def test_elevation_tiles_abut_half_a_pixel_outside_the_degree(world):
    tiles = {i.id: read(i, "data") for i in items(world, "cop-dem-glo-30")}
    assert all(np.isfinite(values).all() and file.nodata is None for values, file in tiles.values())
    a, left = tiles["Copernicus_DSM_COG_10_N48_00_E011_00_DEM"]
    b, right = tiles["Copernicus_DSM_COG_10_N48_00_E012_00_DEM"]
    assert left.bounds.right == pytest.approx(12 - 0.5 / 3600, abs=1e-9)
    assert left.bounds.right == pytest.approx(right.bounds.left, abs=1e-9)
    assert left.bounds.top == pytest.approx(right.bounds.top, abs=1e-9)
    assert np.abs(np.diff(np.concatenate([a[:, -1:], b[:, :1]], axis=1), axis=1)).mean() < 3


def test_landcover_has_esri_ids(world):
    for item in items(world, "io-lulc-annual-v02"):
        assert item.datetime is None
        assert item.properties["start_datetime"][:4] in item.id
        values, _ = read(item, "data")
        assert {*np.unique(values)} <= {0, 1, 2, 4, 5, 7, 8, 9, 10, 11}
        assert {1, 5} <= {*np.unique(values)}


def test_earth_search_names_the_same_files(world):
    found = items(world, "sentinel-2-c1-l2a", "earth_search/catalog.json")
    assert {i.properties["s2:processing_baseline"] for i in found} == {"05.00"}
    names = "coastal blue green red rededge1 rededge2 rededge3 nir nir08 nir09 swir16 swir22 scl"
    for item in found:
        assert " ".join(item.assets) == names
        assert item.assets["red"].extra_fields["raster:bands"][0]["offset"] == -0.1
        assert Path(item.assets["red"].get_absolute_href()).is_relative_to(world / "data")
        assert Path(item.assets["red"].get_absolute_href()).is_file()


def test_labels_are_the_water_of_the_ground_and_cover_it_once(world):
    paths = sorted((world / "labels").glob("*.tif"))
    assert {path.name[:5] for path in paths} == set(TILES)
    boxes = []
    for path in paths:
        with rasterio.open(path) as file:
            values = file.read(1)
            boxes.append(transform_bounds(file.crs, "EPSG:4326", *file.bounds))
        assert {*np.unique(values)} <= {0, 1}
    for n, (west, south, east, north) in enumerate(boxes):
        middle = ((west + east) / 2, (south + north) / 2)
        others = boxes[:n] + boxes[n + 1 :]
        assert not any(w < middle[0] < e and s < middle[1] < t for w, s, e, t in others)
    water = json.loads((world / "labels.geojson").read_text())["features"]
    assert all(shape(one["geometry"]).is_valid for one in water)
    ground = Ground(5, SIZE)
    assert 0.05 < ground.water.mean() < 0.6


def test_same_seed_same_bytes_and_only_what_is_missing_is_written(world, tmp_path):
    again = simulate_catalogue(tmp_path / "again", SIZE, seed=5)
    assert sum(again.values()) == 21
    first, second = content(world), content(tmp_path / "again")
    names = {p for p in first if p.endswith("catalog.json")}  # holds the folder's name
    assert first.keys() == second.keys()
    assert [n for n in first if first[n] != second[n] and n not in names] == []
    lost = next(iter((tmp_path / "again" / "data" / "S2L2A").glob("*_33TTN/B04.tif")))
    kept = lost.with_name("B03.tif")
    before = kept.stat().st_mtime_ns
    lost.write_bytes(lost.read_bytes()[:1000])
    simulate_catalogue(tmp_path / "again", SIZE, seed=5)
    assert content(tmp_path / "again") == second
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("size", [119, 100, 130])
def test_impossible_sizes(tmp_path, size):
    with pytest.raises(ConfigError, match="multiple of 12 pixels from 120"):
        simulate_catalogue(tmp_path / "new", size)
    assert not (tmp_path / "new").exists()


def test_folder_of_another_data_set_is_refused(world, capsys):
    assert main(["simulate", "--world", "stac", "--out", str(world), "--size", "132"]) == 2
    assert "already holds a data set" in capsys.readouterr().err


def test_passes_have_what_makes_catalogues_hard():
    days = [set(one.baselines.values()) for one in OPTICAL_PASSES]
    assert any(len(one) == 2 for one in days)
    assert any(one.time < "2022" and "05.00" in one.baselines.values() for one in OPTICAL_PASSES)
