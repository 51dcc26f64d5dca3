"""What a data set takes of files with odd values, other bands or several of them in a label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401  gives arrays their `rio`
import xarray as xr

from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import MODALITIES


def _rewrite(path: Path, values: np.ndarray, names: Any = None) -> None:
    with rasterio.open(path) as file:
        profile = {key: file.profile[key] for key in ("driver", "crs", "transform", "width", "height")}
    with rasterio.open(path, "w", count=len(values), dtype=values.dtype.name, **profile) as file:
        file.write(values)
        if names:
            file.descriptions = names


def _values(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def _sample(module: Any) -> Any:
    module.setup("fit")
    return module.train_dataset[0]


@pytest.mark.parametrize("odd", [np.inf, -np.inf, -3.4028234663852886e38, 1e31])
def test_odd_values_take_the_mean(make_chips: Any, make_module: Any, odd: float, caplog: Any) -> None:
    root = make_chips()
    path = root / "S1GRD" / "a_S1.tif"
    values = _values(path)
    values[0, 3, 4] = odd
    _rewrite(path, values)
    module = make_module(root, check_values=False)
    image = _sample(module)["image"]["S1GRD"]
    assert image[0, 3, 4] == np.float32(module.band_means["S1GRD"][0])
    np.testing.assert_array_equal(image[1], values[1])
    assert "a_S1.tif holds values that are infinite or beyond 1e+30" in caplog.text


def test_labels_of_several_bands_are_refused(make_chips: Any, make_module: Any) -> None:
    root = make_chips()
    path = root / "mask" / "a_label.tif"
    _rewrite(path, np.repeat(_values(path), 3, axis=0))
    with pytest.raises(DataError, match=r"a_label\.tif has 3 bands, expected a label with.*gdal_translate -b 1"):
        _sample(make_module(root, check_values=False))


@pytest.mark.parametrize("kind", ["S1GRD", "mask"])
def test_complex_numbers_are_refused(make_chips: Any, make_module: Any, kind: str) -> None:
    root = make_chips()
    path = next((root / kind).glob("a_*"))
    _rewrite(path, _values(path).astype(np.complex64))
    with pytest.raises(DataError, match="holds complex numbers, expected real ones"):
        _sample(make_module(root, check_values=False))


def test_bands_are_read_by_name(make_chips: Any, make_module: Any) -> None:
    root = make_chips()
    path = root / "S1GRD" / "a_S1.tif"
    values = _values(path)
    _rewrite(path, values[::-1], ("VH", "VV"))
    np.testing.assert_array_equal(_sample(make_module(root, check_values=False))["image"]["S1GRD"], values)
    bands = {"S1GRD": ["VV", "VH"]}
    with pytest.raises(DataError, match=r"as VH, VV, but dataset_bands: \{S1GRD: \[VV, VH\]\}"):
        _sample(make_module(root, check_values=False, dataset_bands=bands, output_bands=bands))
    _rewrite(path, values, ("VH", "HH"))
    with pytest.raises(DataError, match="as VH, HH, expected VV, VH for S1GRD"):
        _sample(make_module(root, check_values=False))


def test_netcdf_files_keep_grid_and_fill_value(make_chips: Any, make_module: Any) -> None:
    from terramind_plugin.samples.checks.headers import read_headers
    from terramind_plugin.samples.plan import describe_data

    root = make_chips()
    for path in sorted((root / "S1GRD").glob("*.tif")):
        with rasterio.open(path) as file:
            values, transform = file.read(), file.transform
        values[0, 3, 5] = -9999
        x, y = (transform.c + 10 * (np.arange(32) + 0.5)), transform.f - 10 * (np.arange(32) + 0.5)
        array = xr.DataArray(values, dims=("band", "y", "x"), coords={"x": x, "y": y}, name="S1GRD")
        array = array.rio.write_crs("EPSG:32630").rio.write_nodata(-9999).rio.write_coordinate_system()
        array.to_dataset().to_netcdf(path.with_suffix(".nc"), engine="scipy")
    module = make_module(root, image_grep={"S2L1C": "*_S2.tif", "S1GRD": "*_S1.nc"})
    headers = read_headers(describe_data(module))
    header = headers[root / "S1GRD" / "a_S1.nc"]
    assert (header.problem, header.crs.to_epsg(), header.transform) == ("", 32630, transform)
    module.setup("validate")
    image = module.val_dataset[0]["image"]["S1GRD"]
    assert image[0, 3, 5] == np.float32(MODALITIES["S1GRD"].mean[0])
    assert (image > -100).all()
