"""The picture of the data, and the steps that tell how long an epoch takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.image import imread

from terramind_plugin.check.run import check
from terramind_plugin.check.step import _duration
from terramind_plugin.cli import main
from terramind_plugin.samples.checks.findings import Finding
from tests.runs.running import change, segmentation_config


def _config(dataset: Any, folder: Path, changes: dict[str, Any] | None = None) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(change(segmentation_config(dataset), changes or {})))
    return path


def _run(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings if finding.check.startswith("run")}


def test_a_sheet_and_a_timed_step(sound: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "new" / "sheet.png"
    assert main(["check", "-c", str(_config(sound, tmp_path)), "--sheet", str(sheet), "--timed"]) == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"training {len(sound.splits['train']) // 2} x" in out
    assert "GB at the peak" in out
    assert [path.name for path in sheet.parent.iterdir()] == ["sheet.png"]
    picture = imread(sheet)[..., :3]
    assert picture.shape[0] > 1000
    assert len(np.unique((picture * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 1000
    # Nothing but the picture and the configuration is left behind.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "new"]


def test_a_sheet_of_other_modalities(sound: Any, tmp_path: Path) -> None:
    from terramind_plugin.check.sheet import draw_sheet
    from terramind_plugin.data.datamodule import TerraMindDataModule
    from terramind_plugin.samples.plan import describe_data

    names = ["S2L2A", "DEM", "LULC", "NDVI"]
    root = sound.root / "data"
    module = TerraMindDataModule(
        batch_size=1,
        modalities=names,
        data_root={name: str(root / f"{name}Hand") for name in names},
        image_grep={name: f"*_{name}Hand.tif" for name in names},
        dataset_bands={"S2L2A": list("ABCDEFGHIJKL")},
        output_bands={"S2L2A": ["B", "C"]},
        means={"S2L2A": [1.0, 2.0]},
        stds={"S2L2A": [1.0, 2.0]},
    )
    plan = describe_data(module)
    assert plan is not None
    draw_sheet(plan, tmp_path / "sheet.png", samples=4)
    assert imread(tmp_path / "sheet.png").shape[2] == 4


def test_a_sheet_that_cannot_be_written(sound: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    config = _config(sound, tmp_path)
    assert main(["check", "-c", str(config), "--sheet", str(tmp_path / "file" / "sheet.png")]) == 2
    assert "sheet.png cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_args.backbone_modalities": ["S2L1C"]}, "modality 'S1GRD' that it does not take"),
        ({"data.batch_size": 50}, "No training batch"),
    ],
)
def test_a_step_that_fails(changes: dict[str, Any], message: str, sound: Any, tmp_path: Path) -> None:
    found = _run(check(_config(sound, tmp_path, changes), [], timed=True))
    assert found["run: step"].verdict == "error"
    assert message in found["run: step"].seen
    assert "\n" not in found["run: step"].seen


def test_caches_are_not_written_by_a_check(sound: Any, tmp_path: Path) -> None:
    changes = {"model.freeze_backbone": True, "model_args.backbone_feature_cache": str(tmp_path / "cache")}
    found = _run(check(_config(sound, tmp_path, changes), [], timed=True))
    assert found["run: time"].verdict == "ok"
    assert not (tmp_path / "cache").exists()


def test_durations() -> None:
    assert [_duration(seconds) for seconds in (3.2, 600, 9000)] == ["3 s", "10 min", "2.5 h"]
