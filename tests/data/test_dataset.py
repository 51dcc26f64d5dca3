"""Reading files: bands, types, missing pixels, missing modalities, dates and labels."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.modalities import MODALITIES


@pytest.fixture
def root(make_chips: Callable[..., Path]) -> Path:
    return make_chips()


@pytest.fixture
def first(make_module: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Return the first sample of a data module."""

    def read(root: Path, **changes: Any) -> dict[str, Any]:
        module = make_module(root, **changes)
        module.setup("validate")
        return module.val_dataset[0]

    return read


# Values and types


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_any_type_becomes_float32(root: Path, write: Any, first: Any, dtype: str) -> None:
    values = np.arange(13 * 32 * 32).reshape(13, 32, 32) % 250
    write(root / "S2L1C" / "a_S2.tif", values.astype(dtype))
    image = first(root)["image"]["S2L1C"]
    assert image.dtype == torch.float32
    assert np.array_equal(image.numpy(), values)


def test_large_uint16_values_are_kept(root: Path, write: Any, first: Any) -> None:
    write(root / "S2L1C" / "a_S2.tif", np.full((13, 32, 32), 65535, np.uint16))
    assert (first(root)["image"]["S2L1C"] == 65535).all()


def test_files_of_different_types_make_one_batch(root: Path, write: Any, make_module: Any) -> None:
    for name, dtype in zip("abcd", ("uint16", "int16", "float32", "float64"), strict=True):
        write(root / "S2L1C" / f"{name}_S2.tif", np.full((13, 32, 32), 500, dtype))
        write(root / "mask" / f"{name}_label.tif", np.ones((1, 32, 32), dtype))
    module = make_module(root, batch_size=4)
    module.setup("validate")
    (batch,) = list(module.val_dataloader())
    assert (batch["image"]["S2L1C"] == 500).all()
    assert batch["mask"].dtype == torch.int64


def test_bands_are_selected_in_order(root: Path, write: Any, first: Any) -> None:
    write(root / "S2L1C" / "a_S2.tif", np.arange(13, dtype=np.uint16)[:, None, None] + np.zeros((1, 32, 32), np.uint16))
    names = [band.common_name for band in MODALITIES["S2L1C"].bands]
    image = first(root, dataset_bands={"S2L1C": names}, output_bands={"S2L1C": ["RED", "GREEN", "SWIR_2"]})["image"]
    assert image["S2L1C"][:, 0, 0].tolist() == [3, 2, 12]


def test_constant_scale_comes_before_the_statistics(root: Path, write: Any, first: Any) -> None:
    image = np.full((13, 32, 32), 0.25, np.float32)
    image[4, 5, 6] = np.nan
    write(root / "S2L1C" / "a_S2.tif", image)
    result = first(root, constant_scale={"S2L1C": 10000})["image"]["S2L1C"]
    assert result[0, 0, 0] == 2500
    assert torch.isclose(result[4, 5, 6], torch.tensor(MODALITIES["S2L1C"].mean[4]))


def test_a_wrong_number_of_bands_is_explained(root: Path, write: Any, first: Any) -> None:
    path = write(root / "S2L1C" / "a_S2.tif", np.ones((12, 32, 32), np.uint16))
    with pytest.raises(DataError, match=rf"{path} has 12 bands, expected 13 for S2L1C.*dataset_bands"):
        first(root)


@pytest.mark.parametrize("kind", ["S2L1C", "mask"])
def test_a_damaged_file_is_named(root: Path, first: Any, kind: str) -> None:
    path = root / kind / {"S2L1C": "a_S2.tif", "mask": "a_label.tif"}[kind]
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(DataError, match=f"{path} cannot be read as {kind}"):
        first(root)


# Pixels without data


def test_nan_pixels_take_the_mean_of_their_band(root: Path, write: Any, first: Any) -> None:
    image = np.full((2, 32, 32), -5, np.float32)
    image[1, :4] = np.nan
    write(root / "S1GRD" / "a_S1.tif", image)
    result = first(root)["image"]["S1GRD"]
    assert torch.allclose(result[1, :4], torch.tensor(MODALITIES["S1GRD"].mean[1]))
    assert (result[0] == -5).all()
    assert (result[1, 4:] == -5).all()


def test_a_nodata_tag_in_an_integer_file(root: Path, write: Any, first: Any) -> None:
    image = np.full((13, 32, 32), 700, np.uint16)
    image[2, 0, 0] = 0  # dark water in one band only
    image[:, 1, 1] = 0
    write(root / "S2L1C" / "a_S2.tif", image, nodata=0)
    result = first(root)["image"]["S2L1C"]
    mean = torch.tensor(MODALITIES["S2L1C"].mean)
    assert torch.allclose(result[:, 1, 1], mean)
    assert result[2, 0, 0] == mean[2]
    assert (result[[0, 1, 3], 0, 0] == 700).all()


def test_selected_bands_take_their_own_mean(root: Path, write: Any, first: Any) -> None:
    write(root / "S1GRD" / "a_S1.tif", np.full((2, 32, 32), np.nan, np.float32))
    image = first(root, dataset_bands={"S1GRD": ["VV", "VH"]}, output_bands={"S1GRD": ["VH"]})["image"]["S1GRD"]
    assert image.shape == (1, 32, 32)
    assert torch.allclose(image, torch.tensor(MODALITIES["S1GRD"].mean[1]))


def test_a_chosen_fill_value(root: Path, write: Any, first: Any) -> None:
    image = np.full((2, 32, 32), -5, np.float32)
    image[0, 0, 0] = np.nan
    write(root / "S1GRD" / "a_S1.tif", image)
    assert first(root, no_data_replace=-20)["image"]["S1GRD"][0, 0, 0] == -20


def test_an_empty_chip_takes_the_mean_and_is_reported_once(
    root: Path, write: Any, make_module: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(root / "S1GRD" / "a_S1.tif", np.full((2, 32, 32), np.nan, np.float32))
    module = make_module(root)
    module.setup("validate")
    with caplog.at_level(logging.WARNING, logger="terramind_plugin"):
        for _ in range(2):
            batch = module.aug(next(iter(module.val_dataloader())))
    assert batch["image"]["S1GRD"][0].abs().max() < 1e-5  # the mean is 0 after standardisation
    assert caplog.text.count(f"{path}: no pixel of S1GRD has data") == 1


# Modalities that are missing


def test_missing_files_and_empty_chips_are_marked(root: Path, write: Any, make_module: Any) -> None:
    (root / "S1GRD" / "a_S1.tif").unlink()
    (root / "S2L1C" / "b_S2.tif").unlink()
    write(root / "S1GRD" / "c_S1.tif", np.full((2, 32, 32), np.nan, np.float32))
    module = make_module(root, allow_missing_modalities=True, batch_size=4)
    module.setup("fit")
    (batch,) = list(module.val_dataloader())
    by_name = {Path(path).name[0]: i for i, path in enumerate(batch["filename"]["mask"])}
    a, b, c, d = (by_name[name] for name in "abcd")
    mask = batch["modality_mask"]
    assert [mask["S1GRD"][i].item() for i in (a, b, c, d)] == [False, True, False, True]
    assert [mask["S2L1C"][i].item() for i in (a, b, c, d)] == [True, False, True, True]
    assert batch["image"]["S1GRD"].shape == (4, 2, 32, 32)
    assert batch["image"]["S1GRD"][a].isnan().all()
    assert batch["image"]["S2L1C"][b].isnan().all()
    assert not batch["image"]["S1GRD"][d].isnan().any()
    assert Path(batch["filename"]["S1GRD"][a]).name == "a_S2.tif"
    assert Path(batch["filename"]["S2L1C"][b]).name == "b_S1.tif"
    assert list(batch["image"]) == ["S2L1C", "S1GRD"]
    assert module.train_dataloader().batch_size == 4


def test_single_missing_pixels_are_still_filled(root: Path, write: Any, first: Any) -> None:
    image = np.full((2, 32, 32), -5, np.float32)
    image[:, 0] = np.nan
    write(root / "S1GRD" / "a_S1.tif", image)
    sample = first(root, allow_missing_modalities=True)
    assert not sample["image"]["S1GRD"].isnan().any()
    assert sample["modality_mask"]["S1GRD"].item() is True


def test_a_folder_may_hold_no_file_of_the_split_or_be_left_out(root: Path, make_module: Any, tmp_path: Path) -> None:
    (root / "empty").mkdir()
    split = tmp_path / "split.txt"
    split.write_text("a\nb\n")
    s2 = str(root / "S2L1C")
    for roots in ({"S2L1C": s2, "S1GRD": str(root / "empty")}, {"S2L1C": s2}):
        module = make_module(root, allow_missing_modalities=True, test_data_root=roots, test_split=str(split))
        module.setup("test")
        (batch,) = list(module.test_dataloader())
        assert batch["image"]["S1GRD"].shape == (2, 2, 32, 32)
        assert not batch["modality_mask"]["S1GRD"].any()
        assert batch["modality_mask"]["S2L1C"].all()


def test_missing_and_transforms(root: Path, make_module: Any) -> None:
    (root / "S2L1C" / "a_S2.tif").unlink()
    crop = [{"class_path": "CenterCrop", "init_args": {"height": 16, "width": 24}}, {"class_path": "ToTensorV2"}]
    module = make_module(root, allow_missing_modalities=True, val_transform=crop, batch_size=4)
    module.setup("validate")
    (batch,) = list(module.val_dataloader())
    assert batch["image"]["S2L1C"].shape == (4, 13, 16, 24)


# Stacked bands


def test_concat_gives_one_image(root: Path, make_module: Any, write: Any) -> None:
    write(root / "S1GRD" / "a_S1.tif", np.full((2, 32, 32), np.nan, np.float32))
    module = make_module(root, concat_bands=True)
    module.setup("validate")
    batch = next(iter(module.val_dataloader()))
    assert batch["image"].shape == (2, 15, 32, 32)
    assert torch.allclose(batch["image"][0, 13, 0, 0], torch.tensor(MODALITIES["S1GRD"].mean[0]))
    assert module.aug(batch)["image"].shape == (2, 15, 32, 32)


def test_concat_names_files_of_another_size(root: Path, make_module: Any, write: Any) -> None:
    for kind, bands, name in (("S2L1C", 13, "b_S2"), ("S1GRD", 2, "b_S1"), ("mask", 1, "b_label")):
        write(root / kind / f"{name}.tif", np.zeros((bands, 48, 40), np.float32))
    module = make_module(root, concat_bands=True, check_stackability=False)
    module.setup("validate")
    with pytest.raises(DataError, match=r"b_S2.*48, 40"):
        list(module.val_dataloader())


# Dates

SIX = ["BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2"]


@pytest.fixture
def dated(root: Path, write: Any) -> np.ndarray:
    """Write three dates of six bands over chip a; value = 100 * date + band, plus a gradient along x."""
    values = 100 * np.arange(1, 4)[:, None] + np.arange(6)
    image = values.reshape(18, 1, 1) + np.linspace(0, 0.5, 32)[None, None, :] + np.zeros((1, 32, 1))
    for name in "abcd":
        write(root / "S2L1C" / f"{name}_S2.tif", image.astype(np.float32))
    return values


def _temporal(**changes: Any) -> dict[str, Any]:
    return {
        "modalities": ["S2L1C"],
        "dataset_bands": {"S2L1C": SIX},
        "expand_temporal_dimension": True,
        **changes,
    }


def test_dates_become_a_dimension(root: Path, dated: np.ndarray, make_module: Any) -> None:
    module = make_module(root, **_temporal())
    module.setup("validate")
    batch = next(iter(module.val_dataloader()))
    image = batch["image"]["S2L1C"]
    assert image.shape == (2, 6, 3, 32, 32)
    assert np.array_equal(image[0, :, :, 0, 0].numpy(), dated.T)
    standardised = module.aug(batch)["image"]["S2L1C"]
    band = MODALITIES["S2L1C"].bands[1]  # BLUE
    assert torch.allclose(standardised[0, 0, 2, 0, 0], torch.tensor((300 - band.mean) / band.std))


def test_dates_and_selected_bands(root: Path, dated: np.ndarray, make_module: Any) -> None:
    module = make_module(root, **_temporal(output_bands={"S2L1C": ["RED", "BLUE"]}))
    module.setup("validate")
    image = next(iter(module.val_dataloader()))["image"]["S2L1C"]
    assert image.shape == (2, 2, 3, 32, 32)
    assert np.array_equal(image[0, :, :, 0, 0].numpy(), dated[:, [2, 0]].T)
    assert module.band_means["S2L1C"] == [MODALITIES["S2L1C"].mean[3], MODALITIES["S2L1C"].mean[1]]


def test_all_dates_are_turned_alike(root: Path, dated: np.ndarray, make_module: Any, write: Any) -> None:
    write(
        root / "mask" / "a_label.tif",
        (np.arange(32)[None, None, :] > 15).astype(np.int16) + np.zeros((1, 32, 32), np.int16),
    )
    turns = [{"class_path": "albumentations.D4"}, {"class_path": "ToTensorV2"}]
    module = make_module(root, **_temporal(train_transform=turns))
    module.setup("fit")
    seen = set()
    for _ in range(24):
        sample = module.train_dataset[0]
        image = sample["image"]["S2L1C"]
        assert image.shape == (6, 3, 32, 32)
        assert torch.allclose(image - image[:, :, :1, :1], (image - image[:, :, :1, :1])[:1, :1], atol=1e-3)
        offsets = image.amin(dim=(2, 3))
        assert np.allclose(offsets.numpy(), dated.T, atol=1e-3)
        east = image[0, 0] - image[0, 0].min() > 0.25
        assert torch.equal(east, sample["mask"] == 1)  # the label turns with the image
        seen.add(tuple(east[0].tolist()) + tuple(east[:, 0].tolist()))
    assert len(seen) > 2


def test_missing_pixels_of_a_date(root: Path, dated: np.ndarray, make_module: Any, write: Any) -> None:
    image = np.ones((18, 32, 32), np.float32)
    image[6 + 2] = np.nan  # RED of the second date
    write(root / "S2L1C" / "a_S2.tif", image)
    module = make_module(root, **_temporal())
    module.setup("validate")
    result = module.val_dataset[0]["image"]["S2L1C"]
    assert torch.allclose(result[2, 1], torch.tensor(MODALITIES["S2L1C"].mean[3]))
    assert (result.flatten(0, 1)[[i for i in range(18) if i != 2 * 3 + 1]] == 1).all()


def test_a_number_of_bands_that_is_no_multiple(root: Path, dated: np.ndarray, make_module: Any, write: Any) -> None:
    path = write(root / "S2L1C" / "a_S2.tif", np.ones((17, 32, 32), np.float32))
    module = make_module(root, **_temporal())
    module.setup("validate")
    with pytest.raises(DataError, match=f"{path} has 17 bands, which is not a multiple of the 6"):
        module.val_dataset[0]


# Labels


def _attach(module: Any, **hparams: Any) -> Any:
    """Let a data module belong to a trainer with a task of these hyper-parameters."""
    module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(hparams=hparams), world_size=1, training=False)
    return module


def test_a_label_out_of_range_is_named(root: Path, write: Any, make_module: Any) -> None:
    label = np.zeros((1, 32, 32), np.uint8)
    label[0, :2] = 255
    path = write(root / "mask" / "a_label.tif", label)
    module = _attach(make_module(root), ignore_index=-1)
    module.setup("validate")
    with pytest.raises(DataError, match=rf"{path} holds label values 255 \(64 pixels\); expected 0 to 1 or"):
        module.val_dataset[0]
    module = _attach(make_module(root), ignore_index=255)
    module.setup("validate")
    assert (module.val_dataset[0]["mask"][:2] == 255).all()


def test_labels_without_data_become_the_ignored_value(root: Path, write: Any, make_module: Any) -> None:
    label = np.ones((1, 32, 32), np.uint8)
    label[0, :2] = 255
    write(root / "mask" / "a_label.tif", label, nodata=255)
    module = _attach(make_module(root), ignore_index=-1)
    module.setup("validate")
    mask = module.val_dataset[0]["mask"]
    assert (mask[:2] == -1).all()
    assert (mask[2:] == 1).all()


def test_a_nodata_tag_that_is_a_class_does_not_remove_the_class(
    root: Path, write: Any, make_module: Any, caplog: pytest.LogCaptureFixture
) -> None:
    label = np.ones((1, 32, 32), np.uint8)
    label[0, :2] = 0
    path = write(root / "mask" / "a_label.tif", label, nodata=0)
    module = make_module(root)
    module.setup("validate")
    with caplog.at_level(logging.WARNING, logger="terramind_plugin"):
        assert (module.val_dataset[0]["mask"][:2] == 0).all()
    assert f"{path}: its nodata value 0 is also the id of a class" in caplog.text


@pytest.mark.parametrize(("first_class", "ignored"), [(0, -1), (1, 255)])
def test_pixels_without_data_are_ignored_on_request(
    root: Path, write: Any, make_module: Any, first_class: int, ignored: int
) -> None:
    optical, radar = np.full((13, 32, 32), 500, np.float32), np.full((2, 32, 32), -12, np.float32)
    optical[:, :8], radar[:, 4:12], radar[0, 20] = np.nan, np.nan, np.nan
    write(root / "S2L1C" / "a_S2.tif", optical)
    write(root / "S1GRD" / "a_S1.tif", radar)
    for name in "abcd":
        write(root / "mask" / f"{name}_label.tif", np.full((1, 32, 32), 1 + first_class, np.uint8))
    common = {"reduce_zero_label": bool(first_class), "allow_missing_modalities": True}

    def rows(asked: bool) -> list[int]:
        """Return the rows whose labels are ignored, all columns alike."""
        module = _attach(make_module(root, ignore_empty_pixels=asked, **common), ignore_index=ignored)
        module.setup("validate")
        masks = {Path(sample["filename"]["S1GRD"]).name: sample["mask"] for sample in module.val_dataset}
        assert not any((mask == ignored).any() for name, mask in masks.items() if name != "a_S1.tif")
        empty = masks["a_S1.tif"] == ignored
        assert (empty.any(dim=1) == empty.all(dim=1)).all()
        return empty.any(dim=1).nonzero().flatten().tolist()

    assert rows(asked=False) == []
    assert rows(asked=True) == [4, 5, 6, 7]
    (root / "S2L1C" / "a_S2.tif").unlink()
    assert rows(asked=True) == list(range(4, 12))


def test_to_ignore_pixels_needs_a_label_that_is_ignored(root: Path, make_module: Any) -> None:
    module = _attach(make_module(root, ignore_empty_pixels=True), ignore_index=None)
    with pytest.raises(ConfigError, match="ignore_empty_pixels needs an ignore_index"):
        module.setup("validate")


def test_labels_that_start_at_one(root: Path, write: Any, make_module: Any) -> None:
    label = np.full((1, 32, 32), 2, np.uint8)
    label[0, :2] = 0
    for nodata in (None, 0):
        write(root / "mask" / "a_label.tif", label, nodata=nodata)
        module = _attach(make_module(root, reduce_zero_label=True), ignore_index=-1)
        module.setup("validate")
        mask = module.val_dataset[0]["mask"]
        assert (mask[:2] == -1).all()
        assert (mask[2:] == 1).all()
    write(root / "mask" / "a_label.tif", label + 1)
    with pytest.raises(DataError, match=r"holds label values 3 \(960 pixels\)"):
        module.val_dataset[0]


def test_continuous_labels(root: Path, write: Any, first: Any) -> None:
    values = np.random.default_rng(0).normal(size=(1, 32, 32)).astype(np.float32)
    write(root / "mask" / "a_label.tif", values)
    mask = first(root, task="regression", num_classes=...)["mask"]
    assert mask.dtype == torch.float32
    assert np.array_equal(mask.numpy(), values[0])


def test_labels_from_a_table(root: Path, make_module: Any, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("id,label\na,1\nb,0\nc,1\nd,0\n")
    module = make_module(root, task="classification", label_data_root=str(table))
    module.setup("validate")
    batch = next(iter(module.val_dataloader()))
    assert batch["label"].tolist() == [1, 0]
    assert batch["label"].dtype == torch.int64
    table.write_text("id,label\na,1\nb,0\n")
    with pytest.raises(DataError, match=f"'c' is not in the index of {table}"):
        make_module(root, task="classification", label_data_root=str(table)).setup("validate")


@pytest.mark.parametrize(
    ("row", "message"), [("2", "2 is not a class id, expected 0 to 1"), ("1,0", "2 columns beside the ids (one, two)")]
)
def test_a_label_in_a_table_that_is_no_class(
    root: Path, make_module: Any, tmp_path: Path, row: str, message: str
) -> None:
    table = tmp_path / "labels.csv"
    columns = ["one", "two"][: len(row.split(","))]
    table.write_text("\n".join([",".join(["id", *columns]), *(f"{name},{row}" for name in "abcd")]) + "\n")
    with pytest.raises(DataError, match=re.escape(message)):
        make_module(root, task="classification", label_data_root=str(table)).setup("validate")


def test_several_labels_in_a_table(root: Path, make_module: Any, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["id,one,two", *(f"{name},1,0" for name in "abcd")]) + "\n")
    module = make_module(root, task="multilabel_classification", label_data_root=str(table))
    module.setup("validate")
    assert next(iter(module.val_dataloader()))["label"].shape == (2, 2)


def test_labels_with_transforms_by_modality(root: Path, make_module: Any) -> None:
    flips = {"S1GRD": [{"class_path": "HorizontalFlip", "init_args": {"p": 0}}, {"class_path": "ToTensorV2"}]}
    module = make_module(root, train_transform=flips)
    module.setup("fit")
    assert next(iter(module.train_dataloader()))["mask"].shape == (2, 32, 32)
