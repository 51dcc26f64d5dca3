"""Thinking-in-Modalities through fit, test and predict: both configurations that ship, simulated and real chips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml

from tests.runs.real_chips import needs_chips
from tests.runs.running import REPOSITORY, Runner, fit_once

FAST = {"trainer.accelerator": "cpu", "trainer.devices": 1, "trainer.precision": 32, "trainer.max_epochs": 1}
FAST |= {"trainer.logger": False, "data.num_workers": 0, "data.batch_size": 2}
WRITER = {"trainer.callbacks": [{"class_path": "terramind_plugin.GeoTiffWriter"}]}
RANDOM_WEIGHTS = {"model_args.backbone_pretrained": False}
TINY = {"model_args.backbone": "terramind_v1_tiny_tim", "model_args.decoder_channels": [32, 16, 16, 8]}
CHANGES = {"demo_flood_tim": {}, "sen1floods11_base_tim_lulc": RANDOM_WEIGHTS | TINY}
"""The demo runs as it is: its small weights ship."""


@pytest.fixture
def simulated(segmentation: dict[str, Any]) -> dict[str, Any]:
    """Return changes to the simulated chips."""
    given = segmentation["data"]["init_args"].items()
    return {f"data.{name}": value for name, value in given if "_" in name and name != "class_names"}


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "configs" / f"{name}.yaml").read_text())


def _fit_test_predict(name: str, changes: dict[str, Any], folder: Path) -> list[Path]:
    """Return the predictions of a configuration after one epoch."""
    base = _read(name)
    changes = FAST | {"trainer.default_root_dir": str(folder)} | changes
    fitted = fit_once(base, folder, changes)
    metrics = fitted.cli.trainer.callback_metrics
    assert metrics["train/loss"].isfinite()
    assert metrics["val/loss"].isfinite()
    again, changes = Runner(base, folder), changes | WRITER
    tested = again.terratorch("test", changes, "--ckpt_path", fitted.checkpoint)
    assert 0 <= tested.trainer.callback_metrics["test/mIoU"] <= 1
    again.terratorch("predict", changes, "--ckpt_path", fitted.checkpoint, "--predict_output_dir", folder / "out")
    return sorted((folder / "out").iterdir())


def _check(paths: list[Path], sources: Path) -> None:
    assert paths
    for path in paths:
        with rasterio.open(path) as result, rasterio.open(sources / path.name.replace("_pred", "")) as source:
            assert (result.crs, result.shape) == (source.crs, source.shape)
            assert result.transform.almost_equals(source.transform)
            assert set(np.unique(result.read())) <= {0, 1, 255}


@pytest.mark.parametrize("name", CHANGES)
def test_simulated_chips(name: str, simulated: dict[str, Any], tmp_path: Path) -> None:
    paths = _fit_test_predict(name, CHANGES[name] | simulated, tmp_path)
    _check(paths, Path(simulated["data.data_root"]["S2L1C"]))


@needs_chips
@pytest.mark.parametrize("name", CHANGES)
def test_real_chips(name: str, spain: dict[str, Any], tmp_path: Path) -> None:
    paths = _fit_test_predict(name, CHANGES[name] | spain, tmp_path)
    _check(paths, Path(spain["data.data_root"]["S2L1C"]))


@pytest.mark.slow
def test_base_size_as_it_ships(simulated: dict[str, Any], tmp_path: Path) -> None:
    """Only the precision is not that of the file: a CPU has no float16."""
    paths = _fit_test_predict("sen1floods11_base_tim_lulc", RANDOM_WEIGHTS | simulated, tmp_path)
    _check(paths, Path(simulated["data.data_root"]["S2L1C"]))


@pytest.fixture(scope="module")
def sizes(segmentation: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Return the sizes of checkpoints of the tiny model, optimiser included, in bytes."""
    kinds = {
        "plain": {},
        "whole": {"model_args.backbone": "terramind_v1_tiny_tim"},
        "without generator": {
            "model_args.backbone": "terramind_v1_tiny_tim",
            "model_args.backbone_tim_store_generator": False,
        },
    }
    made = {}
    for kind, changes in kinds.items():
        fitted = fit_once(segmentation, tmp_path_factory.mktemp(kind.replace(" ", "_")), changes)
        saved = torch.load(fitted.checkpoint, weights_only=False)
        assert saved["optimizer_states"][0]["state"]
        made[kind] = fitted.checkpoint.stat().st_size
    return made


def test_checkpoints_are_small(sizes: dict[str, int]) -> None:
    assert sizes["whole"] <= 2.2 * sizes["plain"]
    # Token embeddings of the imagined land cover are all that is left.
    assert sizes["without generator"] <= 1.2 * sizes["plain"]
