"""Configurations of tasks other than segmentation run from fit over test to predict."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml

from tests.runs.made_chips import MAKE, class_names
from tests.runs.running import REPOSITORY

CONFIGS = REPOSITORY / "configs"
QUICK = {
    "--trainer.accelerator": "cpu",
    "--trainer.devices": 1,
    "--trainer.precision": 32,
    "--trainer.max_epochs": 1,
    "--trainer.logger": "false",
    "--trainer.enable_progress_bar": "false",
    "--trainer.enable_model_summary": "false",
    "--data.init_args.num_workers": 0,
    "--data.init_args.batch_size": 2,
    "--model.init_args.model_args.backbone": "terramind_v1_tiny",
    "--model.init_args.model_args.backbone_pretrained": "false",
}
"""The configuration as it ships, made small."""


def write_quickly(name: str, folder: Path, **model_args: float) -> Path:
    """Return a configuration without the callbacks that draw or need a logger, with further arguments of the model."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    loud = ("RichProgressBar", "LearningRateMonitor", "StateDictAwareModelCheckpoint")
    callbacks = config["trainer"]["callbacks"]
    config["trainer"]["callbacks"] = [entry for entry in callbacks if entry["class_path"] not in loud]
    config["model"]["init_args"]["model_args"].update(model_args)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def run(command: str, path: Path, *words: str) -> Any:
    from terratorch.cli_tools import build_lightning_cli

    options = [f"{key}={value}" for key, value in QUICK.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["terratorch", command, "--config", str(path), *options, *words])
        return build_lightning_cli()


def train_and_predict(name: str, folder: Path, **model_args: float) -> Path:
    """Return the folder with the predictions."""
    MAKE[name](folder)
    path = write_quickly(name, folder, **model_args)
    run("fit", path)
    checkpoint = f"output/{name}/checkpoints/best.ckpt"
    run("test", path, "--ckpt_path", checkpoint)
    run("predict", path, "--ckpt_path", checkpoint, "--predict_output_dir", "out")
    return folder / "out"


def read_table(folder: Path) -> list[dict[str, str]]:
    (path,) = folder.iterdir()
    assert path.name == "predictions.csv"
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_classification(folder: Path) -> None:
    names = class_names("eurosat_classification")
    rows = read_table(train_and_predict("eurosat_classification", folder))
    assert len(rows) == 2
    for row in rows:
        assert list(row) == ["file", "class", "class_name"]
        assert row["class_name"] == names[int(row["class"])]


def test_multilabel(folder: Path) -> None:
    names = class_names("bigearthnet_multilabel")
    rows = read_table(train_and_predict("bigearthnet_multilabel", folder))
    assert [Path(row["file"]).name for row in rows] == ["patch_6.tif", "patch_7.tif"]
    for row in rows:
        assert list(row) == ["file", *names]
        assert all(0 < float(row[name]) < 1 and len(row[name]) < 14 for name in names)


def test_scalar_regression(folder: Path) -> None:
    rows = read_table(train_and_predict("tree_cover_scalar", folder))
    assert [list(row) for row in rows] == [["file", "tree_cover"]] * 2
    assert all(np.isfinite(float(row["tree_cover"])) and len(row["tree_cover"]) < 14 for row in rows)


def test_pixelwise_regression(folder: Path) -> None:
    out = train_and_predict("canopy_height_pixels", folder)
    assert {path.name for path in out.iterdir()} == {"chip_6_pred.tif", "chip_7_pred.tif"}
    for path in out.iterdir():
        with rasterio.open(path) as raster:
            assert raster.dtypes == ("float32",)
            assert np.isfinite(raster.read()).all()


@pytest.mark.slow
@pytest.mark.parametrize("framework", ["faster-rcnn", "fcos", "retinanet"])
def test_detection(framework: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(QUICK, "--model.init_args.model_args.framework", framework)
    monkeypatch.setitem(QUICK, "--model.init_args.score_threshold", 0.0)
    # A model that has learnt nothing scores low.
    threshold = {"framework_score_thresh": 0.0} if framework == "fcos" else {}
    rows = read_table(train_and_predict("vhr10_detection", folder, **threshold))
    assert rows
    names = class_names("vhr10_detection")
    for row in rows:
        assert list(row) == ["file", "xmin", "ymin", "xmax", "ymax", "class", "class_name", "score"]
        assert row["file"] in ("scene_7.tif", "scene_8.tif")
        assert 0 <= float(row["xmin"]) <= float(row["xmax"]) <= 64
        assert row["class_name"] == names[int(row["class"])]
        assert 0 <= float(row["score"]) <= 1
