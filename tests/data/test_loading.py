"""Samples that go straight into batches are those of the slower way, with and without a cache."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from terramind_plugin.data.loading import collate
from terramind_plugin.data.placing import Placing, list_costly
from terramind_plugin.data.slots import LEAST, Slots, join
from terramind_plugin.data.standardising import BatchStandardisation
from terramind_plugin.errors import DataError
from terramind_plugin.raster.images import RasterImage
from tests.data.conftest import write_raster

PIPELINES: dict[str, Any] = {
    "none": None,
    "d4": [{"class_path": "D4"}, {"class_path": "ToTensorV2"}],
    "crop and d4": [
        {"class_path": "albumentations.RandomCrop", "init_args": {"height": 7, "width": 7}},
        {"class_path": "D4"},
        {"class_path": "ToTensorV2"},
    ],
}


@settings(deadline=None, max_examples=60)
@given(data=st.data(), height=st.integers(2, 9), width=st.integers(2, 9), seed=st.integers(0, 2**31 - 1))
def test_placements_are_what_albumentations_does(data: Any, height: int, width: int, seed: int) -> None:
    # Of a single row Albumentations makes arrays that torch refuses.
    crop = {"height": data.draw(st.integers(2, height)), "width": data.draw(st.integers(2, width))}
    makers = [A.D4, A.HorizontalFlip, A.VerticalFlip, A.Transpose, A.RandomRotate90, A.SquareSymmetry]
    drawn = [
        A.OneOf([maker(p=1) for maker in makers]),
        *data.draw(st.lists(st.sampled_from(makers).map(lambda m: m()))),
    ]
    if data.draw(st.booleans()):
        drawn.insert(0, data.draw(st.sampled_from([A.RandomCrop, A.CenterCrop]))(**crop))
    pipeline = A.Compose([*drawn, ToTensorV2()], is_check_shapes=False)
    assert list_costly(pipeline) == []
    dtype = data.draw(st.sampled_from([np.int16, np.float32, np.uint8, np.int64]))
    values = np.random.default_rng(seed).integers(0, 99, (3, height, width)).astype(dtype)
    pipeline.set_random_seed(seed)
    expected = pipeline(image=np.moveaxis(values.astype(np.float32), 0, -1))["image"].numpy()
    pipeline.set_random_seed(seed)
    place = Placing(pipeline).draw(height, width)
    found = np.empty((3, *place.shape), np.float32)
    place.write(values[:, *place.window], found)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ([A.D4(), A.RandomBrightnessContrast(), ToTensorV2()], ["RandomBrightnessContrast"]),
        ([A.OneOf([A.D4(), A.Blur()]), ToTensorV2()], ["Blur"]),
        ([A.RandomCrop(9, 9, pad_if_needed=True), ToTensorV2()], ["RandomCrop"]),
        ([A.D4()], ["the lack of ToTensorV2 at the end"]),
    ],
)
def test_transforms_that_need_pixels_are_named(parts: list[Any], named: list[str]) -> None:
    assert list_costly(A.Compose(parts)) == named


def _slower(module: Any, split: str) -> Any:
    """Return the loader of a data module whose samples go through Albumentations."""
    dataset = getattr(module, f"{split}_dataset")
    dataset._straight = False
    return module._dataloader_factory(split)


def _batches(loader: Any) -> list[Any]:
    torch.manual_seed(3)
    np.random.seed(3)  # draws modalities
    return list(loader)


def _same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            _same(found[key], expected[key])
    elif isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found.numpy(), expected.numpy())
    else:
        assert found == expected


def _gaps(root: Path, *, lost: bool) -> None:
    """Give files gaps: nodata in all of a corner, NaN, a file without data, a label with nodata and another type."""
    rng = np.random.default_rng(1)
    optical = rng.integers(1, 6000, (13, 32, 32)).astype(np.int16)
    optical[:, :20] = 0
    optical[4, 25, 3] = 0
    write_raster(root / "S2L1C" / "a_S2.tif", optical, nodata=0)
    radar = rng.normal(-15, 5, (2, 32, 32)).astype(np.float32)
    radar[:, :20] = np.nan
    radar[0, 30, 30] = 1e35
    write_raster(root / "S1GRD" / "a_S1.tif", radar, nodata=np.nan)
    if lost:
        write_raster(root / "S1GRD" / "b_S1.tif", np.full((2, 32, 32), np.nan, np.float32))
    label = rng.integers(0, 2, (1, 32, 32)).astype(np.uint8)
    label[0, :3] = 255
    write_raster(root / "mask" / "a_label.tif", label, nodata=255)
    write_raster(root / "mask" / "c_label.tif", label.astype(np.float32) % 2)


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"constant_scale": {"S2L1C": 0.0001}, "offsets": {"S2L1C": -1000.0}},
    "missing": {"allow_missing_modalities": True},
    "empty pixels": {"ignore_empty_pixels": True},
    "bands": {
        "dataset_bands": {"S1GRD": ["VV", "VH"]},
        "output_bands": {"S1GRD": ["VH"]},
        "means": {"S1GRD": [-20.0]},
        "stds": {"S1GRD": [5.0]},
    },
    "regression": {"task": "regression", "num_classes": ..., "no_data_replace": 0.0},
    "concat": {"concat_bands": True},
    "series": {"expand_temporal_dimension": True, "allow_missing_modalities": True},
    "reduced": {"reduce_zero_label": True},
    "drawn": {"sample_num_modalities": 1, "train_repeats": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_batches_are_those_of_the_slower_way(make_chips: Any, make_module: Any, tmp_path: Path, case: str) -> None:
    root = make_chips()
    _gaps(root, lost=True)
    for name, transform in PIPELINES.items():
        arguments = {"train_transform": transform, "check_values": False, "drop_last": False, **CASES[case]}
        results = []
        for cache in (None, tmp_path / "cache", tmp_path / "cache"):
            module = make_module(root, cache=cache, **arguments)
            module.setup("fit")
            assert module.train_dataset._straight, name
            results.append(_batches(module.train_dataloader()))
        slower = _batches(_slower(module, "train"))
        for found in results:
            assert len(found) == len(slower)
            for batch, expected in zip(found, slower, strict=True):
                _same(batch, expected)


def test_user_transforms_go_the_slower_way_and_a_line_says_so(make_chips: Any, make_module: Any, caplog: Any) -> None:
    blurred = [{"class_path": "D4"}, {"class_path": "albumentations.Blur"}, {"class_path": "ToTensorV2"}]
    module = make_module(make_chips(), train_transform=blurred, check_values=False)
    module.setup("fit")
    assert "loaded the slower way because of Blur:" in caplog.text
    assert next(iter(module.train_dataloader()))["image"]["S2L1C"].shape == (2, 13, 32, 32)


def test_files_of_other_sizes_are_still_refused_by_name(make_chips: Any, make_module: Any) -> None:
    root = make_chips()
    write_raster(root / "S1GRD" / "a_S1.tif", np.zeros((2, 16, 16), np.float32))
    module = make_module(root, batch_size=4, train_transform=PIPELINES["d4"], check_values=False)
    module.setup("fit")
    with pytest.raises(DataError, match=r"Samples of a batch differ in size: .*_S1\.tif"):
        _batches(module.train_dataloader())


def test_a_batch_that_is_held_is_not_overwritten(make_chips: Any, make_module: Any) -> None:
    root = make_chips([f"c{number:02d}" for number in range(24)], size=(96, 96))
    module = make_module(root, check_values=False)
    module.setup("fit")
    pool = module.slots
    first = next(iter(module.train_dataloader()))["image"]["S2L1C"]
    assert first.numel() * 4 < LEAST
    module = make_module(root, batch_size=8, check_values=False)
    module.setup("validate")
    pool, places, kept = module.slots, [], []
    for batch in module.val_dataloader():
        image = batch["image"]["S2L1C"]
        assert image.numel() * 4 >= LEAST
        kept.append((image[3].numpy(), image[3].clone()))  # holds a part of the batch only
        places.append(image.data_ptr())
    assert len(set(places)) == len(places) == 3
    for held, copy in kept:
        np.testing.assert_array_equal(held, copy.numpy())
    del batch, image, held, copy
    kept.clear()
    again = [batch["image"]["S2L1C"].data_ptr() for batch in module.val_dataloader()]
    assert set(again) <= set(places)
    assert len(pool._free) == 3


def test_workers_give_the_same_batches(make_chips: Any, make_module: Any, tmp_path: Path) -> None:
    root = make_chips([f"c{number:02d}" for number in range(12)], size=(96, 96))
    found = []
    for workers in (0, 2):
        module = make_module(root, batch_size=4, num_workers=workers, check_values=False, cache=tmp_path / "cache")
        module.setup("validate")
        found.append(list(module.val_dataloader()))
    for batch, expected in zip(*found, strict=True):
        _same(batch, expected)


def test_only_neighbours_in_memory_are_joined() -> None:
    slots = Slots()
    whole = slots.take((4, 3, 5), torch.float32)
    assert join(list(whole)).data_ptr() == whole.data_ptr()
    assert join([whole[0], whole[2]]) is None
    assert join([whole[1], whole[0]]) is None
    assert join([whole[0].clone(), whole[1]]) is None
    assert join([part.T for part in whole]) is None
    torch.testing.assert_close(join([whole[1], whole[2]]), whole[1:3])


def test_a_crop_reads_only_its_window(make_chips: Any, make_module: Any, monkeypatch: Any) -> None:
    root = make_chips()
    module = make_module(root, train_transform=PIPELINES["crop and d4"], check_values=False)
    module.setup("fit")
    windows: list[Any] = []
    own = RasterImage.read
    monkeypatch.setattr(
        RasterImage,
        "read",
        lambda self, window=None, **options: windows.append((self.shape[0], window)) or own(self, window, **options),
    )
    assert module.train_dataset[0]["image"]["S2L1C"].shape == (13, 7, 7)
    seen = dict(windows)
    assert seen[1] is None  # all of a label is checked
    assert all(part.stop - part.start == 7 for count in (13, 2) for part in seen[count])


def test_a_batch_in_which_nothing_is_missing_has_no_mask() -> None:
    def sample(*there: bool) -> dict[str, Any]:
        return {"image": {"a": torch.zeros(1, 2, 2)}, "modality_mask": {"a": torch.tensor(there)}}

    assert "modality_mask" not in collate([sample(True), sample(True)])
    assert collate([sample(True), sample(False)])["modality_mask"]["a"].flatten().tolist() == [True, False]
    assert "modality_mask" in collate([sample(True, True), sample(True, False)])


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3, 2, 4, 4), (3, 4, 4)])
def test_standardisation_is_terratorchs_and_keeps_its_numbers(shape: tuple[int, ...]) -> None:
    from terratorch.datamodules.generic_multimodal_data_module import MultimodalNormalize

    numbers: tuple[dict[str, list[float]], ...] = ({"a": [1.0, 2, 3], "b": [5.0]}, {"a": [2.0, 4, 8], "b": [3.0]})
    ours, theirs = BatchStandardisation(*numbers), MultimodalNormalize(*numbers)
    lone = torch.rand(shape[0], 4, 4)
    images = {"a": torch.rand(shape), "b": lone, "other": torch.rand(2)}
    for denormalize in (False, True):
        got = ours({"image": dict(images), "mask": lone}, denormalize)["image"]
        want = theirs({"image": dict(images), "mask": lone}, denormalize)["image"]
        assert all(torch.equal(got[name], want[name]) for name in images)
        assert torch.equal(ours({"a": images["a"]}, denormalize)["a"], want["a"])
    kept = {id(one) for pair in ours._numbers.values() for one in pair}
    ours({"image": dict(images)})
    assert {id(one) for pair in ours._numbers.values() for one in pair} == kept
    assert not deepcopy(ours)._numbers


def test_memory_is_pinned_where_a_gpu_computes(make_chips: Any, make_module: Any, monkeypatch: Any) -> None:
    module = make_module(make_chips())
    module.setup("fit")
    assert not module.train_dataloader().pin_memory
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert not module.train_dataloader().pin_memory  # the run is on a CPU
    monkeypatch.setattr(module, "_runs_on_cuda", lambda: True)
    assert module.train_dataloader().pin_memory
    assert module.slots.pinned
