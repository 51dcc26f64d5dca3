"""Every task that trains is checked without an alarm, whatever its metrics are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from terramind_plugin.check.run import check
from terramind_plugin.samples.checks.findings import Finding
from tests.runs.other_tasks import TASKS, series
from tests.runs.running import change, segmentation_config


def look(dataset: Any, folder: Path, changes: dict[str, Any], step: bool = True) -> list[Finding]:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(change(segmentation_config(dataset), changes)))
    return check(path, [], 4, step=step)


@pytest.mark.parametrize(
    ("task", "step"),
    [
        (task, step) if not step else pytest.param(task, step, marks=pytest.mark.slow)
        for task in TASKS
        for step in (0, 1)
    ],
)
def test_a_task_is_checked(task: str, step: int, sound: Any, tmp_path: Path) -> None:
    found = look(sound, tmp_path, TASKS[task](sound, tmp_path), bool(step))
    assert [str(finding) for finding in found if finding.verdict in ("warning", "error")] == []
    assert [finding.verdict for finding in found if finding.check == "run: step"] == ["ok"] * step
    monitor = {"trainer.callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/nothing"}}]}
    if not step:
        found = look(sound, tmp_path, {**TASKS[task](sound, tmp_path), **monitor}, False)
        assert [finding.check for finding in found if finding.verdict == "error"] == ["yaml: monitor"]


def test_keys_of_time_series_are_read(sound: Any, tmp_path: Path) -> None:
    found = look(sound, tmp_path, series(tmp_path, {"S2L2A": 2, "DEM": 2}), step=True)
    assert [str(finding) for finding in found if finding.verdict == "error"] == []
    assert [finding.verdict for finding in found if finding.check == "run: step"] == ["ok"]
    misspelt = series(tmp_path, {"S2L2A": 2, "DEM": 2}) | {"model_args.backbone_temporal_poolin": "max"}
    (wrong,) = [f for f in look(sound, tmp_path, misspelt, step=False) if f.check == "yaml: keys"]
    assert "Did you mean 'backbone_temporal_pooling'" in wrong.advice


def test_modalities_with_other_numbers_of_dates(sound: Any, tmp_path: Path) -> None:
    found = look(sound, tmp_path, series(tmp_path, {"S2L2A": 2, "DEM": 1}), step=True)
    errors = {finding.check: finding.seen for finding in found if finding.verdict == "error"}
    assert "chip_0: S2L2A 2, DEM 1" in errors["files: dates"]
    assert "different numbers of dates" in errors["run: step"]
    assert "chip_" in errors["run: step"]
