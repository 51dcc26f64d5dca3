"""Reading windows of rasters on one grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import Resampling, calculate_default_transform, reproject
from rasterio.warp import transform as transform_positions
from scipy.ndimage import map_coordinates

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.georeference import Grid, apply_affine
from terramind_plugin.raster.reader import Expected, Source

PLACE_CRS = CRS.from_epsg(32632)
PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)
RADAR = Expected.of(MODALITIES["S1GRD"])
HEIGHTS = Expected.of(MODALITIES["DEM"])


def _write(path: Path, values: np.ndarray, names: tuple[str, ...] = (), **changes: Any) -> Path:
    profile = {"driver": "GTiff", "crs": "EPSG:32632", "transform": PLACE, "dtype": values.dtype.name, **changes}
    with rasterio.open(path, "w", count=len(values), height=values.shape[1], width=values.shape[2], **profile) as file:
        file.write(values)
        for number, name in enumerate(names, start=1):
            file.set_band_description(number, name)
    return path


def _hills(height: int = 60, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return (100 + 3.0 * x + 2.0 * y)[None].astype(np.float32)


def test_a_window_and_its_mirror_image(tmp_path: Path) -> None:
    values = _hills()
    source = Source(_write(tmp_path / "dem.tif", values), HEIGHTS)
    part = source.read(40, 70, 32, 16)
    assert part.values.shape == (1, 32, 16)
    np.testing.assert_array_equal(part.values[:, :20, :10], values[:, 40:, 70:])
    np.testing.assert_array_equal(part.values[:, 20, :10], values[:, 58, 70:])
    np.testing.assert_array_equal(part.values[:, :20, 10], values[:, 40:, 78])
    assert part.valid.sum() == 20 * 10
    assert not part.valid[20:].any()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("how", ["nan", "nodata", "mask"])
def test_gaps_by_band(tmp_path: Path, how: str, keep: bool) -> None:
    values = np.random.default_rng(0).normal(-12, 3, (2, 20, 30)).astype(np.float32)
    path = tmp_path / "s1.tif"
    if how == "nan":
        values[0, 3:5] = values[1, 4] = np.nan
        _write(path, values)
    elif how == "nodata":
        values[0, 3:5] = values[1, 4] = -99
        _write(path, values, nodata=-99)
    else:
        mask = np.full((20, 30), 255, np.uint8)
        mask[4] = 0
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(_write(path, values), "r+") as file:
            file.write_mask(mask)
    source = Source(path, RADAR)
    if keep:
        source.keep_rows(20)
    part = source.read(0, 0, 20, 30)
    mean = np.float32(MODALITIES["S1GRD"].mean)
    assert (part.values[:, 4] == mean[:, None]).all()
    assert (part.valid == (np.arange(20) != 4)[:, None]).all()
    one_band = part.values[0, 3] == mean[0]
    assert one_band.all() if how in ("nan", "nodata") else not one_band.any()
    assert np.isfinite(part.values).all()


def test_bands_by_name_and_by_place(tmp_path: Path) -> None:
    values = np.stack([np.full((4, 4), number, np.float32) for number in (-20, -10, 5)])
    named = _write(tmp_path / "named.tif", values, ("vh", "VV", "angle"))
    assert Source(named, RADAR).read(0, 0, 4, 4).values[:, 0, 0].tolist() == [-10, -20]
    plain = _write(tmp_path / "plain.tif", values[:2])
    assert Source(plain, RADAR).read(0, 0, 4, 4).values[:, 0, 0].tolist() == [-20, -10]
    chosen = Expected("S1GRD", ("VH",), (0.0,), file_bands=("angle", "VV", "VH"))
    assert Source(_write(tmp_path / "c.tif", values), chosen).read(0, 0, 4, 4).values[:, 0, 0].tolist() == [5]
    own = Expected("THERMAL", ("T1", "T2"), (0.0, 0.0))
    assert Source(plain, own).read(0, 0, 1, 1).values.ravel().tolist() == [-20, -10]


def test_what_is_refused(tmp_path: Path) -> None:
    one = _write(tmp_path / "one.tif", np.zeros((3, 8, 8), np.float32), ("VV", "angle", "x"))
    with pytest.raises(DataError, match=r"one\.tif has 3 bands, but S1GRD has 2: VV, VH\. Missing: VH\."):
        Source(one, RADAR)
    with pytest.raises(DataError, match="There is no file"):
        Source(tmp_path / "none.tif", RADAR)
    (tmp_path / "text.tif").write_text("no raster")
    with pytest.raises(DataError, match="cannot be read as a raster"):
        Source(tmp_path / "text.tif", RADAR)
    waves = _write(tmp_path / "slc.tif", np.zeros((2, 8, 8), np.complex64))
    with pytest.raises(DataError, match=r"slc\.tif holds complex numbers"):
        Source(waves, RADAR)
    ids = _write(tmp_path / "ids.tif", np.full((1, 8, 8), 12, np.uint8))
    with pytest.raises(DataError, match="whole numbers from 0 to 9, found 12"):
        Source(ids, Expected.of(MODALITIES["LULC"])).read(0, 0, 8, 8)
    with pytest.raises(ConfigError, match="coords is not an image"):
        Expected.of(MODALITIES["coords"])
    grid = Grid(8, 8, CRS.from_epsg(32632), PLACE)
    placeless = _write(tmp_path / "placeless.tif", np.zeros((1, 8, 8), np.float32), crs=None)
    with pytest.raises(DataError, match="has the CRS none, but the first input has EPSG:32632"):
        Source(placeless, HEIGHTS, grid)
    far = _write(tmp_path / "far.tif", np.zeros((1, 8, 8), np.float32), crs="EPSG:32652")
    with pytest.raises(DataError, match=r"does not overlap the first input.*Check its CRS, EPSG:32652"):
        Source(far, HEIGHTS, grid)
    with pytest.raises(DataError, match="without a CRS they cannot be aligned"):
        Source(placeless, HEIGHTS, Grid(9, 8, CRS(), PLACE))


def test_a_damaged_block(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(1, 256, 256)).astype(np.float32)
    path = _write(tmp_path / "dem.tif", values, tiled=True, blockxsize=64, blockysize=64, compress="deflate")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)
    source = Source(path, HEIGHTS)
    with pytest.raises(DataError, match=r"dem\.tif: rows 0 to 255, columns 0 to 255 cannot be read: .*damaged"):
        source.read(0, 0, 256, 256)


def test_warped_while_reading(tmp_path: Path) -> None:
    """A raster in another CRS comes out as reproject makes it, window by window, with a gap where it ends."""
    values = _hills()
    crs = CRS.from_epsg(4326)
    native = CRS.from_epsg(32632)
    bounds = rasterio.transform.array_bounds(60, 80, PLACE)
    transform, width, height = calculate_default_transform(native, crs, 80, 60, *bounds, resolution=1e-4)
    degrees = np.full((1, height, width), np.nan, np.float32)
    common = {"src_crs": native, "dst_crs": crs, "src_nodata": np.nan, "dst_nodata": np.nan}
    reproject(values, degrees, src_transform=PLACE, dst_transform=transform, resampling=Resampling.bilinear, **common)
    path = _write(tmp_path / "degrees.tif", degrees, crs=crs, transform=transform)
    grid = Grid(60, 90, native, PLACE)
    source = Source(path, HEIGHTS, grid)
    assert source.warped
    whole = source.read(0, 0, 60, 90)
    assert np.abs(whole.values[0, 3:-3, 3:77] - values[0, 3:-3, 3:77]).max() < 2
    assert not whole.valid[:, 83:].any()
    assert whole.valid[3:-3, 3:77].all()
    assert (whole.values[0, :, 83:] == np.float32(MODALITIES["DEM"].mean[0])).all()
    source.keep_rows(16)
    for row, column in ((0, 0), (20, 30), (44, 74)):
        part = source.read(row, column, 16, 16)
        np.testing.assert_array_equal(part.values, whole.values[:, row : row + 16, column : column + 16])


def test_a_raster_of_another_zone_is_not_blurred(tmp_path: Path) -> None:
    """GDAL by itself takes a turned block for one of finer pixels, and blurs it as if it made larger ones of them."""
    east = CRS.from_epsg(32633)
    (x,), (y,) = transform_positions(PLACE_CRS, east, [PLACE.c], [PLACE.f])
    left, top = round(x / 10) * 10 - 400, round(y / 10) * 10 + 400
    rough = np.random.default_rng(0).integers(100, 8000, (1, 420, 1100)).astype(np.float32)
    path = _write(tmp_path / "dem.tif", rough, crs=east, transform=Affine(10, 0, left, 0, -10, top))
    found = Source(path, HEIGHTS, Grid(256, 1000, PLACE_CRS, PLACE)).read(0, 0, 256, 1000)
    rows, columns = np.mgrid[:256, :1000]
    there = transform_positions(
        PLACE_CRS, east, *(part.ravel() for part in apply_affine(PLACE, columns + 0.5, rows + 0.5))
    )
    at = ((top - np.array(there[1])) / 10 - 0.5, (np.array(there[0]) - left) / 10 - 0.5)
    exact = map_coordinates(rough[0].astype(float), at, order=1, cval=np.nan).reshape(256, 1000)
    inside = found.valid & np.isfinite(exact)
    assert inside.mean() > 0.8
    # GDAL interpolates positions, too, by up to an eighth of a pixel: a part of the difference between neighbours.
    assert np.abs(found.values[0] - exact)[inside].max() < 200


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_where_a_warped_file_ends_is_no_data(tmp_path: Path, dtype: str) -> None:
    path = _write(tmp_path / "dem.tif", np.full((1, 30, 30), 7, dtype))
    x, y = 500_000 - 100, 5_000_000 + 200
    grid = Grid(70, 60, CRS.from_epsg(32632), Affine(10, 0, x, 0, -10, y))
    part = Source(path, HEIGHTS, grid).read(0, 0, 70, 60)
    expected = np.zeros((70, 60), bool)
    expected[20:50, 10:40] = True
    assert (part.valid == expected).all()
    assert (part.values[0][expected] == 7).all()


def test_a_grid_shifted_by_rounding_is_the_same(tmp_path: Path) -> None:
    path = _write(tmp_path / "dem.tif", _hills())
    assert not Source(path, HEIGHTS, Grid(60, 80, CRS.from_epsg(32632), Affine(10, 0, 500_000.001, 0, -10, 5e6))).warped
    assert Source(path, HEIGHTS, Grid(60, 80, CRS.from_epsg(32632), Affine(10, 0, 500_005, 0, -10, 5e6))).warped


@settings(deadline=None, max_examples=40)
@given(
    block=st.sampled_from([None, 16, 64]),
    starts=st.lists(st.tuples(st.integers(0, 180), st.integers(0, 130)), min_size=1, max_size=12),
    ordered=st.booleans(),
    dtype=st.sampled_from(["uint8", "uint16", "int16", "float32"]),
    nodata=st.sampled_from([None, 7, -9999]),
)
def test_kept_rows_change_nothing(
    tmp_path_factory: pytest.TempPathFactory, block: Any, starts: Any, ordered: bool, dtype: str, nodata: Any
) -> None:
    values = np.random.default_rng(0).integers(0, 9, (1, 200, 150)).astype(dtype)
    if nodata is not None and nodata < 0 and dtype.startswith("u"):
        nodata = 200
    options = {"tiled": True, "blockxsize": block, "blockysize": block} if block else {}
    path = _write(tmp_path_factory.mktemp("rows") / "dem.tif", values, nodata=nodata, **options)
    plain, kept = Source(path, HEIGHTS), Source(path, HEIGHTS)
    kept.keep_rows(20, (37, 150), [0])
    for row, column in sorted(starts) if ordered else starts:
        one, other = plain.read(row, column, 20, 30), kept.read(row, column, 20, 30)
        np.testing.assert_array_equal(one.values, other.values)
        np.testing.assert_array_equal(one.valid, other.valid)
    # Some of it was gathered on the way, the rest is read.
    for one, other in zip(plain.preview((37, 150), [0]), kept.preview((37, 150), [0]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("overviews", [False, True])
def test_preview(tmp_path: Path, overviews: bool) -> None:
    y, x = np.mgrid[:1500, :1100]
    values = np.stack([x, y]).astype(np.float32)
    values[:, :300] = np.nan
    path = _write(tmp_path / "s1.tif", values, tiled=True, blockxsize=256, blockysize=256)
    if overviews:
        with rasterio.open(path, "r+") as file:
            file.build_overviews([2, 4])
    part = Source(path, RADAR).preview((150, 110), [1, 0])
    assert part.values.shape == (2, 150, 110)
    np.testing.assert_allclose(part.values[0, 30:, 0], 305 + 10 * np.arange(120), atol=6)
    np.testing.assert_allclose(part.values[1, 40], 5 + 10 * np.arange(110), atol=6)
    assert part.valid[32:].all()
    assert not part.valid[:28].any()


@pytest.mark.parametrize(
    ("largest", "scale", "message"),
    [
        (0.4, 1.0, "its values look like reflectance that was not multiplied by 10000. Expected: "),
        (4000, 10_000.0, "its values, multiplied by constant_scale 10000, look like another unit: "),
        (4000, 1.0, ""),
    ],
)
def test_values_in_another_unit_than_the_configuration_says(tmp_path, caplog, largest, scale, message):
    values = np.linspace(0.01 * largest, largest, 12 * 64, dtype=np.float32).reshape(12, 8, 8)
    path = _write(tmp_path / "a.tif", values)
    Source(path, replace(Expected.of(MODALITIES["S2L2A"]), scale=scale)).read(0, 0, 8, 8)
    assert (message in caplog.text) if message else not caplog.text
    assert ("For files in these units: constant_scale: {S2L2A: 1}." in caplog.text) == (scale > 1)
