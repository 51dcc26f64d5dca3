"""What SegmentationImages draws of each task, in real validations."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from figures import FigureLogger
from matplotlib.figure import Figure
from other_tasks import TASKS, detection, series


def _show(runner: Any, changes: dict[str, Any], **arguments: Any) -> dict[str, Figure]:
    """Validate and return the figures by tag, drawn."""
    logger = {"class_path": "figures.FigureLogger"}
    images = {"class_path": "terramind_plugin.SegmentationImages", "init_args": {"samples": 1, **arguments}}
    cli = runner.terratorch("validate", {**changes, "trainer.logger": logger, "trainer.callbacks": [images]})
    assert isinstance(cli.trainer.logger, FigureLogger)
    figures = cli.trainer.logger.figures
    for figure in figures.values():
        figure.canvas.draw()
        if KEEP:
            figure.savefig(f"/tmp/images/{len(list(Path('/tmp/images').iterdir()))}.png", dpi=100)
    return {tag: figure for tag, figure in figures.items() if tag.startswith("validation/")}


import os

KEEP = os.environ.get("KEEP")


def _titles(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


@pytest.mark.parametrize("plot", [0, 10])
@pytest.mark.parametrize("task", ["segmentation", *TASKS])
def test_each_task_is_drawn(task: str, plot: int, runner: Any, scenes: Any, tmp_path: Path) -> None:
    changes = TASKS[task](scenes, tmp_path) if task in TASKS else {}
    changes["data.val_split"] = str(scenes.root / "splits" / "flood_train_data.txt")
    (figure,) = _show(runner, {**changes, "model.plot_on_val": plot}, unit="m").values()
    inputs = ["S2L1C", "S1GRD"]
    assert _titles(figure)[:2] == inputs


def test_dates_are_drawn_side_by_side(runner: Any, tmp_path: Path) -> None:
    for plot in (0, 10):
        (figure,) = _show(runner, {**series(tmp_path, {"S2L2A": 2, "DEM": 2}), "model.plot_on_val": plot}).values()
        dates = [f"{name}, date {number}" for name in ("S2L2A", "DEM") for number in (1, 2)]
        assert _titles(figure) == [*dates, "label", "prediction"]


def test_boxes_are_drawn(runner: Any, scenes: Any, tmp_path: Path) -> None:
    (figure,) = _show(runner, detection(scenes, tmp_path)).values()
    assert _titles(figure) == ["image", "label", "prediction"]
    label, prediction = (len(axis.patches) for axis in figure.axes[1:])
    assert (label, prediction) == (2, 4)
