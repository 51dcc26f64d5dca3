"""NetCDF files: grid, fill values, variables and dates, as in GeoTIFFs."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401  gives arrays their `rio`
import xarray as xr

from terramind_plugin.errors import DataError
from terramind_plugin.raster.netcdf import raster_name
from terramind_plugin.raster.reader import Expected, Source
from terramind_plugin.raster.series import Series

SIDE = 8
BANDS = ("BLUE", "GREEN", "RED")
EXPECTED = Expected("S2L2A", BANDS, (1.0, 2.0, 3.0), BANDS)


def _array(values: np.ndarray, *dims: str) -> Any:
    """Return an array with the grid and the fill value -9999."""
    x, y = 500005.0 + 10 * np.arange(SIDE), 4999995.0 - 10 * np.arange(SIDE)
    array = xr.DataArray(values.astype(np.float32), dims=(*dims, "y", "x"), coords={"x": x, "y": y})
    return array.rio.write_crs("EPSG:32633").rio.write_nodata(-9999).rio.write_coordinate_system()


@pytest.fixture
def values() -> np.ndarray:
    """Return [dates, bands, H, W] with a gap."""
    image = np.random.default_rng(0).uniform(100, 3000, (2, 3, SIDE, SIDE)).astype(np.float32)
    image[1, 2, :2, 3] = -9999
    return image


def _check(path: Path, values: np.ndarray, dated: bool = True) -> None:
    series = Series([path], EXPECTED if not dated else Expected("S2L2A", BANDS, EXPECTED.fill, BANDS, dated=True))
    try:
        got, valid = series.read(0, 0, SIDE, SIDE)
        assert series.grid.crs.to_epsg() == 32633
        assert tuple(series.grid.transform[:6]) == (10, 0, 500000, 0, -10, 5000000)
    finally:
        series.close()
    want = values.swapaxes(0, 1)
    filled = np.where(want == -9999, np.array(EXPECTED.fill)[:, None, None, None], want)
    np.testing.assert_array_equal(got, filled.astype(np.float32))
    assert valid.all()


def test_one_variable_with_dates(values: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "one.nc"
    array = _array(values, "time", "band").assign_coords(time=np.array(["2024-01-01", "2024-02-01"], "datetime64[ns]"))
    array.to_dataset(name="reflectance").to_netcdf(path, engine="scipy")
    assert raster_name(path, "S2L2A", BANDS) == str(path)
    _check(path, values)


def test_one_variable_for_each_band(values: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "bands.nc"
    named = {name: _array(values[:, band], "time") for band, name in enumerate(("B02", "B03", "B04"))}
    xr.Dataset({"SCL": _array(np.zeros((2, SIDE, SIDE)), "time"), **named}).to_netcdf(path, engine="scipy")
    _check(path, values)
    with rasterio.open(raster_name(path, "S2L2A", BANDS)) as file:
        assert file.descriptions == BANDS * 2
    with pytest.raises(DataError, match=r"has the variables SCL, B02, B03, B04. None is named S1GRD.* bands VV, VH"):
        raster_name(path, "S1GRD", ("VV", "VH"))


def test_one_of_several_variables_by_its_name(values: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "several.nc"
    date = {"dem": _array(values[0, :1], "one"), "S2L2A": _array(values[1], "band")}
    xr.Dataset(date).to_netcdf(path, engine="scipy")
    source = Source(path, EXPECTED)
    assert source.read(0, 0, SIDE, SIDE).values[0].tolist() == values[1, 0].tolist()
    source.close()
    dem = Source(path, Expected("DEM", ("DEM",), (0.0,)))
    assert dem.read(0, 0, SIDE, SIDE).values[0].tolist() == values[0, 0].tolist()
    dem.close()


def test_other_files_keep_their_names(tmp_path: Path) -> None:
    for name in ("a.tif", "https://host/a.nc", "/vsicurl/https://host/a.nc"):
        assert raster_name(name, "S2L2A", BANDS) == name
    with pytest.raises(DataError, match=r"no\.nc"):
        Source(tmp_path / "no.nc", EXPECTED)


def test_many_files_are_read_by_one_thread(values: np.ndarray, tmp_path: Path) -> None:
    from terramind_plugin.samples.checks.headers import map_files, read_header

    paths = [tmp_path / f"{number}.nc" for number in range(24)]
    for path in paths:
        _array(values, "time", "band").to_dataset(name="values").to_netcdf(path, engine="scipy")
    used: set[int] = set()

    def read(path: Path) -> int:
        used.add(threading.get_ident())
        return read_header(path).bands

    assert map_files(read, paths) == [6] * 24
    assert used == {threading.get_ident()}
