"""The data module: what a configuration may say, and what loaders and batches come out."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import albumentations
import numpy as np
import pytest
import rasterio
import torch
from jsonargparse import ArgumentParser
from lightning.fabric.utilities.data import _replace_dunder_methods
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.data import _update_dataloader
from terratorch.datamodules import GenericMultiModalDataModule
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from terramind_plugin.data.datamodule import TerraMindDataModule
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.modalities import MODALITIES


@pytest.fixture
def root(make_chips: Callable[..., Path]) -> Path:
    return make_chips()


# Arguments


def test_means_and_stds_come_from_the_table(root: Path, make_module: Callable[..., Any]) -> None:
    module = make_module(root)
    for name in ("S2L1C", "S1GRD"):
        assert module.band_means[name] == list(MODALITIES[name].mean)
        assert module.band_stds[name] == list(MODALITIES[name].std)
        assert module.aug.means[name] == module.band_means[name]


def test_given_numbers_go_first_and_the_table_fills_the_rest(root: Path, make_module: Callable[..., Any]) -> None:
    module = make_module(root, means={"S1GRD": [-10, -20]})
    assert module.band_means["S1GRD"] == [-10.0, -20.0]
    assert module.band_stds["S1GRD"] == list(MODALITIES["S1GRD"].std)
    assert module.band_means["S2L1C"] == list(MODALITIES["S2L1C"].mean)


@pytest.mark.parametrize("bands", [["RED", "GREEN", "BLUE"], ["B4", "B03", "B02"]])
def test_output_bands_select_statistics(root: Path, make_module: Callable[..., Any], bands: list[str]) -> None:
    table = MODALITIES["S2L1C"]
    names = [band.common_name for band in table.bands] if bands[0] == "RED" else ["B1", "B02", "B03", "B4"]
    module = make_module(root, dataset_bands={"S2L1C": names}, output_bands={"S2L1C": bands})
    assert module.band_means["S2L1C"] == [table.mean[i] for i in (3, 2, 1)]
    assert module.rgb_indices == {"S2L1C": [0, 1, 2]}


def test_dataset_bands_alone_select_statistics(root: Path, make_module: Callable[..., Any]) -> None:
    module = make_module(root, dataset_bands={"S1GRD": ["VH", "VV"]})
    assert module.band_means["S1GRD"] == list(MODALITIES["S1GRD"].mean)[::-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": ["S2L1C", "S1"]}, "'S1' is ambiguous: write S1GRD or S1RTC"),
        ({"modalities": ["S2L1C", "S3"]}, "Unknown modality 'S3'.*give its means and stds"),
        ({"modalities": "S2L1C"}, "modalities must be a list"),
        ({"modalities": []}, "modalities must be a list"),
        ({"means": {"S1GRD": [1.0]}}, "S1GRD: 1 means and 2 stds"),
        ({"stds": {"S1GRD": [1.0, 0.0]}}, "stds must be positive"),
        (
            {"dataset_bands": {"S1GRD": ["VV", "VH"]}, "means": {"S1GRD": [1.0]}, "stds": {"S1GRD": [1.0]}},
            "1 means and 1 stds for 2 bands",
        ),
        ({"dataset_bands": {"S1GRD": ["VV", "HH"]}}, "Unknown band 'HH' for modality S1GRD.*means and stds of S1GRD"),
        ({"allow_missing_modalities": True, "concat_bands": True}, "does not work with concat_bands"),
        ({"temporal_channel_major": True}, "needs time series: set expand_temporal_dimension"),
        (
            {"temporal_channel_major": ["S1GDR"], "expand_temporal_dimension": True},
            "names 'S1GDR', but modalities has S2L1C, S1GRD. Did you mean 'S1GRD'",
        ),
        ({"image_grep": {"S1GRD": ["*_a.tif", "*_b.tif"]}}, "image_grep lists 2 entries for S1GRD, one for each date"),
        (
            {
                "image_grep": {"S1GRD": ["*_a.tif", "*_b.tif"]},
                "data_root": {"S1GRD": ["a", "b", "c"], "S2L1C": "d"},
                "expand_temporal_dimension": True,
            },
            "image_grep of S1GRD lists 2 dates, but another argument lists 3. Give one entry for each date",
        ),
        ({"train_transform": [{"class_path": "ToTensorV3"}]}, "Unknown transform 'ToTensorV3'.*mean 'ToTensorV2'"),
        ({"train_transform": [{"class_path": "albumentations.D4s"}]}, "Unknown transform.*mean 'D4'"),
        ({"train_transform": [{"class_path": "albumentation.D4"}]}, "Transform albumentation.D4: No module"),
        ({"train_transform": [{"init_args": {"p": 1}}]}, "needs a class_path"),
        ({"data_root": {"S2L1C": "."}}, "data_root.*S1GRD"),
    ],
)
def test_impossible_arguments(
    root: Path, make_module: Callable[..., Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_module(root, **changes)


def test_a_modality_of_ones_own(root: Path, make_module: Callable[..., Any], write: Callable[..., Path]) -> None:
    for name in "abcd":
        write(root / "THERMAL" / f"{name}_t.tif", np.full((1, 32, 32), 300, np.float32))
    roots = {"S1GRD": str(root / "S1GRD"), "THERMAL": str(root / "THERMAL")}
    module = make_module(
        root, modalities=["S1GRD", "THERMAL"], data_root=roots, image_grep={"S1GRD": "*_S1.tif", "THERMAL": "*_t.tif"},
        means={"THERMAL": [290.0]}, stds={"THERMAL": [10.0]},
    )  # fmt: skip
    module.setup("test")
    batch = module.aug(next(iter(module.test_dataloader())))
    assert torch.allclose(batch["image"]["THERMAL"], torch.ones(2, 1, 32, 32))


def test_folders_of_other_modalities_are_left_alone(root: Path, make_module: Callable[..., Any]) -> None:
    roots = {"S2L1C": str(root / "S2L1C"), "S1GRD": str(root / "S1GRD")}
    module = make_module(root, modalities=["S1GRD"], data_root=roots)
    module.setup("validate")
    assert set(module.val_dataset[0]["image"]) == {"S1GRD"}


def test_the_callers_arguments_stay_as_they_are(root: Path, make_module: Callable[..., Any]) -> None:
    means, grep = {"S1GRD": [-10.0, -20.0]}, {"S2L1C": "_S2.tif", "S1GRD": "*_S1.tif"}
    with pytest.warns(UserWarning, match="wildcard"):
        make_module(root, means=means, image_grep=grep)
    assert means == {"S1GRD": [-10.0, -20.0]}
    assert grep == {"S2L1C": "_S2.tif", "S1GRD": "*_S1.tif"}


def test_a_configuration_may_name_every_argument_of_the_parent() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(TerraMindDataModule, "data")
    offered = {action.dest.removeprefix("data.") for action in parser._actions if action.dest.startswith("data.")}
    theirs = set(inspect.signature(GenericMultiModalDataModule.__init__).parameters) - {"self"}
    assert theirs <= offered
    assert "predict_split" in offered
    assert "kwargs" not in offered


def test_a_wrong_argument_is_refused_by_the_parser(root: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    config = {
        "class_path": "terramind_plugin.TerraMindDataModule",
        "init_args": {"batch_size": 2, "modalities": ["S1GRD"], "data_root": str(root), "batchsize": 3},
    }
    with pytest.raises(Exception, match="batchsize"):
        parser.parse_object({"data": config})


def test_default_values_are_those_of_the_parent() -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(TerraMindDataModule, "data")
    ours = parser.get_defaults().data
    for name, parameter in inspect.signature(GenericMultiModalDataModule.__init__).parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            assert getattr(ours, name) == parameter.default, name


# Transforms


def test_published_short_class_paths(root: Path, make_module: Callable[..., Any]) -> None:
    published = [{"class_path": "albumentations.D4"}, {"class_path": "ToTensorV2"}]
    module = make_module(root, train_transform=published)
    module.setup("fit")
    assert module.train_dataset[0]["image"]["S2L1C"].shape == (13, 32, 32)


def test_arguments_of_transforms(root: Path, make_module: Callable[..., Any]) -> None:
    crop = {"class_path": "albumentations.RandomCrop", "init_args": {"height": 16, "width": 24, "always_apply": True}}
    module = make_module(root, train_transform=[crop, {"class_path": "ToTensorV2"}])
    module.setup("fit")
    sample = module.train_dataset[0]
    assert sample["image"]["S1GRD"].shape == (2, 16, 24)
    assert sample["mask"].shape == (16, 24)
    with pytest.raises(ConfigError, match=r"albumentations\.RandomCrop"):
        make_module(root, train_transform=[{"class_path": "albumentations.RandomCrop"}])


def test_objects_and_transforms_by_modality(root: Path, make_module: Callable[..., Any]) -> None:
    tensor = albumentations.pytorch.ToTensorV2()
    module = make_module(root, train_transform=[albumentations.HorizontalFlip(p=1), tensor], task=None)
    module.setup("fit")
    plain = make_module(root, task=None)
    plain.setup("fit")
    assert torch.equal(module.train_dataset[0]["image"]["S1GRD"], plain.train_dataset[0]["image"]["S1GRD"].flip(-1))
    apart = make_module(root, train_transform={"S1GRD": [{"class_path": "HorizontalFlip", "init_args": {"p": 1}},
                                                        {"class_path": "ToTensorV2"}]}, task=None)  # fmt: skip
    apart.setup("fit")
    assert torch.equal(apart.train_dataset[0]["image"]["S1GRD"], module.train_dataset[0]["image"]["S1GRD"])
    assert torch.equal(apart.train_dataset[0]["image"]["S2L1C"], plain.train_dataset[0]["image"]["S2L1C"])


# Stages


def test_predict_needs_neither_labels_nor_other_folders(root: Path, make_module: Callable[..., Any]) -> None:
    roots = {"S2L1C": str(root / "S2L1C"), "S1GRD": str(root / "S1GRD")}
    module = make_module(root, data_root=..., label_data_root=..., predict_data_root=roots)
    module.setup("predict")
    batches = list(module.predict_dataloader())
    assert [len(batch["image"]["S2L1C"]) for batch in batches] == [2, 2]
    assert all("mask" not in batch for batch in batches)
    for stage in ("fit", "validate", "test"):
        with pytest.raises(ConfigError, match=f"{stage} needs data.init_args.*_data_root"):
            module.setup(stage)


def test_fit_without_labels(root: Path, make_module: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=r"fit needs data\.init_args\.train_label_data_root"):
        make_module(root, label_data_root=...).setup("fit")


def test_predict_split_selects(root: Path, make_module: Callable[..., Any], tmp_path: Path) -> None:
    split = tmp_path / "some.txt"
    split.write_text("c\n\na\n")
    module = make_module(root, predict_split=str(split))
    module.setup("predict")
    assert [Path(sample["S1GRD"]).name for sample in module.predict_dataset.samples] == ["c_S1.tif", "a_S1.tif"]


def test_without_a_task_there_are_no_labels(root: Path, make_module: Callable[..., Any]) -> None:
    module = make_module(root, task=None, label_data_root=..., num_classes=...)
    module.setup("fit")
    assert "mask" not in next(iter(module.train_dataloader()))


def test_a_folder_that_is_not_there(root: Path, make_module: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"folder of S1GRD does not exist: .*nowhere"):
        make_module(root, data_root={"S2L1C": str(root / "S2L1C"), "S1GRD": str(root / "nowhere")}).setup("fit")
    with pytest.raises(DataError, match="folder of labels does not exist"):
        make_module(root, label_data_root=str(root / "nowhere")).setup("fit")


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_samples_without_files_stop_the_run(
    root: Path, make_module: Callable[..., Any], tmp_path: Path, suffix: str
) -> None:
    split = tmp_path / f"train.{suffix}"
    split.write_text({"txt": "a\nz\n", "csv": "name,site\na,1\nz,2\n"}[suffix])
    with pytest.raises(DataError, match="z: no file for S2L1C"):
        make_module(root, train_split=str(split)).setup("fit")
    (root / "S1GRD" / "a_S1.tif").unlink()
    split.write_text({"txt": "a\nb\n", "csv": "name,site\na,1\nb,2\n"}[suffix])
    with pytest.raises(DataError, match="a: no file for S1GRD"):
        make_module(root, train_split=str(split)).setup("fit")


def test_a_csv_split_is_read(root: Path, make_module: Callable[..., Any], tmp_path: Path) -> None:
    split = tmp_path / "train.csv"
    split.write_text("name,site\nb,1\nd,2\n")
    module = make_module(root, train_split=str(split))
    module.setup("fit")
    assert [Path(sample["S1GRD"]).name for sample in module.train_dataset.samples] == ["b_S1.tif", "d_S1.tif"]


def test_files_without_counterpart_are_reported(
    root: Path, make_module: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    (root / "S1GRD" / "b_S1.tif").unlink()
    with caplog.at_level(logging.WARNING, logger="terramind_plugin"):
        make_module(root).setup("validate")
    assert "1 of 4 files" in caplog.text


# Loaders


def test_batches_are_standardised_and_whole(root: Path, make_module: Callable[..., Any]) -> None:
    module = make_module(root, batch_size=3)
    module.setup("fit")
    (batch,) = list(module.train_dataloader())  # drop_last
    assert batch["image"]["S2L1C"].shape == (3, 13, 32, 32)
    assert batch["image"]["S2L1C"].dtype == torch.float32
    assert batch["mask"].shape == (3, 32, 32)
    assert batch["mask"].dtype == torch.int64
    assert len(batch["filename"]["S1GRD"]) == 3
    raw = batch["image"]["S1GRD"].clone()
    standardised = module.aug(batch)["image"]["S1GRD"]
    table = MODALITIES["S1GRD"]
    expected = (raw - torch.tensor(table.mean).view(2, 1, 1)) / torch.tensor(table.std).view(2, 1, 1)
    assert torch.allclose(standardised, expected)
    assert [len(batch["mask"]) for batch in module.val_dataloader()] == [3, 1]


def test_no_training_batch_is_an_error(root: Path, make_module: Callable[..., Any]) -> None:
    module = make_module(root, batch_size=8)
    module.setup("fit")
    with pytest.raises(ConfigError, match="No training batch: 4 training samples do not fill one batch of 8"):
        module.train_dataloader()
    module = make_module(root, batch_size=8, drop_last=False)
    module.setup("fit")
    assert [len(batch["mask"]) for batch in module.train_dataloader()] == [4]


def test_an_epoch_may_show_samples_several_times(root: Path, make_module: Callable[..., Any]) -> None:
    module = make_module(root, batch_size=8, train_repeats=4)
    module.setup("fit")
    batches = list(module.train_dataloader())
    assert [len(batch["mask"]) for batch in batches] == [8, 8]
    names = [name for batch in batches for name in batch["filename"]["S1GRD"]]
    assert sorted(map(names.count, names)) == [4] * 16
    assert sum(len(batch["mask"]) for batch in module.val_dataloader()) == 4
    with pytest.raises(ConfigError, match="train_repeats must be at least 1, got 0"):
        make_module(root, train_repeats=0)


def test_training_samples_are_shuffled_and_others_are_not(make_chips: Any, make_module: Callable[..., Any]) -> None:
    names = [f"{i:02d}" for i in range(20)]
    module = make_module(make_chips(names), batch_size=20)
    module.setup("fit")
    (train,), (val,) = list(module.train_dataloader()), list(module.val_dataloader())
    assert val["filename"]["S1GRD"] == sorted(val["filename"]["S1GRD"])
    assert train["filename"]["S1GRD"] != sorted(train["filename"]["S1GRD"])
    assert sorted(train["filename"]["S1GRD"]) == val["filename"]["S1GRD"]


def test_workers(root: Path, make_module: Callable[..., Any]) -> None:
    module = make_module(root, num_workers=1)
    module.setup("validate")
    loader = module.val_dataloader()
    assert sum(len(batch["mask"]) for batch in loader) == sum(len(batch["mask"]) for batch in loader) == 4


def test_sampling_of_modalities(root: Path, make_module: Callable[..., Any]) -> None:
    module = make_module(root, sample_num_modalities=1, task=None, label_data_root=...)
    module.setup("fit")
    assert all(len(batch["image"]) == 1 for batch in module.train_dataloader())


def test_drawn_modalities_come_with_labels_repeats_and_full_batches(
    root: Path, make_module: Callable[..., Any]
) -> None:
    np.random.seed(0)
    module = make_module(root, sample_num_modalities=1, train_repeats=4, batch_size=8)
    module.setup("fit")
    batches = [batch for _ in range(4) for batch in module.train_dataloader()]
    assert [len(batch["mask"]) for batch in batches] == [8] * 8
    assert {tuple(batch["image"]) for batch in batches} == {("S2L1C",), ("S1GRD",)}
    names = [Path(path).name[0] for batch in batches[:2] for path in next(iter(batch["filename"].values()))]
    assert sorted(map(names.count, names)) == [4] * 16
    for batch in batches:
        ((name, images),) = batch["image"].items()
        for image, label, path in zip(images, batch["mask"], batch["filename"][name], strict=True):
            with rasterio.open(path) as raster:
                assert np.array_equal(image, raster.read().astype(np.float32))
            with rasterio.open(root / "mask" / f"{Path(path).name[0]}_label.tif") as raster:
                assert np.array_equal(label, raster.read(1))


@pytest.mark.parametrize("repeats", [1, 3])
def test_drawn_modalities_keep_the_batch_size_in_each_process(
    root: Path, make_module: Callable[..., Any], repeats: int
) -> None:
    """Lightning exchanges the sampler of each process, with these functions."""
    module = make_module(root, sample_num_modalities=1, train_repeats=repeats)
    module.setup("fit")
    with _replace_dunder_methods(DataLoader, "dataset"), _replace_dunder_methods(BatchSampler):
        loader = module.train_dataloader()
    seen = []
    for rank in (0, 1):
        own = _update_dataloader(loader, DistributedSampler(loader.dataset, num_replicas=2, rank=rank))
        batches = list(own)
        assert [len(batch["mask"]) for batch in batches] == [2] * repeats
        seen += [Path(path).name[0] for batch in batches for path in next(iter(batch["filename"].values()))]
    assert sorted(seen) == sorted("abcd" * repeats)


@pytest.mark.parametrize("transform", [None, [{"class_path": "ToTensorV2"}]])
def test_a_file_of_another_size_is_named(
    root: Path, make_module: Callable[..., Any], write: Callable[..., Path], transform: Any
) -> None:
    odd = write(root / "S1GRD" / "c_S1.tif", np.zeros((2, 48, 32), np.float32))
    module = make_module(root, val_transform=transform, batch_size=4)
    module.setup("validate")
    with pytest.raises(DataError, match=rf"{odd} .*48, 32\]"):
        list(module.val_dataloader())


def test_sizes_may_differ_one_by_one_or_with_a_crop(
    root: Path, make_module: Callable[..., Any], write: Callable[..., Path]
) -> None:
    for kind, bands, name in (("S2L1C", 13, "c_S2"), ("S1GRD", 2, "c_S1"), ("mask", 1, "c_label")):
        write(root / kind / f"{name}.tif", np.zeros((bands, 48, 40), np.float32))
    crop = [{"class_path": "RandomCrop", "init_args": {"height": 32, "width": 32}}, {"class_path": "ToTensorV2"}]
    module = make_module(root, train_transform=crop, batch_size=1)
    module.setup("fit")
    assert [batch["mask"].shape[1:] for batch in module.val_dataloader()][2] == (48, 40)
    module = make_module(root, train_transform=crop, batch_size=4)
    module.setup("fit")
    assert next(iter(module.train_dataloader()))["mask"].shape == (4, 32, 32)


def test_turning_images_that_are_not_square_is_explained(make_chips: Any, make_module: Callable[..., Any]) -> None:
    turn = [{"class_path": "Transpose", "init_args": {"p": 0.5}}, {"class_path": "ToTensorV2"}]
    module = make_module(make_chips(size=(32, 48)), train_transform=turn, batch_size=4)
    module.setup("fit")
    loaders = [module.train_dataloader() for _ in range(20)]
    with pytest.raises(DataError, match="rotates or transposes"):
        list(chain.from_iterable(loaders))


def test_a_fill_value_far_from_the_mean_is_reported(
    root: Path, make_module: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="terramind_plugin"):
        make_module(root, no_data_replace=0)
    assert "standard deviations from the mean of S1GRD" in caplog.text
    assert "S2L1C" not in caplog.text


def test_class_names_reach_the_data_set(root: Path, make_module: Callable[..., Any]) -> None:
    module = make_module(root, class_names=["Land", "Water"])
    module.setup("fit")
    assert module.val_dataset.class_names == ["Land", "Water"]


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_follows_the_seed_and_differs_between_epochs(
    root: Path, make_module: Callable[..., Any], workers: int
) -> None:
    """Albumentations' own generator knows nothing of seed_everything, and worker processes get copies of it."""
    transforms = [{"class_path": "albumentations.D4"}, {"class_path": "ToTensorV2"}]

    def corners(seed: int) -> list[set[str]]:
        torch.manual_seed(seed)
        module = make_module(root, num_workers=workers, train_transform=transforms)
        module.setup("fit")
        loader = module.train_dataloader()
        # In any order: that of the chips follows the seed, too.
        return [{str(image[0].tolist()) for batch in loader for image in batch["image"]["S2L1C"]} for _ in range(3)]

    first = corners(0)
    assert corners(0) == first
    assert corners(1) != first
    assert first[0] != first[1] or first[1] != first[2]
