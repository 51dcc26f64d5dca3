"""Real Sen1Floods11 chips: one with both sensors cut into tiles, and all others with radar alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from tests.runs.real_chips import CHIPS, ENDINGS, changes_to, cut, needs_chips
from tests.runs.running import Fitted, fit_once

pytestmark = needs_chips


def test_both_sensors(runner: Any, segmentation: dict[str, Any], spain: dict[str, Any], tmp_path: Path) -> None:
    fitted: Fitted = fit_once(segmentation, tmp_path, spain)
    assert fitted.cli.trainer.callback_metrics["train/loss"].isfinite()
    assert fitted.cli.trainer.callback_metrics["val/loss"].isfinite()
    tested = runner.terratorch("test", spain, "--ckpt_path", fitted.checkpoint)
    assert 0 <= tested.trainer.callback_metrics["test/mIoU"] <= 1
    out = tmp_path / "out"
    runner.terratorch("predict", spain, "--ckpt_path", fitted.checkpoint, "--predict_output_dir", out)
    paths = sorted(out.iterdir())
    assert [path.name for path in paths] == [f"Spain_7370579_{i}_S2Hand_pred.tif" for i in (13, 14, 15)]
    source = Path(spain["data.data_root"]["S2L1C"], "Spain_7370579_13_S2Hand.tif")
    with rasterio.open(paths[0]) as result, rasterio.open(source) as raster:
        assert result.crs == raster.crs
        assert result.transform.almost_equals(raster.transform)
        assert set(np.unique(result.read())) <= {0, 1, 255}


@pytest.fixture(scope="module")
def radar(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return changes to the middle of all chips with radar; one is all NaN, one has no label, one no water."""
    root = tmp_path_factory.mktemp("radar")
    names = sorted(path.name.removesuffix("_S1Hand.tif") for path in (CHIPS / "S1GRDHand").glob("*.tif"))
    for name in names:
        for folder in ("S1GRDHand", "LabelHand"):
            file = f"{name}_{ENDINGS[folder]}.tif"
            cut(CHIPS / folder / file, root / folder / file, Window(200, 200, 96, 96))
    assert {"Paraguay_34417", "Ghana_83483", "Ghana_53713"} <= set(names)
    return changes_to(root, {"train": names, "val": names, "test": names, "predict": names}, ["S1GRD"])


@pytest.mark.parametrize("batch_size", [1, 5])
def test_radar_alone_with_empty_chips(
    runner: Any, segmentation: dict[str, Any], radar: dict[str, Any], tmp_path: Path, batch_size: int
) -> None:
    changes = radar | {"data.batch_size": batch_size}
    fitted = fit_once(segmentation, tmp_path, changes)  # with FiniteLoss
    assert fitted.cli.trainer.global_step == 10 // batch_size
    assert fitted.cli.trainer.callback_metrics["val/loss"].isfinite()
    tested = runner.terratorch("test", changes, "--ckpt_path", fitted.checkpoint)
    assert tested.trainer.callback_metrics["test/loss"].isfinite()
    out = tmp_path / "out"
    runner.terratorch("predict", changes, "--ckpt_path", fitted.checkpoint, "--predict_output_dir", out)
    assert len(list(out.iterdir())) == 10
    with rasterio.open(out / "Paraguay_34417_S1Hand_pred.tif") as raster:
        assert (raster.read() == 255).all()  # no data
    with rasterio.open(out / "Spain_7370579_S1Hand_pred.tif") as raster:
        assert set(np.unique(raster.read())) <= {0, 1}


def test_empty_chips_as_missing_modality(segmentation: dict[str, Any], radar: dict[str, Any], tmp_path: Path) -> None:
    changes = radar | {"data.allow_missing_modalities": True, "data.batch_size": 2}
    fitted = fit_once(segmentation, tmp_path, changes)
    assert fitted.cli.trainer.callback_metrics["val/loss"].isfinite()
