"""Notebooks run from start to end, and hold what they gave."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.notebooks import FOLDER, code_cells, run

NOTEBOOKS = pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
NUMBER = r"(-?\d+\.\d+)"
EXPECTED = {
    "any_to_any": {rf"S1GRD \+ DEM \+ S2L2A +{NUMBER}": (0.4, 1)},
    "burn_scars": {rf"model: test mIoU {NUMBER}": (0.55, 1), rf"nothing burnt: test mIoU {NUMBER}": (0.3, 0.5)},
    "embeddings": {rf"balanced accuracy with 40 labels: {NUMBER}": (0.7, 1), rf"cosines: \[1\. +{NUMBER}": (0.9, 1)},
    "generation": {
        rf"generated: {NUMBER} of the pixels right": (0.35, 1),
        rf"the commonest class alone: {NUMBER}": (0.1, 0.35),
        rf"mean agreement of four samples: {NUMBER}": (0.4, 1),
    },
    "large_tile": {rf"windows that touch {NUMBER}": (1.8, 9), rf"that overlap {NUMBER}": (0.8, 1.6)},
    "multi_temporal": {rf"one date: test mIoU {NUMBER}": (0.3, 0.9), rf"four dates, .*: test mIoU {NUMBER}": (0.6, 1)},
    "sen1floods11": {rf"test mIoU {NUMBER}": (0.65, 1), rf"a map of land alone: mIoU {NUMBER}": (0.3, 0.45)},
    "tokenizer": {rf"error relative to the mean of the chip: {NUMBER}": (0.1, 0.6)},
}
"""Numbers that each notebook prints, and the range in which they lie on every machine."""


def read(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def count_pictures(cells: list[list[dict[str, Any]]]) -> int:
    return sum("data" in output for outputs in cells for output in outputs)


@NOTEBOOKS
def test_outputs_are_stored(path: Path) -> None:
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds == {"stream", "display_data"}, "python -m tests.notebooks stores them"
    assert not re.search(r"/(tmp|home|work|root)/", path.read_text(encoding="utf-8"))


@NOTEBOOKS
def test_it_says_what_to_change_for_the_published_weights(path: Path) -> None:
    notebook = read(path)
    first = "".join(notebook["cells"][0]["source"])
    assert re.search(r"published|terramind_v1_base", first)
    assert "terramind_v1" in "".join("".join(cell["source"]) for cell in notebook["cells"])


@pytest.mark.slow
@NOTEBOOKS
def test_cells_run(path: Path, tmp_path: Path) -> None:
    results = run(path, tmp_path)
    text = "".join(line for outputs in results for one in outputs for line in one.get("text", ()))
    for pattern, (low, high) in EXPECTED[path.stem].items():
        found = re.search(pattern, text)
        assert found, f"no '{pattern}' in:\n{text}"
        assert low <= float(found[1]) <= high, found[0]
    assert count_pictures(results) == count_pictures([cell["outputs"] for cell in code_cells(read(path))])
