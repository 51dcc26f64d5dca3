"""`terramind new`: what it finds in folders as users have them, and what it says of folders that it cannot use."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from terramind_plugin.cli import main
from tests.configure.conftest import (
    SIDE,
    burn_scars,
    classes,
    dated,
    eurosat,
    flags,
    four_bands,
    heights,
    missing,
    months,
    numbers,
    one_folder,
    pairs,
    series,
    write,
)

DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def made(chips, tmp_path, monkeypatch):
    """Return a function from a layout to the configuration that the command writes for it."""
    monkeypatch.chdir(tmp_path)

    def make(layout, *more: str):
        words = layout(chips, tmp_path / "data")
        assert main(["new", "--data", "data", *words, *more]) == 0
        return yaml.safe_load(Path("data.yaml").read_text(encoding="utf-8"))

    return make


def ids(config, split: str) -> list[str]:
    return Path(config["data"]["init_args"][f"{split}_split"]).read_text(encoding="utf-8").split()


def test_the_layout_of_sen1floods11(simulated, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["new", "--task", "segmentation", "--modalities", "S2L1C,S1GRD,coords", "--data", str(simulated)]
    assert main([*words, "--out", "x/floods.yaml"]) == 0
    config = yaml.safe_load(Path("x/floods.yaml").read_text(encoding="utf-8"))
    data, model = config["data"]["init_args"], config["model"]["init_args"]
    assert data["modalities"] == model["model_args"]["backbone_modalities"] == ["S2L1C", "S1GRD", "coords"]
    assert data["data_root"] == {"S2L1C": f"{simulated}/data/S2L1CHand", "S1GRD": f"{simulated}/data/S1GRDHand"}
    assert data["image_grep"] == {"S2L1C": "*_S2Hand.tif", "S1GRD": "*_S1Hand.tif"}
    assert data["label_data_root"] == f"{simulated}/data/LabelHand"
    assert data["label_grep"] == "*_LabelHand.tif"
    assert data["class_names"] == model["class_names"] == ["land", "water"]
    assert data["val_split"] == f"{simulated}/splits/flood_valid_data.txt"  # the user's own lists
    assert not Path("x/floods_splits").exists()
    assert "dataset_bands" not in data
    assert "13 bands, 64 x 64 pixels" in capsys.readouterr().out


def test_splits_by_folder_six_bands_and_reflectance(made, capsys):
    config = made(burn_scars)
    assert "no chips are left for a test: terramind validate gives scores" in capsys.readouterr().out
    assert "# Validate:  terramind validate -c data.yaml --ckpt_path" in Path("data.yaml").read_text(encoding="utf-8")
    data, model = config["data"]["init_args"], config["model"]["init_args"]
    assert data["image_grep"] == {"S2L2A": "*_merged.tif"}
    assert data["label_grep"] == "*.mask.tif"
    assert data["train_data_root"]["S2L2A"].endswith("data/training_chips")
    assert data["val_label_data_root"].endswith("data/validation_chips")
    assert data["predict_split"] == data["val_split"]
    assert "test_split" not in data
    assert data["constant_scale"] == {"S2L2A": 10000}
    assert data["dataset_bands"] == model["model_args"]["backbone_bands"]
    assert data["dataset_bands"]["S2L2A"] == ["BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2"]
    assert len(ids(config, "train")) == 9
    assert len(ids(config, "val")) == 3
    assert model["class_names"] == ["Others", "Burned"]


def test_folders_of_classes_with_a_band_at_the_end(made):
    config = made(eurosat)
    data = config["data"]["init_args"]
    assert data["class_names"] == ["Forest", "SeaLake", "Town"]
    assert data["dataset_bands"]["S2L1C"][-1] == "B8A"
    assert data["output_bands"]["S2L1C"][8] == "B8A"
    rows = Path(data["label_data_root"]).read_text(encoding="utf-8").splitlines()
    assert rows[0] == "id,class"
    assert "SeaLake/SeaLake_1,SeaLake" in rows
    every = [one for split in ("train", "val", "test") for one in ids(config, split)]
    assert sorted(every) == sorted(row.partition(",")[0] for row in rows[1:])


def test_four_bands_and_labels_from_one(made, capsys):
    config = made(four_bands)
    data = config["data"]["init_args"]
    assert data["dataset_bands"] == {"S2L2A": ["BLUE", "GREEN", "RED", "NIR_BROAD"]}
    assert data["reduce_zero_label"] is True
    assert data["num_classes"] == 2
    assert "taken as BLUE, GREEN, RED, NIR_BROAD; if that is wrong" in capsys.readouterr().out


def test_a_mask_whose_background_is_declared_as_nodata(chips, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = four_bands(chips, tmp_path / "data")
    for number, name in enumerate(chips.ids):
        label = (chips.read(name, "label") == 1).astype("uint8")
        write(tmp_path / "data" / "masks" / f"{name}.tif", label, number, nodata=0)
    assert main(["new", "--data", "data", *words]) == 0
    data = yaml.safe_load(Path("data.yaml").read_text(encoding="utf-8"))["data"]["init_args"]
    assert data["num_classes"] == 2
    assert "reduce_zero_label" not in data
    assert "0, which the files declare as nodata, taken as the class beside 1" in capsys.readouterr().out


def test_bands_that_the_user_names(made):
    config = made(four_bands, "--bands", "S2L2A=NIR_BROAD,RED,GREEN,BLUE")
    assert config["model"]["init_args"]["model_args"]["backbone_bands"]["S2L2A"][0] == "NIR_BROAD"


def test_numbers_for_pixels_and_lists_of_file_names(made):
    config = made(heights)
    data, model = config["data"]["init_args"], config["model"]["init_args"]
    assert config["model"]["class_path"] == "terratorch.tasks.PixelwiseRegressionTask"
    assert data["no_label_replace"] == model["ignore_index"]
    assert "num_classes" not in data
    assert ids(config, "train")[0].endswith(".tif") is False
    assert [len(ids(config, split)) for split in ("train", "val", "test")] == [8, 2, 2]


def test_two_folders_are_two_dates(made):
    config = made(pairs)
    data, model = config["data"]["init_args"], config["model"]["init_args"]["model_args"]
    assert [Path(root).name for root in data["data_root"]["S2L2A"]] == ["before", "after"]
    assert data["expand_temporal_dimension"] is True
    assert model["backbone_temporal_n_timestamps"] == 2


def test_dates_in_the_names_of_files(made):
    data = made(dated)["data"]["init_args"]
    assert data["image_grep"] == {"S2L2A": ["*_t0.tif", "*_t1.tif", "*_t2.tif"]}


def test_dates_in_one_file(made):
    config = made(series)
    assert config["model"]["init_args"]["model_args"]["backbone_temporal_n_timestamps"] == 3
    assert len(config["data"]["init_args"]["dataset_bands"]["S2L2A"]) == 6


def test_missing_radar_two_sizes_and_another_number_for_no_label(made):
    config = made(missing)
    data = config["data"]["init_args"]
    assert data["allow_missing_modalities"] is True
    assert config["model"]["init_args"]["ignore_index"] == 255
    crop = data["train_transform"][0]
    assert crop["class_path"] == "albumentations.RandomCrop"
    assert crop["init_args"]["height"] == 48  # of 56: two patches of 8 pixels
    assert data["val_transform"][0]["class_path"] == "albumentations.CenterCrop"
    assert "chips differ in size" in Path("data.yaml").read_text(encoding="utf-8")


def test_one_folder_for_everything(made):
    data = made(one_folder)["data"]["init_args"]
    assert data["image_grep"] == {"S2L2A": "*_S2L2A.tif", "S1GRD": "*_S1GRD.tif", "DEM": "*_DEM.tif"}
    assert data["label_grep"] == "*_label.tif"


@pytest.mark.parametrize(
    ("layout", "task", "columns"),
    [
        (numbers, "ScalarRegressionTask", ["target"]),
        (flags, "MultiLabelClassificationTask", ["water", "forest", "town"]),
        (classes, "ClassificationTask", ["class"]),
    ],
)
def test_tables_of_labels(made, layout, task, columns):
    config = made(layout)
    assert config["model"]["class_path"] == f"terratorch.tasks.{task}"
    rows = Path(config["data"]["init_args"]["label_data_root"]).read_text(encoding="utf-8").splitlines()
    assert rows[0].split(",") == ["id", *columns]
    assert len(rows) == 13


def test_overlapping_chips_are_in_one_split(chips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(chips.ids):
        for key, folder in (("S2L2A", "s2"), ("label", "label")):
            write(tmp_path / "data" / folder / f"{name}.tif", chips.read(name, key), number // 2)
    assert main(["new", "--task", "segmentation", "--modalities", "S2L2A", "--data", "data"]) == 0
    split = {
        one: path.stem for path in Path("data_splits").glob("*.txt") for one in path.read_text(encoding="utf-8").split()
    }
    assert len(split) == len(chips.ids)
    assert all(split[one] == split[other] for one, other in zip(chips.ids[::2], chips.ids[1::2], strict=True))


def test_the_published_size_has_its_own_layers(made):
    model = made(one_folder, "--model", "terramind_v1_base")["model"]["init_args"]["model_args"]
    assert model["backbone"] == "terramind_v1_base"
    assert model["backbone_out_indices"] == [2, 5, 8, 11]
    assert model["necks"][0]["patch_size"] == 16


def spoil(name: str, chips, root: Path) -> list[str]:
    """Write a folder that cannot be used, and return the words of the command."""
    words = ["--task", "segmentation", "--modalities", "S2L2A"]
    if name == "empty":
        root.mkdir()
        return words
    four_bands(chips, root)
    first = sorted((root / "images").iterdir())[0]
    if name == "no labels":
        shutil.rmtree(root / "masks")
    elif name == "ambiguous":
        shutil.copytree(root / "images", root / "pictures")
    elif name == "several suffixes":
        for path in list((root / "images").iterdir()):
            shutil.copy(path, path.with_name(f"{path.stem}_raw.tif"))
    elif name == "sizes":
        write(first, np.ones((4, SIDE // 2, SIDE // 2), "int16"))
    elif name == "bands":
        write(first, np.ones((3, SIDE, SIDE), "int16"))
    elif name == "damaged":
        first.write_bytes(first.read_bytes()[:3000])
    elif name == "other ids":
        for path in list((root / "masks").iterdir()):
            path.rename(path.with_name(f"m{path.name}"))
    elif name == "power":
        shutil.rmtree(root / "images")
        for number, one in enumerate(chips.ids):
            power = 10 ** (chips.read(one, "S1GRD") / 10)
            write(root / "s1" / f"{one}.tif", power.astype("float32"), number)
        return ["--task", "segmentation", "--modalities", "S1GRD"]
    elif name == "codes":
        for path in (root / "masks").iterdir():
            write(path, np.full((1, SIDE, SIDE), 80, "uint8"))
    elif name == "numbers":
        for path in (root / "masks").iterdir():
            write(path, np.full((1, SIDE, SIDE), 0.5, "float32"))
    elif name == "no table":
        return ["--task", "scalar_regression", "--modalities", "S2L2A"]
    elif name == "in two lists":
        for split in ("train", "val"):
            (root / f"{split}.txt").write_text(f"{chips.ids[0]}\n", encoding="utf-8")
    return words


MESSAGES = {
    "empty": "holds no raster: no file. Expected GeoTIFFs",
    "no labels": "has no folder of labels, such as label/ or masks/: found 'images/*.tif' (12 files). Name it:",
    "ambiguous": "S2L2A: several folders fit: 'images/*.tif' (12 files), 'pictures/*.tif' (12 files). Name one",
    "several suffixes": "S2L2A: several suffixes fit: 'images/*",
    "sizes": "S2L2A has 32 x 32, label 64 x 64 pixels. Resample them to one grid",
    "bands": "S2L2A: files differ in bands: 11 with 4 bands, 1 with 3 bands, e.g. ",
    "damaged": "S2L2A: 1 of 12 files cannot be read, e.g. ",
    "other ids": "No image has a label: S2L2A has ids such as ",
    "power": "S1GRD: the files look like linear power, not decibels. Convert with 10 * log10(power).",
    "codes": "Labels hold the codes 80, e.g. ",
    "numbers": "Labels hold numbers such as 0.5, e.g. ",
    "no table": "has no table of labels for scalar_regression",
    "in two lists": "is in train and val: remove it from one of data/train.txt and data/val.txt.",
}


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_of_folders_that_cannot_be_used(name, chips, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = spoil(name, chips, tmp_path / "data")
    assert main(["new", "--data", "data", *words]) == 2
    error = capsys.readouterr().err
    assert MESSAGES[name] in error
    assert error.count("\n") == 1
    assert not Path("data.yaml").exists()


def test_months_of_two_modalities_in_one_folder(made, capsys):
    data = made(months)["data"]["init_args"]
    assert data["image_grep"] == {
        "S2L2A": ["*_S2_00.tif", "*_S2_11.tif"],
        "S1GRD": ["*_S1_00.tif", "*_S1_11.tif"],
    }
    assert data["dataset_bands"]["S2L2A"][-1] == "CLP"
    assert data["output_bands"]["S2L2A"] == ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]
    assert data["train_data_root"]["S1GRD"].endswith("data/train_features")
    assert data["test_label_data_root"].endswith("data/test_agbm")
    assert "no band of S2L2A, so the model does not get it: CLP" in capsys.readouterr().out


@pytest.mark.parametrize("pattern", ["test_features/*_S2_11.tif", "test_features/*_S2_*.tif"])
def test_one_month_or_all_that_a_pattern_names(made, pattern):
    def named(chips, root):
        return [f"S2L2A={pattern}" if word == "S2L2A,S1GRD" else word for word in months(chips, root)]

    data = made(named)["data"]["init_args"]
    assert data["image_grep"]["S2L2A"] == (["*_S2_00.tif", "*_S2_11.tif"] if "_*" in pattern else "*_S2_11.tif")


def test_ambiguous_folders_are_named(chips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spoil("ambiguous", chips, tmp_path / "data")
    assert main(["new", "--data", "data", "--task", "segmentation", "--modalities", "S2L2A=pictures"]) == 0
    spoil("several suffixes", chips, tmp_path / "other")
    words = ["--modalities", "S2L2A=images/*_raw.tif", "--labels", "masks"]
    assert main(["new", "--data", "other", "--task", "segmentation", *words]) == 0
    data = yaml.safe_load(Path("other.yaml").read_text(encoding="utf-8"))["data"]["init_args"]
    assert data["image_grep"] == {"S2L2A": "*_raw.tif"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "."], "--task and --modalities are missing: terramind new --task segmentation"),
        (["--task", "segmentation", "--modalities", "S3", "--data", "."], "Unknown modality 'S3'."),
        (["--task", "segmentation", "--modalities", "S2", "--data", "."], "Modality 'S2' is ambiguous"),
        (["--task", "segmentation", "--modalities", "S2L2A", "--data", "none"], "--data none: no such folder."),
        (["--task", "detection", "--modalities", "RGB", "--data", "."], "terramind new --from vhr10_detection"),
        (["--task", "segmentation", "--modalities", "S2L2A", "--data", ".", "--model", "base"], "no model 'base'."),
        (["--from", "demo_flod"], "There is no configuration 'demo_flod'. Did you mean 'demo_flood'?"),
        (["--from", "demo_flood", "--out", "there.yaml"], "there.yaml exists and is not replaced."),
        (["--from", "demo_flood", "--out", "there.txt"], "--out there.txt: write a name that ends in .yaml."),
    ],
)
def test_messages_of_words(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("there.yaml").touch()
    assert main(["new", *words]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]


def test_configurations_that_ship_are_listed_and_copied(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "--list"]) == 0
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()}
    there = {path.relative_to(path.parents[1]).as_posix() for path in _configs().glob("*.yaml")}
    assert {f"configs/{name}.yaml" for name in listed if "/" not in name} == there
    assert all(text.endswith(".") and len(text) > 20 for text in listed.values())
    assert main(["new", "--from", "sen1floods11_base"]) == 0
    assert main(["new", "--from", "pretrain/masked_nano", "--out", "x/nano.yaml"]) == 0
    assert "terratorch fit --config sen1floods11_base.yaml" in Path("sen1floods11_base.yaml").read_text(
        encoding="utf-8"
    )
    original = yaml.safe_load((_configs() / "pretrain" / "masked_nano.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load(Path("x/nano.yaml").read_text(encoding="utf-8")) == original


def _configs() -> Path:
    return Path(__file__).parents[2] / "configs"


@pytest.mark.skipif(not DATA.is_dir(), reason="no real samples in ../shared/data")
def test_real_chips_of_which_the_lists_name_few(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--task", "segmentation", "--modalities", "S2L1C,S1GRD", "--data", str(DATA / "sen1floods11")]
    assert main(["new", *words, "--out", "real.yaml"]) == 0
    said = capsys.readouterr().out
    assert "names 90 ids, 10 of them with images and labels" in said
    assert "so the splits are drawn" in said
    data = yaml.safe_load(Path("real.yaml").read_text(encoding="utf-8"))["data"]["init_args"]
    assert data["image_grep"] == {"S2L1C": "*_S2Hand.tif", "S1GRD": "*_S1Hand.tif"}
    assert data["allow_missing_modalities"] is True
