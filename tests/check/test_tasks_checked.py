"""Every task that trains is checked without an alarm, whatever its metrics are called."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import rasterio
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
    found = look(sound, tmp_path, series(tmp_path, {"S2L2A": 2, "DEM": 3}), step=True)
    errors = {finding.check: finding.seen for finding in found if finding.verdict == "error"}
    assert re.search(r"e\.g\. chip_0: \S+/S2L2A/chip_0.tif has 2, \S+/DEM/chip_0.tif has 3", errors["files: dates"])
    assert "different numbers of dates" in errors["run: step"]
    assert "chip_" in errors["run: step"]
    one = look(sound, tmp_path, series(tmp_path, {"S2L2A": 2, "DEM": 1}), step=True)
    assert [str(finding) for finding in one if finding.verdict == "error"] == []


def test_dates_are_compared_with_the_model_and_among_samples(sound: Any, tmp_path: Path) -> None:
    plain = {"model_args.backbone_temporal_subset_lengths": None, "model_args.backbone_temporal_n_timestamps": None}
    three = series(tmp_path, {"S2L2A": 3, "DEM": 1}) | plain

    def dates(changes: dict[str, Any]) -> dict[str, Finding]:
        found = look(sound, tmp_path, three | changes, step=False)
        return {finding.check: finding for finding in found if "dates" in finding.check}

    wrong = dates({"model_args.backbone_temporal_pooling": "diff"})["files: dates"]
    assert (wrong.verdict, "of 4 samples do not have the 2 dates that" in wrong.seen) == ("error", True)
    assert "temporal_pooling: diff needs, e.g." in wrong.seen
    assert "files: dates" not in dates({"model_args.backbone_temporal_pooling": "max"})
    with rasterio.open(tmp_path / "S2L2A" / "chip_3.tif") as file:
        two, profile = file.read()[: file.count // 3 * 2], file.profile
    with rasterio.open(tmp_path / "S2L2A" / "chip_3.tif", "w", **{**profile, "count": len(two)}) as file:
        file.write(two)
    odd = dates({"data.batch_size": 2})["files: dates"]
    assert (odd.verdict, odd.seen.endswith(f"like the others, e.g. {tmp_path / 'S2L2A' / 'chip_3.tif'}: 2.")) == (
        "error",
        True,
    )
    assert dates({"data.batch_size": 1})["files: dates"].verdict == "note"
