"""From xarray to a model's input and back."""

import numpy as np
import pytest
import rasterio
import rioxarray
import torch
import xarray as xr
from rasterio.transform import from_origin

from terramind_plugin import plot_modality, to_dataarray, to_tensor
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.modalities import resolve

NAMES = resolve("S2L2A").band_names


def write(path, values, names=None, **profile):
    fields = {"driver": "GTiff", "crs": "EPSG:32632", "transform": from_origin(500000, 5300000, 10, 10), **profile}
    with rasterio.open(
        path, "w", count=len(values), height=values.shape[1], width=values.shape[2], dtype=values.dtype, **fields
    ) as raster:
        raster.write(values)
        if names:
            raster.descriptions = tuple(names)
    return rioxarray.open_rasterio(path)


@pytest.fixture
def values():
    return np.random.default_rng(0).integers(100, 4000, (12, 16, 24)).astype(np.uint16)


def test_bands_are_taken_by_name(tmp_path, values):
    chip = write(tmp_path / "chip.tif", values[::-1], NAMES[::-1])
    tensor = to_tensor(chip, "S2L2A")
    assert tensor.dtype == torch.float32
    assert np.array_equal(tensor.numpy(), values[None].astype(np.float32))


def test_selected_bands_keep_their_names(tmp_path, values):
    chip = write(tmp_path / "chip.tif", values, NAMES)
    order = np.random.default_rng(1).permutation(12)
    assert np.array_equal(to_tensor(chip.isel(band=order), "S2L2A")[0].numpy(), values)
    with pytest.raises(DataError, match="Missing: B12"):
        to_tensor(chip.sel(band=range(1, 12)), "S2L2A")


def test_bands_without_names_are_taken_by_position(tmp_path, values):
    assert np.array_equal(to_tensor(write(tmp_path / "chip.tif", values), "S2L2A")[0].numpy(), values)


@pytest.mark.parametrize("masked", [False, True])
def test_missing_values_become_the_mean(tmp_path, values, masked):
    values[3, 2, 5] = 0
    write(tmp_path / "chip.tif", values, nodata=0)
    tensor = to_tensor(rioxarray.open_rasterio(tmp_path / "chip.tif", masked=masked), "S2L2A")
    assert tensor[0, 3, 2, 5].item() == np.float32(resolve("S2L2A").mean[3])
    tensor[0, 3, 2, 5] = 0
    assert np.array_equal(tensor[0].numpy(), values)


def test_what_is_written_has_grid_names_and_nodata(tmp_path, values):
    chip = write(tmp_path / "chip.tif", values)
    scores = torch.zeros(1, 10, 16, 24)
    scores[0, 4] = 1
    scores[0, 7, 0] = 2
    scores[0, :, 1, 1] = torch.nan
    land_cover = to_dataarray(scores, "LULC", like=chip)
    land_cover.rio.to_raster(tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as out, rasterio.open(tmp_path / "chip.tif") as source:
        assert (out.crs, out.transform, out.shape) == (source.crs, source.transform, source.shape)
        assert (out.dtypes, out.nodata, out.descriptions) == (("uint8",), 0, ("LULC",))
        ids = out.read(1)
    assert (ids[0] == 7).all()
    assert ids[1, 1] == 0
    assert (ids[2:] == 4).all()


def test_there_and_back(tmp_path, values):
    chip = write(tmp_path / "chip.tif", values, NAMES)
    again = to_dataarray(to_tensor(chip, "S2L2A"), "S2L2A", like=chip)
    assert list(again.band.values) == list(NAMES)
    assert again.rio.crs == chip.rio.crs
    assert again.rio.transform() == chip.rio.transform()
    assert np.array_equal(again.values, values)
    assert np.array_equal(to_tensor(again[::-1], "S2L2A").numpy(), to_tensor(chip, "S2L2A").numpy())


def test_a_dataarray_is_drawn(tmp_path):
    heights = np.linspace(0, 900, 16 * 24, dtype=np.float32).reshape(1, 16, 24)
    heights[0, 0, 0] = -9999
    array = write(tmp_path / "dem.tif", heights, nodata=-9999)
    axes = plot_modality("DEM", array)
    assert axes.images


def test_what_is_refused(tmp_path, values):
    chip = write(tmp_path / "chip.tif", values)
    dates = xr.concat([chip, chip], dim="time")
    cases = [
        (lambda: to_tensor(dates, "S2L2A"), ConfigError, r"isel\(time=0\)"),
        (lambda: to_tensor(chip.transpose("y", "x", "band"), "S2L2A"), ConfigError, r"transpose\('band', 'y', 'x'\)"),
        (lambda: to_tensor(chip[:7], "S2L2A"), DataError, "has 7 bands"),
        (lambda: to_tensor(chip / 10000, "S2L2A"), DataError, "not multiplied by 10000"),
        (lambda: to_tensor(chip * np.nan, "S2L2A"), DataError, "holds no data"),
        (lambda: to_tensor(chip, "S2L3A"), ConfigError, "S2L2A"),
        (lambda: to_tensor(chip, "coords"), ConfigError, "has no pixels"),
        (lambda: to_dataarray(torch.zeros(2, 10, 16, 24), "LULC", like=chip), ConfigError, "one sample"),
        (lambda: to_dataarray(torch.zeros(1, 10, 16, 16), "LULC", like=chip), ConfigError, r"\[10, 16, 24\]"),
    ]
    for call, error, words in cases:
        with pytest.raises(error, match=words):
            call()
