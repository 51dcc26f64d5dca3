"""A small task, and commands over rasters with odd values."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from terramind_plugin.check.run import check
from terramind_plugin.cli import main
from tests.inference.conftest import make_task

RADAR = {
    "data.modalities": ["S1GRD"],
    "data.data_root": {"S1GRD": "nowhere"},
    "data.image_grep": {"S1GRD": "*.tif"},
    "model_args.backbone_modalities": ["S1GRD"],
}


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return configuration and checkpoint of a task that segments radar images."""
    return make_task(tmp_path_factory.mktemp("task"), RADAR)


@pytest.fixture(scope="session")
def run(task: tuple[Path, Path]) -> Any:
    """Return a function that runs a command over rasters and returns its exit status, of check the findings."""
    config, checkpoint = task

    def command(name: str, files: Sequence[Path], out: Path, **data: Any) -> Any:
        if name == "map":
            words = ["map", "-c", config, "--ckpt_path", checkpoint, "--scene", *files, "--out", out]
            return main([str(word) for word in [*words, "--crop", 64, "--margin", 4, "--accelerator", "cpu"]])
        if name == "generate":
            words = ["generate", *files, "--modality", "S1GRD", "--to", "DEM,LULC", "--out", out]
            words += ["--model", "terramind_sim_nano"]
            words += ["--steps", 2, "--probabilities", "--accelerator", "cpu"]
            return main([str(word) for word in words])
        content = yaml.safe_load(config.read_text())
        content["data"]["init_args"] |= {"batch_size": 8, **data}
        for key in ("train_split", "val_split", "test_split", "predict_split"):
            content["data"]["init_args"].pop(key, None)
        folder = str(files[0].parent)
        out.mkdir(parents=True, exist_ok=True)
        own = out.parent / f"{out.name}.yaml"
        if name == "predict":
            content["data"]["init_args"] |= {"predict_data_root": {"S1GRD": folder}}
            own.write_text(yaml.safe_dump(content))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", ["terramind"])
                patch.chdir(out.parent)  # TerraTorch keeps a copy of the configuration where it runs
                words = ["predict", "--config", own, "--predict_output_dir", out]
                return main([str(word) for word in words])
        for key in ("data_root", "label_data_root"):
            content["data"]["init_args"].pop(key, None)
        labels = {"label_grep": "*.tif", "train_label_data_root": str(files[0].parent.parent / "labels")}
        content["data"]["init_args"] |= {"train_data_root": {"S1GRD": folder}, **labels, **data}
        own.write_text(yaml.safe_dump(content))
        return check(own, [])

    return command
