"""The command's exit status, and declared offsets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from terramind_plugin.samples.checks.run import check_data
from tests.check.spoiling import every, look, one, plan
from tests.runs.running import segmentation_config

S1, S2 = "S1GRD", "S2L1C"


def test_a_rare_class_under_a_loss_that_does_not_see_it(chips: Any, check: Any) -> None:
    rare = np.zeros((1, 64, 64), np.int16)
    rare[0, :8, :8] = 1
    every("Label", lambda v: rare)(chips)
    (found,) = [f for f in check(chips) if f.check == "labels: balance"]
    assert found.verdict == "note"
    assert "98.44% class 0 (Land), 1.56% class 1 (Water)" in found.seen
    assert "class_weights: [0.22, 1.78]" in found.advice
    assert check(chips, {"model.loss": "dice"}) == check(chips, {"model.class_weights": [0.2, 1.8]}) == []


@pytest.mark.parametrize("declared", [-1000, 0, None])
def test_an_offset_in_the_files(declared: int | None, chips: Any, check: Any) -> None:
    every(S2, lambda v: v + np.uint16(1000))(chips)
    found = check(chips, {} if declared is None else {"data.offsets": {S2: declared}})
    assert [f.check for f in found if f.check.startswith("values")] == (
        ["values: S2L1C offset"] if declared is None else []
    )
    assert all("offsets: {S2L1C: -1000}" in f.advice for f in found)


@pytest.mark.parametrize("declared", [-1000, 0])
def test_no_offset_in_the_files(declared: int, sound: Any, check: Any) -> None:
    found = [f for f in check(sound, {"data.offsets": {S2: declared}}) if f.check == "values: S2L1C offset"]
    assert [f.verdict for f in found] == (["error"] if declared else [])
    assert all("12 of 12 files lack the offset of +1000, but offsets adds -1000" in f.seen for f in found)


@pytest.mark.parametrize(("words", "status"), [((), 0), (("--strict",), 0)])
def test_exit_status_of_sound_data(words: tuple[str, ...], status: int, sound: Any, tmp_path: Path) -> None:
    assert _main(sound, tmp_path, words) == status


def test_exit_status_of_warnings_and_errors(chips: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one(S1, lambda v: np.full_like(v, np.nan))(chips)
    assert _main(chips, tmp_path) == 0
    assert _main(chips, tmp_path, ("--strict",)) == 1
    every(S1, lambda v: v[::-1])(chips)
    assert _main(chips, tmp_path) == 2
    out = capsys.readouterr().out
    assert "swapped" in out
    assert "1 error, 1 warning, 1 note" in out


def _main(dataset: Any, folder: Path, words: tuple[str, ...] = ()) -> int:
    import yaml

    from terramind_plugin.cli import main

    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(segmentation_config(dataset)))
    return main(["check", "-c", str(path), "--no_step", *words])


def test_a_chip_of_two_splits_counts_once(chips: Any) -> None:
    every(S1, lambda v: v[::-1])(chips)
    val = str(chips.root / "splits" / "flood_valid_data.txt")
    found = {finding.check: finding for finding in look(chips, {"data.test_split": val})}
    assert "in 10 of 10 files VH is brighter than VV" in found["values: S1GRD polarisations"].seen
    assert "2 ids are in val and test" in found["files: splits"].seen


def test_splits_in_linked_folders_overlap(chips: Any, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(chips.root / "data")
    roots = {S2: str(tmp_path / "linked" / "S2L1CHand"), S1: str(tmp_path / "linked" / "S1GRDHand")}
    val = str(chips.root / "splits" / "flood_valid_data.txt")
    found = look(chips, {"data.test_data_root": roots, "data.test_split": val})
    (overlap,) = [finding for finding in found if finding.check == "files: splits"]
    assert "2 ids are in val and test" in overlap.seen


def test_nothing_is_ok_beside_an_error(chips: Any) -> None:
    one(S1, lambda v: v[:1])(chips)
    found = check_data(plan(chips), ignored=-1)
    assert {f.check for f in found if f.verdict == "ok"} == {"values", "labels", "labels: balance"}
