"""Notebooks without a Jupyter server: `python -m tests.notebooks [NAME ...]` runs cells, and stores what they give."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "notebooks"


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the cells with code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder; what a notebook sets for its process, such as the level of a log, is undone at the end."""
    before, log = Path.cwd(), logging.getLogger("lightning.pytorch")
    level = log.level
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        os.chdir(before)
        log.setLevel(level)


def run(path: Path, folder: Path) -> list[list[dict[str, Any]]]:
    """Return the outputs of each cell with code, run one after the other in a folder: text, then pictures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names: dict[str, Any] = {"__name__": "__main__"}
    found = []
    with _inside(folder):
        for number, cell in enumerate(code_cells(json.loads(path.read_text(encoding="utf-8"))), 1):
            text = io.StringIO()
            with contextlib.redirect_stdout(text):
                exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
            outputs: list[dict[str, Any]] = []
            if text.getvalue():
                lines = text.getvalue().splitlines(keepends=True)
                outputs.append({"output_type": "stream", "name": "stdout", "text": lines})
            for figure in map(pyplot.figure, pyplot.get_fignums()):
                picture = io.BytesIO()
                figure.savefig(picture, format="png", dpi=60, bbox_inches="tight")
                data = {"image/png": base64.b64encode(picture.getvalue()).decode()}
                outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
            pyplot.close("all")
            found.append(outputs)
    return found


def store(path: Path) -> None:
    """Run a notebook, and write it with its outputs."""
    with tempfile.TemporaryDirectory() as folder:
        results = run(path, Path(folder))
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for number, (cell, outputs) in enumerate(zip(code_cells(notebook), results, strict=True), 1):
        cell["outputs"], cell["execution_count"] = outputs, number
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for one in sorted(FOLDER.glob("*.ipynb")):
        if one.stem in sys.argv[1:] or not sys.argv[1:]:
            store(one)
