"""What the data module promises at run time, clause by clause."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.modalities import MODALITIES


@pytest.fixture
def root(make_chips: Callable[..., Path]) -> Path:
    return make_chips()


def _raw(path: Path) -> np.ndarray:
    with rasterio.open(path) as raster:
        return raster.read().astype(np.float32)


# Names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"means": {"S1grd": [-10, -20]}}, "means has an entry 'S1grd'.*Did you mean 'S1GRD'"),
        ({"stds": {"sen1grd": [1, 1]}}, "stds has an entry 'sen1grd'.*Did you mean 'S1GRD'"),
        (
            {"image_grep": {"S1": "*_S1Hand.tif", "S2L1C": "*_S2Hand.tif"}},
            "image_grep has an entry 'S1'.*Did you mean 'S1GRD'",
        ),
        ({"offsets": {"S2LC": -1000}}, "offsets has an entry 'S2LC'.*Did you mean 'S2L1C'"),
        ({"constant_scale": {"S2-L1C": 10000}}, "constant_scale has an entry 'S2-L1C'.*'S2L1C'"),
        ({"output_bands": {"S1GRDD": ["VV"]}}, "output_bands has an entry 'S1GRDD'.*'S1GRD'"),
        ({"test_transform": {"S2LIC": [{"class_path": "ToTensorV2"}]}}, "test_transform has an entry 'S2LIC'"),
        (
            {"allow_missing_modalities": True, "data_root": {"S2L1C": ".", "S1GDR": "."}},
            "data_root has an entry 'S1GDR'",
        ),
    ],
)
def test_names_are_matched_exactly(root: Path, make_module: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_module(root, **changes)


def test_entries_of_modalities_that_are_not_in_use_may_stay(root: Path, make_module: Any) -> None:
    module = make_module(root, modalities=["S2L1C"], means={"S2L2A": [0.0], "S1GRD": [0.0], "THERMAL": [1.0]})
    assert module.band_means["S2L1C"] == list(MODALITIES["S2L1C"].mean)


def test_class_names_and_num_classes(root: Path, make_module: Any) -> None:
    with pytest.raises(ConfigError, match="class_names has 3 names, but num_classes is 2"):
        make_module(root, class_names=["a", "b", "c"])


# Offsets


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_declared_offset_is_added_before_all_else(root: Path, make_module: Any, write: Any, scale: float) -> None:
    values = np.full((13, 32, 32), 1500, np.uint16)
    values[0, :4] = 500
    values[1, 0, 0] = 0
    path = write(root / "S2L1C" / "a_S2.tif", values, nodata=0)
    module = make_module(root, offsets={"S2L1C": -1000}, constant_scale={"S2L1C": scale, "S1GRD": 1.0})
    module.setup("validate")
    image = module.val_dataset[0]["image"]["S2L1C"].numpy()
    known = _raw(path) != 0
    assert np.array_equal(image[known], ((_raw(path) - 1000) * scale)[known])
    assert image[0, 0, 0] == -500 * scale  # an unsigned number does not become a large one
    assert image[1, 0, 0] == pytest.approx(MODALITIES["S2L1C"].mean[1])
    radar = module.val_dataset[0]["image"]["S1GRD"].numpy()
    assert np.array_equal(radar, _raw(root / "S1GRD" / "a_S1.tif"))


def test_statistics_are_of_what_the_model_gets(root: Path, make_module: Any) -> None:
    from terramind_plugin.data.datamodule import band_statistics

    plain = band_statistics(make_module(root))
    moved = band_statistics(make_module(root, offsets={"S2L1C": -1000}))
    assert np.allclose(np.array(moved["S2L1C"].mean) + 1000, plain["S2L1C"].mean, rtol=1e-4)
    assert moved["S1GRD"] == plain["S1GRD"]


def test_a_scene_is_standardised_as_chips_are(root: Path, make_module: Any, write: Any) -> None:
    from terramind_plugin.inference.segmentation import read_data_module
    from terramind_plugin.raster.reader import Source

    values = np.random.default_rng(0).integers(1000, 5000, (13, 32, 32)).astype(np.uint16)
    values[:, :3] = 0
    path = write(root / "S2L1C" / "a_S2.tif", values, nodata=0)
    for changes in ({}, {"no_data_replace": 1200.0}, {"constant_scale": {"S2L1C": 0.5}, "no_data_replace": 1200.0}):
        module = make_module(root, modalities=["S2L1C"], offsets={"S2L1C": -1000}, **changes)
        module.setup("validate")
        batch = next(iter(module.val_dataloader()))
        expected = module.aug(batch)["image"]["S2L1C"][0].numpy()
        files, scales = read_data_module(module, SimpleNamespace(hparams={}))  # type: ignore[arg-type]
        scene = Source(path, files["S2L1C"]).read(0, 0, 32, 32).values
        import torch

        np.testing.assert_allclose(scales["S2L1C"](torch.from_numpy(scene)).numpy(), expected, atol=1e-4)


# Files


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_file_names_itself(root: Path, make_module: Any, workers: int) -> None:
    path = root / "S1GRD" / "c_S1.tif"
    path.write_bytes(path.read_bytes()[:-6000])
    module = make_module(root, num_workers=workers)
    module.setup("validate")
    with pytest.raises(DataError, match=re.escape(str(path))):
        list(module.val_dataloader())


def test_the_batch_says_which_sample_lacks_what(root: Path, make_module: Any) -> None:
    (root / "S1GRD" / "b_S1.tif").unlink()
    split = root / "list.txt"
    split.write_text("a\nb\n")
    with pytest.raises(DataError, match="b: no file for S1GRD"):
        make_module(root, val_split=str(split)).setup("validate")
    module = make_module(root, val_split=str(split), allow_missing_modalities=True)
    module.setup("validate")
    batch = next(iter(module.val_dataloader()))
    assert {name: mask.tolist() for name, mask in batch["modality_mask"].items()} == {
        "S2L1C": [True, True],
        "S1GRD": [True, False],
    }


# Classes


def test_classes_travel_with_the_checkpoint(root: Path, make_module: Any, caplog: pytest.LogCaptureFixture) -> None:
    state = make_module(root, class_names=["Land", "Water"]).state_dict()
    without = make_module(root)
    without.load_state_dict(state)
    assert without.class_names == ["Land", "Water"]
    assert caplog.text == ""
    with pytest.raises(ConfigError, match=r"\['Water', 'Land'\] in the configuration, but \['Land', 'Water'\] in the"):
        make_module(root, class_names=["Water", "Land"]).load_state_dict(state)
    make_module(root, means={"S1GRD": [-9, -20]}).load_state_dict(state)
    assert "means of S1GRD are [-9.0, -20.0] here" in caplog.text
