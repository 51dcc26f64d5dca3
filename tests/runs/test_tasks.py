"""TerraTorch's other tasks with this backbone and data module."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from terramind_plugin.backbones.encoder import TerraMindBackbone


def test_pixelwise_regression(runner: Any, scenes: Any, tmp_path: Path) -> None:
    checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(tmp_path), "filename": "last"}}
    changes = {
        "data.task": "regression",
        "data.num_classes": ...,
        "data.class_names": ...,
        "data.label_data_root": str(scenes.root / "data" / "NDVIHand"),
        "data.label_grep": "*_NDVIHand.tif",
        "model.class_path": "terratorch.tasks.PixelwiseRegressionTask",
        "model.loss": "rmse",
        "model.class_names": ...,
        "model_args.num_classes": ...,
        "trainer.enable_checkpointing": True,
        "trainer.callbacks": [{"class_path": "terramind_plugin.GeoTiffWriter"}, checkpoint],
    }
    cli = runner.terratorch("fit", changes)
    assert isinstance(cli.model.model.encoder, TerraMindBackbone)
    assert cli.trainer.callback_metrics["val/RMSE"].isfinite()
    options = ["--ckpt_path", tmp_path / "last.ckpt", "--predict_output_dir", tmp_path / "out"]
    runner.terratorch("predict", changes, *options)
    (path,) = (tmp_path / "out").iterdir()
    with rasterio.open(path) as raster:
        assert raster.dtypes == ("float32",)
        assert np.isnan(raster.nodata)
        assert len(np.unique(raster.read())) > 100


def test_classification(runner: Any, scenes: Any, tmp_path: Path) -> None:
    landscapes = ["Basin", "Delta", "Plain", "Valley"]
    table = tmp_path / "labels.csv"
    lines = [f"{name},{landscapes.index(re.split('_', name)[0])}" for name in scenes.chip_ids]
    table.write_text("\n".join(["id,label", *lines]) + "\n")
    checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(tmp_path), "filename": "last"}}
    changes = {
        "data.task": "classification",
        "data.num_classes": 4,
        "data.class_names": landscapes,
        "data.label_data_root": str(table),
        "data.label_grep": ...,
        "model.class_path": "terratorch.tasks.ClassificationTask",
        "model.class_names": landscapes,
        "model_args.necks": [
            {"name": "SelectIndices", "indices": [11]},
            {"name": "ReshapeTokensToImage", "remove_cls_token": False},
        ],
        "model_args.decoder": "IdentityDecoder",
        "model_args.decoder_channels": ...,
        "model_args.num_classes": 4,
        "trainer.enable_checkpointing": True,
        "trainer.callbacks": [{"class_path": "terramind_plugin.GeoTiffWriter"}, checkpoint],
    }
    cli = runner.terratorch("fit", changes)
    assert isinstance(cli.model.model.encoder, TerraMindBackbone)
    assert cli.trainer.callback_metrics["val/loss"].isfinite()
    options = ["--ckpt_path", tmp_path / "last.ckpt", "--predict_output_dir", tmp_path / "out"]
    runner.terratorch("predict", changes, *options)
    (path,) = (tmp_path / "out").iterdir()
    assert path.name == "predictions.csv"
    (row,) = list(csv.DictReader(path.open()))
    assert Path(row["file"]).name == f"{scenes.splits['test'][0]}_S2Hand.tif"
    assert row["class_name"] == landscapes[int(row["class"])]
