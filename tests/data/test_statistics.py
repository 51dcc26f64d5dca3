"""Mean and standard deviation of a data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from terramind_plugin.data.datamodule import band_statistics
from terramind_plugin.data.statistics import RunningStatistics, describe_statistics


def _numbers(module: Any) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    found = band_statistics(module)
    return {name: x.mean for name, x in found.items()}, {name: x.std for name, x in found.items()}


def _read(root: Path, kind: str) -> np.ndarray:
    arrays = []
    for path in sorted((root / kind).glob("*.tif")):
        with rasterio.open(path) as raster:
            arrays.append(raster.read(masked=True).astype(np.float64).filled(np.nan))
    return np.stack(arrays)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_equal_to_numpy(
    make_chips: Callable[..., Path], make_module: Callable[..., Any], write: Callable[..., Path], num_workers: int
) -> None:
    root = make_chips()
    radar = np.random.default_rng(1).normal(-15, 5, (2, 32, 32)).astype(np.float32)
    radar[0, :9] = np.nan
    write(root / "S1GRD" / "a_S1.tif", radar)
    write(root / "S1GRD" / "b_S1.tif", np.full((2, 32, 32), np.nan, np.float32))
    optical = np.random.default_rng(2).integers(0, 5, (13, 32, 32)).astype(np.uint16)
    write(root / "S2L1C" / "c_S2.tif", optical, nodata=0)
    flips = [{"class_path": "RandomCrop", "init_args": {"height": 8, "width": 8}}, {"class_path": "ToTensorV2"}]
    module = make_module(root, train_transform=flips, num_workers=num_workers, batch_size=8)
    means, stds = _numbers(module)
    assert list(means) == list(stds) == ["S2L1C", "S1GRD"]
    for name in means:
        values = _read(root, name)
        assert np.allclose(means[name], np.nanmean(values, axis=(0, 2, 3)), rtol=1e-5, atol=1e-3)
        assert np.allclose(stds[name], np.nanstd(values, axis=(0, 2, 3)), rtol=1e-5, atol=1e-3)


def test_bands_far_from_zero_and_constant_ones(
    make_chips: Callable[..., Path], make_module: Callable[..., Any], write: Callable[..., Path]
) -> None:
    root = make_chips(("a", "b"))
    values = np.random.default_rng(1).normal(0, 0.01, (2, 32, 32)).astype(np.float32)
    values[1] = 1e4
    for name in "ab":
        write(root / "S1GRD" / f"{name}_S1.tif", values + np.array([1e4, 0], np.float32)[:, None, None])
    expected = _read(root, "S1GRD").std(axis=(0, 2, 3))
    _, stds = _numbers(make_module(root, modalities=["S1GRD"]))
    assert np.allclose(stds["S1GRD"], expected, atol=1e-4)


def test_dates_are_pooled_by_band(
    make_chips: Callable[..., Path], make_module: Callable[..., Any], write: Callable[..., Path]
) -> None:
    root = make_chips(("a", "b"))
    for name in "ab":
        write(root / "S1GRD" / f"{name}_S1.tif", np.repeat([1, 5, 3, 7], 32 * 32).reshape(4, 32, 32).astype(np.float32))
    bands = {"S1GRD": ["VV", "VH"]}
    module = make_module(root, modalities=["S1GRD"], dataset_bands=bands, expand_temporal_dimension=True)
    means, stds = _numbers(module)
    assert means == {"S1GRD": [2.0, 6.0]}
    assert stds == {"S1GRD": [1.0, 1.0]}


def test_missing_modalities_and_stacked_bands(
    make_chips: Callable[..., Path], make_module: Callable[..., Any], write: Callable[..., Path]
) -> None:
    root = make_chips(("a", "b"))
    (root / "S1GRD" / "a_S1.tif").unlink()
    write(root / "S1GRD" / "b_S1.tif", np.full((2, 32, 32), -7, np.float32))
    means, stds = _numbers(make_module(root, allow_missing_modalities=True))
    assert means["S1GRD"] == [-7.0, -7.0]
    assert stds["S1GRD"] == [0.0, 0.0]
    root = make_chips(("a", "b"))
    means, _ = _numbers(make_module(root, concat_bands=True))
    assert list(means) == ["image"]
    assert len(means["image"]) == 15


def test_a_band_without_any_value_is_an_error(
    make_chips: Callable[..., Path], make_module: Callable[..., Any], write: Callable[..., Path]
) -> None:
    root = make_chips(("a",))
    write(root / "S1GRD" / "a_S1.tif", np.full((2, 32, 32), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"S1GRD.*no pixel with data"):
        band_statistics(make_module(root))


@given(
    parts=st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32) | st.just(float("nan")), min_size=1, max_size=30),
        min_size=1,
        max_size=5,
    ),
    shift=st.sampled_from([0.0, 1e4]),
)
@settings(max_examples=60, deadline=None)
def test_parts_give_what_the_whole_gives(parts: list[list[float]], shift: float) -> None:
    arrays = [np.array(part, np.float32) + np.float32(shift) for part in parts]
    whole = np.concatenate(arrays)
    known = whole[np.isfinite(whole)].astype(np.float64)
    assume(known.size)
    running = RunningStatistics(1)
    for array in arrays:
        running.add(array[None])
    result = running.result()
    spread = max(np.abs(known).max(), 1e-30)
    assert result.mean[0] == pytest.approx(known.mean(), rel=1e-5, abs=1e-5 * spread)
    assert result.std[0] == pytest.approx(known.std(), rel=1e-5, abs=1e-6 * spread)
    assert result.missing == pytest.approx(1 - known.size / whole.size)
    for share, values in result.percentiles.items():
        # Between two values any number is a percentile; a value is known to 1 in 512.
        low, high = (np.percentile(known, share, method=method) for method in ("lower", "higher"))
        assert low - abs(low) / 512 - 1e-30 <= values[0] <= high + abs(high) / 512 + 1e-30


def test_percentiles_are_numpys(make_chips: Callable[..., Path], make_module: Callable[..., Any]) -> None:
    root = make_chips()
    found = band_statistics(make_module(root))
    for name in ("S2L1C", "S1GRD"):
        values = _read(root, name)
        for share, numbers in found[name].percentiles.items():
            low, high = (np.nanpercentile(values, share, axis=(0, 2, 3), method=way) for way in ("lower", "higher"))
            assert (low - np.abs(low) / 512 <= numbers).all()
            assert (numbers <= high + np.abs(high) / 512).all()
    assert found["S2L1C"].samples == 4
    assert found["S2L1C"].missing == 0


def test_the_text_is_yaml_with_a_table(make_chips: Callable[..., Path], make_module: Callable[..., Any]) -> None:
    module = make_module(make_chips(), output_bands={"S1GRD": ["VH"]}, dataset_bands={"S1GRD": ["VV", "VH"]})
    found = band_statistics(module)
    text = describe_statistics(found, module.bands_read)
    assert yaml.safe_load(text) == {
        "means": {name: x.mean for name, x in found.items()},
        "stds": {name: x.std for name, x in found.items()},
    }
    assert "# S2L1C: 4 samples, 0.0% of the values without data" in text
    (line,) = [line.split() for line in text.splitlines() if line.startswith("# VH")]
    assert float(line[2]) == pytest.approx(found["S1GRD"].mean[0], rel=1e-3)
    assert line[9:11] == ["-20.293", "5.89"]
    assert float(line[11]) == pytest.approx((found["S1GRD"].mean[0] + 20.293) / 5.89, abs=0.06)
    (cirrus,) = [line for line in text.splitlines() if line.startswith("# B10")]
    assert cirrus.endswith("!")
