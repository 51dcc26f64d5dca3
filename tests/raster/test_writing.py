"""GeoTIFFs: what is written is read again, a failure leaves nothing behind, and gaps become NaN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rioxarray
from rasterio.transform import Affine

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.raster.writer import parse_color, write_geotiff
from tests.raster.odd import read_image

PLACE = {"crs": "EPSG:32632", "transform": Affine(10, 0, 500_000, 0, -10, 5_000_000)}


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize("size", [(40, 70), (256, 300)])
def test_values_and_place_survive(tmp_path: Path, dtype: str, size: tuple[int, int]) -> None:
    array = np.random.default_rng(0).integers(0, 200, (2, *size)).astype(dtype)
    path = tmp_path / "image.tif"
    write_geotiff(path, array, **PLACE, descriptions=("a", "b"), units=("m", "dB"), tags={"note": "x"})
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(), array)
        assert file.dtypes == (dtype, dtype)
        assert file.crs.to_epsg() == 32632
        assert file.transform == PLACE["transform"]
        assert file.descriptions == ("a", "b")
        assert file.units == ("m", "dB")
        assert file.tags()["note"] == "x"
        assert file.compression.value == "DEFLATE"
        assert file.profile["tiled"] == (min(size) >= 256)
        assert file.nodata is None
    assert list(tmp_path.iterdir()) == [path]


def test_nodata_and_colormap(tmp_path: Path) -> None:
    path = tmp_path / "classes.tif"
    colors = {0: (0, 0, 0, 255), 1: parse_color("#419bdf")}
    write_geotiff(path, np.ones((1, 8, 8), np.uint8), **PLACE, colormap=colors, nodata=0)
    with rasterio.open(path) as file:
        assert file.colormap(1)[1] == (0x41, 0x9B, 0xDF, 255)
        assert file.nodata == 0


def test_equal_input_gives_equal_bytes_and_replaces(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(3, 50, 60)).astype(np.float32)
    for name in ("a.tif", "b.tif", "a.tif"):
        write_geotiff(tmp_path / name, array, **PLACE, nodata=float("nan"))
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("terramind_plugin.system.files.os.replace", fail)
    with pytest.raises(DataError, match=r"image\.tif cannot be written: disk full"):
        write_geotiff(tmp_path / "image.tif", np.zeros((1, 8, 8), np.uint8), **PLACE)
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "image.tif"
    write_geotiff(path, np.zeros((1, 8, 8), np.uint8), **PLACE)
    before = path.read_bytes()
    with pytest.raises(DataError, match="nonsense"):
        write_geotiff(path, np.ones((1, 8, 8), np.uint8), crs="nonsense", transform=PLACE["transform"])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (np.zeros((8, 8), np.uint8), {}, r"shape \(8, 8\)"),
        (np.zeros((1, 0, 8), np.uint8), {}, "shape"),
        (np.zeros((1, 8, 8), np.int64), {}, "int64"),
        (np.zeros((2, 8, 8), np.uint8), {"descriptions": ("a",)}, "1 descriptions for 2 bands"),
        (np.zeros((2, 8, 8), np.uint8), {"units": ("m",)}, "1 units for 2 bands"),
        (np.zeros((1, 8, 8), np.float32), {"colormap": {}}, "colour table"),
    ],
)
def test_refuses(tmp_path: Path, array: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        write_geotiff(tmp_path / "image.tif", array, **PLACE, **options)
    assert list(tmp_path.iterdir()) == []


def test_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        write_geotiff(tmp_path / "no" / "image.tif", np.zeros((1, 8, 8), np.uint8), **PLACE)


@pytest.mark.parametrize("color", ["419bdf0", "#xyzxyz", "#fff", ""])
def test_refuses_a_color(color: str) -> None:
    with pytest.raises(ConfigError, match="#rrggbb"):
        parse_color(color)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
@pytest.mark.parametrize("nodata", [None, 0, np.nan, "mask"])
def test_gaps_are_read_as_rioxarray_reads_them(dtype: str, nodata: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 120, (3, 20, 30)).astype(dtype)
    if np.dtype(dtype).kind == "f":
        values[0, 3, :5] = np.nan
    elif nodata is not None and nodata != "mask" and np.isnan(nodata):
        pytest.skip("whole numbers have no NaN")
    path = tmp_path / "a.tif"
    tag = None if nodata == "mask" else nodata
    size = {"count": 3, "height": 20, "width": 30}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", dtype=dtype, nodata=tag, crs="EPSG:32630", transform=Affine.scale(10), **size) as file,
    ):
        file.write(values)
        if nodata == "mask":
            file.write_mask(values[1] > 40)
    expected = rioxarray.open_rasterio(path, masked=True).to_numpy()
    found = read_image(path).values
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(found).any() == (np.dtype(dtype).kind == "f" or nodata is not None)
