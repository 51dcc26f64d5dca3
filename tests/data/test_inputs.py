"""Positions from the georeference, and inputs whose names are not those of their modality."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch

from terramind_plugin.check.config import check_agreement
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.inference.scenes import pair_series
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.georeference import find_centre
from terramind_plugin.samples.plan import describe_data

CENTRE = (-2.99808, 41.55022)
"""Longitude and latitude of the middle of the chips: EPSG:32630, 160 m from (500000, 4600000)."""


def only(module, stage="fit"):
    module.setup(stage)
    return next(iter(module.train_dataloader() if stage == "fit" else module.predict_dataloader()))


def test_positions_come_from_the_georeference(make_chips, make_module):
    module = make_module(make_chips(), modalities=["S2L1C", "S1GRD", "coords"])
    assert (module.modalities, module.positions) == (["S2L1C", "S1GRD"], "coords")
    batch = only(module)
    assert list(batch["image"]) == ["S2L1C", "S1GRD", "coords"]
    assert batch["image"]["coords"].dtype == torch.float32
    assert torch.allclose(batch["image"]["coords"], torch.tensor([CENTRE, CENTRE]), atol=1e-4)
    normalised = module.aug(batch)
    assert torch.equal(normalised["image"]["coords"], batch["image"]["coords"])
    assert [image.name for image in describe_data(module).images] == ["S2L1C", "S1GRD"]


def test_one_image_and_a_position(make_chips, make_module):
    batch = only(make_module(make_chips(), modalities=["S1GRD", "location"]))
    assert [tuple(x.shape) for x in batch["image"].values()] == [(2, 2, 32, 32), (2, 2)]


def without_place(path: Path):
    with rasterio.open(path) as file:
        values = file.read()
    with rasterio.open(path, "w", driver="GTiff", count=len(values), height=32, width=32, dtype=values.dtype) as file:
        file.write(values)


def test_a_chip_without_a_georeference(make_chips, make_module):
    root = make_chips(["a"])
    without_place(root / "S2L1C" / "a_S2.tif")
    arguments = {"modalities": ["S2L1C", "S1GRD", "coords"], "batch_size": 1}
    assert torch.allclose(only(make_module(root, **arguments))["image"]["coords"], torch.tensor([CENTRE]), atol=1e-4)
    without_place(root / "S1GRD" / "a_S1.tif")
    assert find_centre(root / "S1GRD" / "a_S1.tif") is None
    with pytest.raises(DataError, match=r"a_S2\.tif has no georeference, so coords of the sample is unknown"):
        only(make_module(root, **arguments))
    batch = only(make_module(root, **arguments, allow_missing_modalities=True))
    assert batch["image"]["coords"].isnan().all()
    assert not batch["modality_mask"]["coords"].any()
    assert batch["modality_mask"]["S1GRD"].all()


def test_positions_from_a_table(make_chips, make_module, tmp_path):
    root, table = make_chips(["a"]), tmp_path / "places.csv"
    table.write_text("id,longitude,latitude\na,11.5,48.25\n")
    module = make_module(
        root,
        modalities=["S1GRD", "coords"],
        data_root={"S1GRD": str(root / "S1GRD"), "coords": str(table)},
        image_grep={"S1GRD": "*_S1.tif", "coords": "*"},
        batch_size=1,
    )
    assert module.positions is None
    assert only(module)["image"]["coords"].tolist() == [[11.5, 48.25]]


def two_dates(root: Path):
    return {
        "modalities": [{"before": "S2L1C"}, {"after": "S2L1C"}],
        "data_root": {name: str(root / "S2L1C") for name in ("before", "after")},
        "image_grep": dict.fromkeys(("before", "after"), "*_S2.tif"),
    }


def test_two_images_of_one_modality(make_chips, make_module):
    root = make_chips()
    path = root / "S2L1C" / "a_S2.tif"
    with rasterio.open(path, "r+") as file:  # the bands of one file in another order
        values = file.read()
        file.write(values[::-1])
        file.descriptions = MODALITIES["S2L1C"].band_names[::-1]
    module = make_module(root, **two_dates(root))
    assert module.sources == {"before": "S2L1C", "after": "S2L1C"}
    assert module.band_means["after"] == list(MODALITIES["S2L1C"].mean)
    assert [image.modality.name for image in describe_data(module).images] == ["S2L1C", "S2L1C"]
    module.setup("fit")
    sample = next(s for s in (module.train_dataset[n] for n in range(4)) if "a_S2" in str(s["filename"]["after"]))
    assert np.array_equal(sample["image"]["after"].numpy(), values.astype(np.float32))


def test_names_that_hold_a_modality(make_chips, make_module):
    root = make_chips()
    names = ["S2L1C_before", "S2L1C_after"]
    folders = {name: str(root / "S2L1C") for name in names}
    patterns = dict.fromkeys(names, "*_S2.tif")
    module = make_module(root, modalities=names, data_root=folders, image_grep=patterns)
    assert module.band_stds["S2L1C_after"] == list(MODALITIES["S2L1C"].std)
    module = make_module(root, modalities=names, data_root=folders, image_grep=patterns, offsets={names[0]: -1000.0})
    assert module.offsets == {"S2L1C_before": -1000.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modalities": ["coords"]}, "has no image: add one to coords"),
        ({"modalities": ["S1GRD", "coords"], "concat_bands": True}, "which cannot hold coords"),
        ({"modalities": ["S1GRD", {"S1GRD": "S1GRD"}]}, "names 'S1GRD' twice"),
        ({"modalities": ["S1GRD", {"after": "S2L1"}]}, r"\{after: S2L1\}: Unknown modality 'S2L1'"),
        ({"modalities": ["S1GRD", "after"], "data_root": {"S1GRD": ".", "after": "."}}, r"\[\{after: S2L2A\}\]"),
    ],
)
def test_refused(make_chips, make_module, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_module(make_chips(["a"]), **changes)


def test_check_compares_names_and_bands():
    two = [{"before": "S2L2A"}, {"after": "S2L2A"}, "coords"]
    model = {"model_args": {"backbone_modalities": two, "backbone_bands": {"after": ["RED"]}}}
    data = {"modalities": two, "dataset_bands": {"after": ["RED"]}}
    assert list(check_agreement(data, model)) == []
    (found,) = check_agreement({"modalities": two}, model)
    assert found.check == "yaml: bands"
    assert "after" in str(found)
    (found,) = check_agreement({"modalities": two[:2]}, {"model_args": {"backbone_modalities": two}})
    assert found.check == "yaml: modalities"


def test_scenes_are_not_mixed_up():
    names = ["S2L2A_before", "S2L2A_after"]
    with pytest.raises(ConfigError, match="write --scene S2L2A_before=FILE --scene S2L2A_after=FILE"):
        pair_series([["S2L2A=a.tif"], ["S2L2A_after=b.tif"]], names, dated=False)
    (scene,) = pair_series([["S2L2A_after=b.tif"], ["S2L2A_before=a.tif"]], names, dated=False)
    assert {name: str(path) for name, (path,) in scene.items()} == {"S2L2A_after": "b.tif", "S2L2A_before": "a.tif"}


def test_positions_are_images_where_the_task_tiles(make_chips, make_module):
    module = make_module(make_chips(), modalities=["S1GRD", "coords"])
    task = torch.nn.Module()
    task.tiled_inference_parameters, task.hparams = {"crop": 32}, {}
    module.trainer = SimpleNamespace(lightning_module=task, is_global_zero=False, callbacks=[], ckpt_path=None)
    module.setup("fit")
    place = module.train_dataset[0]["image"]["coords"]
    assert place.shape == (2, 32, 32)
    assert torch.allclose(place[:, 5, 7], torch.tensor(CENTRE), atol=1e-4)
