"""Time series: orders of bands and dates, one-date modalities, files of dates, missing dates."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from terratorch.models.utils import TemporalWrapper

from terramind_plugin.data.dates import dates_taken
from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import MODALITIES

RGB = {"S2L1C": ["BLUE", "GREEN", "RED"]}
SIDE = 16


def _shots(dates: int, bands: int) -> np.ndarray:
    """Return values [dates, bands]: 100 * date + band."""
    return 100.0 * np.arange(1, dates + 1)[:, None] + np.arange(bands)


@pytest.fixture
def root(tmp_path: Path, write: Any) -> Path:
    """Write chips a to d: three dates of S2L1C in RGB, two polarisations on each, one DEM, a label."""
    for name in "abcd":
        for kind, values in (("S2L1C", _shots(3, 3)), ("S1GRD", -_shots(3, 2)), ("DEM", np.full((1, 1), 50.0))):
            image = np.tile(values.reshape(-1, 1, 1), (1, SIDE, SIDE)).astype(np.float32)
            write(tmp_path / kind / f"{name}.tif", image)
        write(tmp_path / "mask" / f"{name}.tif", np.zeros((1, SIDE, SIDE), np.int16))
    return tmp_path


@pytest.fixture
def make(root: Path, make_module: Any) -> Any:
    """Return a function that makes a data module on the chips, set up for validation."""

    def build(modalities: list[str], model: Any = None, **changes: Any) -> Any:
        module = make_module(
            root,
            modalities=modalities,
            **{
                "data_root": {name: str(root / name) for name in modalities},
                "image_grep": "*.tif",
                "label_grep": "*.tif",
                "dataset_bands": RGB,
                "expand_temporal_dimension": True,
                **changes,
            },
        )
        if model is not None:
            task = torch.nn.Module()
            task.model, task.hparams = model, {}
            module.trainer = SimpleNamespace(lightning_module=task, world_size=1, training=False)
        module.setup("validate")
        return module

    return build


def _values(image: torch.Tensor) -> np.ndarray:
    """Return [dates, bands] of a constant series."""
    return image[..., 0, 0].numpy().T


def test_dates_of_a_band_together(root: Path, make: Any, write: Any) -> None:
    every = np.tile(_shots(3, 3).T.reshape(-1, 1, 1), (1, SIDE, SIDE)).astype(np.float32)
    radar = np.tile(-_shots(3, 2).T.reshape(-1, 1, 1), (1, SIDE, SIDE)).astype(np.float32)
    plain = make(["S2L1C", "S1GRD"]).val_dataset[0]["image"]
    write(root / "S2L1C" / "a.tif", every)
    only = make(["S2L1C", "S1GRD"], temporal_channel_major=["S2L1C"]).val_dataset[0]["image"]
    write(root / "S1GRD" / "a.tif", radar)
    both = make(["S2L1C", "S1GRD"], temporal_channel_major=True).val_dataset[0]["image"]
    for name, values in (("S2L1C", _shots(3, 3)), ("S1GRD", -_shots(3, 2))):
        for images in (plain, only, both):
            assert np.array_equal(_values(images[name]), values)
    turned = make(["S2L1C"], temporal_channel_major=True, output_bands={"S2L1C": ["RED", "BLUE"]})
    assert np.array_equal(_values(turned.val_dataset[0]["image"]["S2L1C"]), _shots(3, 3)[:, [2, 0]])


def test_terratorchs_data_set_reads_the_same(root: Path, make: Any, write: Any) -> None:
    from terratorch.datasets import GenericMultimodalDataset

    for by_band in (False, True):
        values = np.random.default_rng(0).normal(size=(9, SIDE, SIDE)).astype(np.float32)
        write(root / "S2L1C" / "a.tif", values)
        theirs = GenericMultimodalDataset(
            {"S2L1C": str(root / "S2L1C")},
            image_grep={"S2L1C": "*.tif"},
            image_modalities=["S2L1C"],
            dataset_bands=RGB,
            output_bands={"S2L1C": ["RED", "GREEN"]},  # without a selection it leaves the dates in the bands
            expand_temporal_dimension=True,
            temporal_channel_major=by_band,
            channel_position=-4,  # with its default it takes dates for bands
        )
        ours = make(["S2L1C"], temporal_channel_major=by_band, output_bands={"S2L1C": ["RED", "GREEN"]})
        assert torch.equal(ours.val_dataset[0]["image"]["S2L1C"], theirs[0]["image"]["S2L1C"])


def test_one_date_is_repeated(make: Any) -> None:
    module = make(["DEM", "S2L1C"])
    image = next(iter(module.val_dataloader()))["image"]
    assert image["DEM"].shape == (2, 1, 3, SIDE, SIDE)
    assert (image["DEM"] == 50).all()
    mean, std = MODALITIES["DEM"].mean[0], MODALITIES["DEM"].std[0]
    assert torch.allclose(module.aug({"image": dict(image)})["image"]["DEM"], torch.tensor((50 - mean) / std))


def test_a_file_for_each_date(root: Path, make: Any, write: Any) -> None:
    for date, values in enumerate(_shots(2, 3), start=1):
        for name in "abcd":
            image = np.tile(values.reshape(-1, 1, 1), (1, SIDE, SIDE)).astype(np.float32)
            write(root / "pairs" / f"{name}_{date}.tif", image)
            write(root / f"at{date}" / f"{name}.tif", image)
    folder = str(root / "pairs")
    by_name = make(["S2L1C", "DEM"], image_grep={"S2L1C": ["*_1.tif", "*_2.tif"], "DEM": "*.tif"},
                   data_root={"S2L1C": folder, "DEM": str(root / "DEM")}, offsets={"S2L1C": 1000.0},
                   constant_scale={"S2L1C": 2.0})  # fmt: skip
    batch = next(iter(by_name.val_dataloader()))
    assert batch["image"]["S2L1C"].shape == (2, 3, 2, SIDE, SIDE)
    assert np.array_equal(_values(batch["image"]["S2L1C"][1]), 2 * (_shots(2, 3) + 1000))
    assert batch["image"]["DEM"].shape == (2, 1, 2, SIDE, SIDE)
    assert list(batch["filename"]["S2L1C"]) == [f"{folder}/a_1.tif", f"{folder}/b_1.tif"]
    assert f"{folder}/a_2.tif" in batch["filename"]["S2L1C@2"]
    assert by_name.aug(batch)["image"]["S2L1C"].shape == (2, 3, 2, SIDE, SIDE)
    folders = make(["S2L1C"], data_root={"S2L1C": [str(root / "at2"), str(root / "at1")]})
    assert np.array_equal(_values(folders.val_dataset[0]["image"]["S2L1C"]), _shots(2, 3)[::-1])
    both = {"S2L1C": [str(root / "at1"), str(root / "at2")], "DEM": str(root / "DEM")}
    joined = make(["S2L1C", "DEM"], data_root=both, concat_bands=True)
    batch = next(iter(joined.val_dataloader()))
    assert batch["image"].shape == (2, 4, 2, SIDE, SIDE)
    band = MODALITIES["S2L1C"].bands[1]
    assert torch.allclose(joined.aug(batch)["image"][0, 0, 1], torch.tensor((200 - band.mean) / band.std))
    write(root / "at2" / "a.tif", np.ones((3, 24, SIDE), np.float32))
    with pytest.raises(
        DataError, match=rf"dates of S2L1C differ in size: {root}/at1/a.tif \[16, 16\], {root}/at2/a.tif"
    ):
        make(["S2L1C"], data_root={"S2L1C": [str(root / "at1"), str(root / "at2")]}).val_dataset[0]
    late, early = (write(root / f"x_{date}" / f"a_{date}.tif", np.ones((3, 16, 16))) for date in (20240301, 20240201))
    turned = {"data_root": {"S2L1C": [str(late.parent), str(early.parent)]}, "label_data_root": str(root / "x")}
    write(root / "x" / "a.tif", np.zeros((1, 16, 16), np.int16))
    names = {"image_grep": {"S2L1C": ["*_20240301.tif", "*_20240201.tif"]}}
    with pytest.raises(DataError, match=r"a_20240201\.tif comes after a_20240301\.tif, but its date is earlier"):
        make(["S2L1C"], **turned, **names).val_dataset[0]
    write(root / "at2" / "a.tif", np.ones((3, SIDE, SIDE), np.float32))
    (root / "at2" / "b.tif").unlink()
    (root / "list.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=f"b: no file for S2L1C@2 at {root}/at2/b"):
        make(["S2L1C"], data_root={"S2L1C": [str(root / "at1"), str(root / "at2")]}, val_split=str(root / "list.txt"))
    some = {"allow_missing_modalities": True, "val_split": str(root / "list.txt")}
    lacking = make(["S2L1C", "DEM"], data_root=both, **some)
    batch = next(iter(lacking.val_dataloader()))
    assert batch["modality_mask"]["S2L1C"].tolist() == [[True, True], [True, False]]
    assert batch["modality_mask"]["DEM"].all()
    assert batch["image"]["S2L1C"][1, :, 1].isnan().all()


def test_missing_dates(root: Path, make: Any, write: Any, caplog: Any) -> None:
    image = np.tile(_shots(3, 3).reshape(-1, 1, 1), (1, SIDE, SIDE)).astype(np.float32)
    image[3:6] = np.nan
    image[0, 0, 0] = np.nan
    write(root / "S2L1C" / "a.tif", image)
    (root / "DEM" / "b.tif").unlink()
    (root / "list.txt").write_text("a\nb\n")
    some = {"allow_missing_modalities": True, "val_split": str(root / "list.txt")}
    batch = next(iter(make(["S2L1C", "DEM"], **some).val_dataloader()))
    assert batch["modality_mask"]["S2L1C"].tolist() == [[True, False, True], [True, True, True]]
    assert batch["modality_mask"]["DEM"].tolist() == [[True] * 3, [False] * 3]
    series = batch["image"]["S2L1C"][0]
    assert series[:, 1].isnan().all()
    assert not series[:, [0, 2]].isnan().any()
    assert series[0, 0, 0, 0] == np.float32(MODALITIES["S2L1C"].mean[1])
    filled = make(["S2L1C"]).val_dataset[0]["image"]["S2L1C"][:, 1, 0, 0]
    assert torch.allclose(filled, torch.tensor(MODALITIES["S2L1C"].mean[1:4]))
    assert f"{root}/S2L1C/a.tif: no pixel of date 2 of S2L1C has data" in caplog.text


def test_terratorchs_flattening_transforms_are_left_out(make: Any) -> None:
    transforms = [
        {"class_path": "FlattenTemporalIntoChannels"},
        {"class_path": "ToTensorV2"},
        {"class_path": "UnflattenTemporalFromChannels", "init_args": {"n_timesteps": 3}},
    ]
    plain = make(["S2L1C"]).val_dataset[0]["image"]["S2L1C"]
    assert torch.equal(make(["S2L1C"], val_transform=transforms).val_dataset[0]["image"]["S2L1C"], plain)


def test_other_numbers_of_dates_are_named(root: Path, make: Any, write: Any) -> None:
    write(root / "S1GRD" / "a.tif", np.zeros((4, SIDE, SIDE), np.float32))
    with pytest.raises(DataError, match=rf"S2L1C/a.tif has 3, {root}/S1GRD/a.tif has 2\. .* or one date"):
        make(["S2L1C", "S1GRD"]).val_dataset[0]
    write(root / "S2L1C" / "b.tif", np.ones((6, SIDE, SIDE), np.float32))
    with pytest.raises(DataError, match=rf"dates: {root}/S2L1C/a.tif has 3, {root}/S2L1C/b.tif has 2"):
        next(iter(make(["DEM", "S2L1C"]).val_dataloader()))
    encoder = torch.nn.Conv2d(3, 4, 1)
    encoder.out_channels = [4, 4]
    for wrapper, reason in (
        (TemporalWrapper(encoder, "diff"), "expected 2 for temporal_pooling: diff"),
        (TemporalWrapper(encoder, "concat", n_timestamps=5), "expected 5 for temporal_pooling: concat with"),
        (TemporalWrapper(encoder, subset_lengths=[1, 3]), "expected 4 for temporal_subset_lengths: [1, 3]"),
    ):
        with pytest.raises(DataError, match=re.escape(f"{root}/S2L1C/a.tif: S2L1C has 3 dates, {reason}")):
            make(["S2L1C", "DEM"], wrapper).val_dataset[0]
    assert dates_taken(TemporalWrapper(encoder, "mean")) is None
    assert dates_taken(None) is None
    assert make(["S2L1C"], TemporalWrapper(encoder, "concat", n_timestamps=3)).val_dataset[0] is not None


def test_band_names_of_dates(root: Path, make: Any) -> None:
    def describe(names: list[str]) -> None:
        with rasterio.open(root / "S2L1C" / "a.tif", "r+") as file:
            file.descriptions = names

    describe(["B02", "B03", "B04"] * 3)
    assert make(["S2L1C"]).val_dataset[0] is not None
    with pytest.raises(DataError, match=r"S2L1C/a\.tif .* all bands of a date are together\. Remove S2L1C from"):
        make(["S2L1C"], temporal_channel_major=True).val_dataset[0]
    describe(["B02"] * 3 + ["B03"] * 3 + ["B04"] * 3)
    assert make(["S2L1C"], temporal_channel_major=True).val_dataset[0] is not None
    with pytest.raises(DataError, match=r"all dates of a band are together\. Set temporal_channel_major: true"):
        make(["S2L1C"]).val_dataset[0]
    describe(["B02", "B03", "B04"] * 2 + ["B04", "B03", "B02"])
    with pytest.raises(DataError, match=r"a\.tif describes its bands as B04, B03, B02, but dataset_bands"):
        make(["S2L1C"]).val_dataset[0]
