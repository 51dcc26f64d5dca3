"""Which file belongs to which sample, without a split file and in folders of folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from terramind_plugin.samples.layout import Layout


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    """Return the folders of two modalities: both have a, S2 alone has b, S1 alone has c; more lies in part-1."""
    names = ["s2/a_S2.tif", "s1/a_S1.tif", "s2/b_S2.tif", "s1/c_S1.tif", "s2/part-1/d_S2.tif", "s1/part-1/d_S1.tif"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return {"S2": tmp_path / "s2", "S1": tmp_path / "s1"}


PATTERNS = {"S2": "*_S2.tif", "S1": "*_S1.tif"}


def test_samples_are_the_files_of_the_first_modality_or_of_any(roots: dict[str, Path]) -> None:
    assert Layout(roots, PATTERNS).found() == ["a", "b"]
    assert Layout(roots, PATTERNS, optional=["S2", "S1"]).found() == ["a", "b", "c"]
    files = Layout(roots, PATTERNS).files("b")
    assert files == {"S2": [str(roots["S2"] / "b_S2.tif")], "S1": []}


def test_a_prefix_is_a_folder_that_ids_leave_out(roots: dict[str, Path]) -> None:
    layout = Layout(roots, PATTERNS, prefix="part-1/")
    assert layout.found() == layout.listed(["d"]) == ["part-1/d"]
    assert layout.files("part-1/d")["S1"] == [str(roots["S1"] / "part-1" / "d_S1.tif")]


def test_a_pattern_may_lead_into_a_folder(roots: dict[str, Path]) -> None:
    layout = Layout(roots, {"S2": "*/d_S2.tif", "S1": "*_S1.tif"})
    assert layout.files("part")["S2"] == [str(roots["S2"] / "part-1" / "d_S2.tif")]
    assert layout.files("other")["S2"] == []


def test_a_pattern_without_an_ending_leaves_it_out_of_ids(roots: dict[str, Path]) -> None:
    assert Layout({"S2": roots["S2"]}, {"S2": "*"}).found() == ["a_S2", "b_S2", "part-1"]
