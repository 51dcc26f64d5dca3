"""Pixels on a grid: swath edges, mixed baselines, slices, tiles, attempts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from scipy.ndimage import map_coordinates
from shapely.geometry import shape

from terramind_plugin.raster.georeference import Grid
from terramind_plugin.sources import datasets
from terramind_plugin.sources.datasets import SceneError
from terramind_plugin.sources.reading import read_mask, read_modality
from terramind_plugin.sources.rules import RULES
from terramind_plugin.sources.scenes import Scene, make_scene
from tests.sources import ground as truth

LEFT, TOP = 499200, 5299200
"""Corner of the grid, a multiple of 60 m."""
GRID = Grid(240, 240, CRS.from_epsg(32632), Affine(10, 0, LEFT, 0, -10, TOP))


def scene(made: truth.Ground, item: dict) -> Scene:
    row = next(one for one in RULES if one.collection == item["collection"])
    assets = {name: {"href": str(made.root / asset["href"])} for name, asset in item["assets"].items()}
    return make_scene(item | {"assets": assets}, row, shape(item["geometry"]).wkb)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> truth.Ground:
    return truth.Ground(tmp_path_factory.mktemp("reading"))


def expected(band: str) -> np.ndarray:
    return truth.reflectance(band, *truth.centres(GRID.transform, *GRID.shape))


@pytest.fixture(scope="module")
def halves(made: truth.Ground) -> list[Scene]:
    """Return two scenes of one day with other baselines: the first ends in the middle, and declares no nodata."""
    west = made.s2("west", "2022-01-20T10:00:00Z", LEFT - 1200, TOP + 1200, 480, baseline="05.00", swath=241)
    east = made.s2("east", "2022-01-20T10:00:00Z", LEFT - 1200, TOP + 1200, 480, baseline="03.01")
    return [scene(made, west), scene(made, east)]


def test_two_baselines_of_a_day_are_never_1000_apart(halves: list[Scene]):
    for order in (halves, halves[::-1]):
        pixels = read_modality(GRID, "S2L2A", order)
        assert pixels.valid.all()
        for band, values in zip(truth.BANDS, pixels.values, strict=True):
            assert np.abs(values - expected(band)).max() < 3, band
    assert set(np.unique(read_modality(GRID, "S2L2A", halves).origin)) == {1, 2}


def test_no_pixel_is_blended_at_the_edge_of_a_swath(halves: list[Scene]):
    """Neither a copy, nor an interpolation in the zone, nor one across zones takes zeros for darkness."""
    other = Grid(260, 200, CRS.from_epsg(32633), Affine(10, 0, 0, 0, -10, 0))
    x, y = truth.Transformer.from_crs("EPSG:32632", "EPSG:32633", always_xy=True).transform(LEFT + 200, TOP - 200)
    for grid in (GRID, replace(GRID, transform=Affine(10, 0, LEFT + 3, 0, -10, TOP - 4)),
                 replace(other, transform=Affine(10, 0, x, 0, -10, y))):  # fmt: skip
        with rasterio.open(halves[0].assets["B02"]) as file:
            assert file.nodata is None
        pixels = read_modality(grid, "S2L2A", halves[:1])
        position = truth.position(grid.crs.to_string(), *truth.centres(grid.transform, *grid.shape))
        assert (pixels.values == 0).any()
        for band, values in zip(truth.BANDS, pixels.values, strict=True):
            seen = values > 0
            # At the last pixel with data, interpolation has one side alone: half a pixel's gradient.
            limit = truth.S2_METRES.get(band, 20) / 2 * (400 / 900 + 300 / 770) + 1.5
            assert np.abs(values - truth.reflectance(band, *position))[seen].max() < limit, band


def test_dark_pixels_stay_pixels(made: truth.Ground):
    dark = scene(made, made.s2("dark", "2023-06-12T10:00:00Z", LEFT, TOP, 240))
    with rasterio.open(dark.assets["B02"], "r+") as file:
        values = file.read(1)
        values[:, :4] = [0, 1, 999, 1001]
        file.write(values, 1)
    found = read_modality(GRID, "S2L2A", [dark]).values[1]
    assert found[:, :4].tolist() == [[0, 1, 1, 1]] * 240
    assert found.dtype == np.uint16


@pytest.mark.parametrize("band", ["B02", "B05", "B11"])
def test_the_own_zone_is_what_rasterio_gives(halves: list[Scene], band: str):
    with (
        rasterio.open(halves[1].assets[band]) as file,
        WarpedVRT(file, crs=GRID.crs, transform=GRID.transform, width=240, height=240,
                  resampling=Resampling.bilinear, src_nodata=0, nodata=0) as warped,
    ):  # fmt: skip
        plain = warped.read(1)
    np.testing.assert_array_equal(read_modality(GRID, "S2L2A", halves[1:]).values[truth.BANDS.index(band)], plain)


def test_a_small_chip_in_another_zone_is_as_sharp_as_a_large_one(made: truth.Ground):
    """GDAL by itself takes a turned chip for a coarser one, and blurs it."""
    to_other = truth.Transformer.from_crs("EPSG:32632", "EPSG:32633", always_xy=True)
    x, y = (float(np.round(value / 60) * 60) for value in to_other.transform(LEFT, TOP))
    item = made.s2("rough", "2023-06-12T10:00:00Z", x - 600, y + 600, 240, crs="EPSG:32633")
    rough = np.random.default_rng(0).integers(1001, 9000, (240, 240), dtype=np.uint16)
    with rasterio.open(made.root / item["assets"]["B02"]["href"], "r+") as file:
        file.write(rough, 1)
    columns, rows = to_other.transform(*truth.centres(GRID.transform, 128, 128))
    at = (y + 600 - rows) / 10 - 0.5, (columns - x + 600) / 10 - 0.5
    exact = map_coordinates(rough.astype(float) - 1000, at, order=1)
    for row in (0, 64):
        for column in (0, 64):
            corner = Affine(10, 0, LEFT + 10 * column, 0, -10, TOP - 10 * row)
            found = read_modality(Grid(64, 64, GRID.crs, corner), "S2L2A", [scene(made, item)]).values[1]
            # GDAL interpolates positions, too, by up to an eighth of a pixel.
            assert np.abs(found - exact[row : row + 64, column : column + 64]).max() < 20


def test_radar_is_interpolated_as_power_and_keeps_gaps(made: truth.Ground):
    first = scene(made, made.s1("first", "2023-06-12T05:00:00Z", LEFT - 500, TOP + 500, 340, gap=100))
    moved = replace(GRID, transform=Affine(10, 0, LEFT + 4, 0, -10, TOP - 3))
    for grid in (GRID, moved):
        pixels = read_modality(grid, "S1RTC", [first])
        x, y = truth.centres(grid.transform, *grid.shape)
        linear = np.stack([truth.power(band, x, y) for band in ("VV", "VH")]) * 1.015
        gaps = np.isnan(pixels.values)
        assert 0.15 < gaps.mean() < 0.25
        np.testing.assert_array_equal(gaps[0], ~pixels.valid)
        np.testing.assert_allclose(pixels.values[~gaps], 10 * np.log10(linear)[~gaps], atol=0.05)


def test_tiles_of_heights_have_no_seam_and_the_sea_is_0(made: truth.Ground):
    tiles = [scene(made, made.dem(east, 47.8)) for east in (8.9, 9.0)]
    pixels = read_modality(GRID, "DEM", tiles)
    x, y = truth.centres(GRID.transform, *GRID.shape)
    assert pixels.values.dtype == np.int16
    assert np.abs(pixels.values[0] - truth.height(x, y)).max() < 1
    assert not read_modality(GRID, "DEM", []).values.any()
    half = read_modality(GRID, "DEM", tiles[:1])
    assert 0.2 < (half.values == 0).mean() < 0.8


def test_classes_are_terraminds(made: truth.Ground):
    cover = scene(made, made.lulc("cover", 2023, LEFT, TOP, 240))
    found = read_modality(GRID, "LULC", [cover]).values
    assert set(np.unique(found)) == {1, 2, 4, 5, 9}
    with rasterio.open(cover.assets["LULC"], "r+") as file:
        file.write(np.full((240, 240), 6, np.uint8), 1)
    datasets.close_datasets()
    with pytest.raises(SceneError, match="6 is not a class of Esri"):
        read_modality(GRID, "LULC", [cover])


def test_files_in_radar_geometry_are_refused(tmp_path: Path, made: truth.Ground):
    from rasterio.control import GroundControlPoint

    path = tmp_path / "grd.tif"
    points = [GroundControlPoint(r, c, LEFT + 10 * c, TOP - 10 * r) for r in (0, 9) for c in (0, 9)]
    with rasterio.open(path, "w", driver="GTiff", width=10, height=10, count=1, dtype="uint16", gcps=points,
                       crs="EPSG:32632") as file:  # fmt: skip
        file.write(np.ones((1, 10, 10), np.uint16))
    one = scene(made, made.s1("radar", "2023-06-12T05:00:00Z", LEFT, TOP, 240))
    with pytest.raises(SceneError, match="ground control points"):
        read_modality(GRID, "S1RTC", [replace(one, assets={"VV": str(path), "VH": str(path)})])


def test_a_missing_file_is_a_scene_that_fails(halves: list[Scene]):
    gone = replace(halves[0], assets={**halves[0].assets, "SCL": "/nowhere/SCL.tif"})
    with pytest.raises(SceneError, match="SCL") as caught:
        read_mask(GRID, [gone])
    assert caught.value.scene == gone.key
