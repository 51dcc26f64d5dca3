"""The simulated data set: deterministic, complete, plausible, and not solvable with one band."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.simulation.chip import SimulatedChip
from terramind_plugin.simulation.dataset import SimulatedDataset, chip_files, make_splits, simulate, simulate_chip

DTYPES = {
    "S2L1C": "uint16",
    "S2L2A": "uint16",
    "S1GRD": "float32",
    "S1RTC": "float32",
    "DEM": "float32",
    "LULC": "uint8",
    "NDVI": "float32",
    "RGB": "uint8",
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> SimulatedDataset:
    return simulate(tmp_path_factory.mktemp("flood"), chips=4, size=64, seed=3)


@pytest.fixture(scope="module")
def chips() -> list[SimulatedChip]:
    return [simulate_chip(0, index, 96) for index in range(24)]


def _bytes(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_same_seed_same_bytes(dataset: SimulatedDataset, tmp_path: Path) -> None:
    again = simulate(tmp_path / "again", chips=4, size=64, seed=3)
    assert _bytes(again.root) == _bytes(dataset.root)


def test_chip_does_not_depend_on_the_number_of_chips(dataset: SimulatedDataset, tmp_path: Path) -> None:
    few = simulate(tmp_path / "few", chips=3, size=64, seed=3)
    for name in few.chip_ids:
        for key, path in chip_files(few.root, name).items():
            assert path.read_bytes() == chip_files(dataset.root, name)[key].read_bytes()


def test_other_seeds_and_indices_give_other_chips() -> None:
    a, b, c = simulate_chip(0, 0, 32), simulate_chip(1, 0, 32), simulate_chip(0, 4, 32)
    assert not np.array_equal(a.images["S2L2A"], b.images["S2L2A"])
    assert not np.array_equal(a.images["S2L2A"], c.images["S2L2A"])
    assert a.transform != c.transform


def test_layout(dataset: SimulatedDataset) -> None:
    names = dataset.chip_ids
    assert names == ("Delta_0001", "Valley_0002", "Plain_0003", "Basin_0004")
    endings = {
        "S2L1CHand": "S2Hand", "S2L2AHand": "S2L2AHand", "S1GRDHand": "S1Hand", "S1RTCHand": "S1RTCHand",
        "DEMHand": "DEMHand", "LULCHand": "LULCHand", "NDVIHand": "NDVIHand", "RGBHand": "RGBHand",
        "LabelHand": "LabelHand",
    }  # fmt: skip
    expected = {f"data/{folder}/{name}_{ending}.tif" for folder, ending in endings.items() for name in names}
    expected |= {f"splits/flood_{split}_data.txt" for split in ("train", "valid", "test")} | {"simulation.json"}
    assert set(_bytes(dataset.root)) == expected
    lines = {s: (dataset.root / f"splits/flood_{s}_data.txt").read_text().split() for s in dataset.splits}
    assert {split: tuple(ids) for split, ids in lines.items()} == dataset.splits


def test_files_describe_themselves(dataset: SimulatedDataset) -> None:
    codes = set()
    for name in dataset.chip_ids:
        places = set()
        for key, path in chip_files(dataset.root, name).items():
            with rasterio.open(path) as file:
                places.add((file.crs.to_epsg(), tuple(file.transform), file.shape))
                assert file.transform.a == -file.transform.e == 10
                # masked=True readers replace the nodata value by NaN: classes, labels and counts must not have one.
                assert (file.nodata is not None) == (key in ("S1GRD", "S1RTC"))
                if key == "label":
                    assert file.dtypes == ("int16",)
                    continue
                modality = MODALITIES[key]
                assert file.descriptions == modality.band_names
                assert set(file.dtypes) == {DTYPES[key]}
                assert set(file.units) == {modality.units}
                if key == "LULC":
                    assert "1 = water" in file.tags()["class_names"]
                    assert file.colormap(1)[1] == (0x41, 0x9B, 0xDF, 255)
        assert len(places) == 1
        codes |= {place[0] for place in places}
    assert len(codes) == 4
    assert all(32601 <= code <= 32760 for code in codes)


def test_values_are_in_the_valid_range(chips: list[SimulatedChip]) -> None:
    for chip in chips:
        for key, image in chip.images.items():
            low, high = MODALITIES[key].valid_range
            assert image.dtype.name == DTYPES[key]
            assert image.shape == (len(MODALITIES[key].bands), 96, 96)
            assert np.nanmin(image) >= low
            assert np.nanmax(image) <= high
            if key not in ("S1GRD", "S1RTC"):
                assert np.isfinite(image).all()
        assert chip.images["LULC"].min() >= 1


def test_no_label_exactly_where_there_is_no_radar(chips: list[SimulatedChip]) -> None:
    gaps = 0
    for chip in chips:
        missing = np.isnan(chip.images["S1GRD"]).any(0)
        np.testing.assert_array_equal(missing, np.isnan(chip.images["S1RTC"]).any(0))
        np.testing.assert_array_equal(missing, chip.label == -1)
        gaps += missing.any()
    assert 0 < gaps < len(chips) / 3


def test_ndvi_is_that_of_the_reflectance(chips: list[SimulatedChip]) -> None:
    chip = chips[0]
    nir = chip.images["S2L2A"][MODALITIES["S2L2A"].band_index("B08")].astype(np.float64)
    red = chip.images["S2L2A"][MODALITIES["S2L2A"].band_index("B04")].astype(np.float64)
    np.testing.assert_allclose(chip.images["NDVI"][0], (nir - red) / (nir + red), atol=1e-6)


def test_water_shares(chips: list[SimulatedChip]) -> None:
    assert all(set(np.unique(chip.label)) <= {-1, 0, 1} for chip in chips)
    shares = np.asarray([(chip.label == 1).mean() for chip in chips])
    assert 0.10 < shares.mean() < 0.45
    assert np.mean((shares > 0.01) & (shares < 0.99)) > 0.9


def test_opposite_edges_do_not_wrap(chips: list[SimulatedChip]) -> None:
    heights = [chip.images["DEM"][0] for chip in chips]
    across = np.mean([np.abs(h[:, 0] - h[:, -1]).mean() / h.std() for h in heights])
    next_to = np.mean([np.abs(h[:, 0] - h[:, 1]).mean() / h.std() for h in heights])
    assert across > 4 * next_to


def _iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float((predicted & truth).sum() / (predicted | truth).sum())


def _fit_logistic(features: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return weights of a ridge-regularised logistic regression (Newton's method)."""
    weights = np.zeros(features.shape[1])
    for _ in range(7):
        p = 1 / (1 + np.exp(-np.clip(features @ weights, -30, 30)))
        hessian = (features * (p * (1 - p))[:, None]).T @ features + 0.1 * np.eye(len(weights))
        weights -= np.linalg.solve(hessian, features.T @ (p - truth) + 0.1 * weights)
    return weights


def _quadratic(values: np.ndarray) -> np.ndarray:
    i, j = np.triu_indices(values.shape[1])
    return np.concatenate([np.ones((len(values), 1)), values, values[:, i] * values[:, j]], axis=1)


def _held_out_iou(x: np.ndarray, y: np.ndarray, train: np.ndarray, bands: Sequence[int]) -> float:
    chosen = x[:, list(bands)]
    features = _quadratic((chosen - chosen[train].mean(0)) / chosen[train].std(0))
    scores = features @ _fit_logistic(features[train], y[train])
    cut = max(np.linspace(-2, 2, 41), key=lambda c: _iou(scores[train] > c, y[train]))
    return _iou(scores[~train] > cut, y[~train])


def test_water_needs_both_sensors(chips: list[SimulatedChip]) -> None:
    values, truths, numbers = [], [], []
    for number, chip in enumerate(chips):
        known = (chip.label >= 0).ravel()
        stack = np.concatenate([chip.images["S2L1C"].astype(np.float64), chip.images["S1GRD"]])
        values.append(stack.reshape(15, -1).T[known][::24])
        truths.append(chip.label.ravel()[known][::24] == 1)
        numbers.append(np.full(len(truths[-1]), number))
    x, y, train = np.concatenate(values), np.concatenate(truths), np.concatenate(numbers) % 8 < 4
    # The best threshold is even chosen on the test pixels.
    single = max(
        max(_iou(x[~train, b] < cut, y[~train]), _iou(x[~train, b] > cut, y[~train]))
        for b in range(15)
        for cut in np.quantile(x[~train, b], np.linspace(0.02, 0.98, 33))
    )
    optical, radar = _held_out_iou(x, y, train, range(13)), _held_out_iou(x, y, train, (13, 14))
    both = _held_out_iou(x, y, train, range(15))
    assert single < both - 0.05
    assert optical < both - 0.02
    assert radar < both - 0.1
    assert both < 0.97


def test_land_cover_map_helps_but_is_not_the_label(chips: list[SimulatedChip]) -> None:
    lulc = np.stack([chip.images["LULC"][0] for chip in chips])
    label = np.stack([chip.label for chip in chips])
    water = label == 1
    assert _iou(lulc == 1, water) < 0.6
    assert water[lulc == 1].mean() > 2 * water.mean()
    assert {1, 2, 3, 4, 5, 6, 9} <= set(np.unique(lulc).tolist()) <= set(range(1, 10))


@settings(max_examples=6, deadline=None)
@given(size=st.integers(32, 96), index=st.integers(0, 40), seed=st.integers(0, 2**32))
def test_any_size(size: int, index: int, seed: int) -> None:
    chip = simulate_chip(seed, index, size)
    assert chip.label.shape == (size, size)
    assert all(image.shape[1:] == (size, size) for image in chip.images.values())


@given(count=st.integers(3, 300), seed=st.integers(0, 100))
def test_splits_are_a_partition(count: int, seed: int) -> None:
    splits = make_splits(count, seed)
    names = [name for part in splits.values() for name in part]
    assert len(names) == len(set(names)) == count
    assert all(splits.values())
    assert len(splits["valid"]) == len(splits["test"]) == max(1, round(0.15 * count))


def test_split_lists_in_the_repository_are_those_of_the_defaults() -> None:
    folder = Path(__file__).parents[2] / "data_splits" / "simulated"
    for split, names in make_splits(60, 0).items():
        assert tuple((folder / f"flood_{split}_data.txt").read_text().split()) == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 31}, "at least 32"),
        ({"chips": 2}, "at least 3"),
        ({"seed": -1}, "whole number from 0"),
    ],
)
def test_refuses_arguments(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        simulate(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_simulate_chip_refuses_arguments() -> None:
    with pytest.raises(ConfigError, match="at least 32"):
        simulate_chip(0, 0, 16)
    with pytest.raises(ConfigError, match="negative"):
        simulate_chip(-1, 0, 32)


def test_refuses_a_folder_with_other_parameters(dataset: SimulatedDataset) -> None:
    before = _bytes(dataset.root)
    with pytest.raises(ConfigError, match=r"'seed': 3.*'seed': 4"):
        simulate(dataset.root, chips=4, size=64, seed=4)
    assert _bytes(dataset.root) == before


def test_refuses_a_folder_with_other_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(ConfigError, match="not simulated"):
        simulate(tmp_path, chips=3, size=32)
    (tmp_path / "simulation.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        simulate(tmp_path, chips=3, size=32)
    with pytest.raises(ConfigError, match="is a file"):
        simulate(tmp_path / "simulation.json", chips=3, size=32)


def test_interrupted_run_leaves_whole_files_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _bytes(simulate(tmp_path / "whole", chips=3, size=32).root)
    root = tmp_path / "broken"

    def stop(done: int, total: int) -> None:
        # The next file fails when it is complete but not yet renamed.
        monkeypatch.setattr("terramind_plugin.system.files.os.replace", fail)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with pytest.raises(DataError, match="disk full"):
        simulate(root, chips=3, size=32, on_chip=stop)
    partial = _bytes(root)
    assert 0 < len(partial) < len(whole)
    assert all(whole[name] == content for name, content in partial.items())
    monkeypatch.undo()
    seen: list[tuple[int, int]] = []
    simulate(root, chips=3, size=32, on_chip=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 3), (3, 3)]  # the first was complete
    assert _bytes(root) == whole
    assert json.loads((root / "simulation.json").read_text())["size"] == 32
