"""What SegmentationImages draws of each task, in real validations."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from lightning.pytorch import LightningModule, Trainer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from terratorch.models.model import ModelOutput
from terratorch.tasks import MultiLabelClassificationTask, SemanticSegmentationTask
from torch import nn
from torch.utils.data import DataLoader

from terramind_plugin.errors import ConfigError
from terramind_plugin.integration.callbacks import SegmentationImages
from terramind_plugin.plotting.pictures import NO_VALUE
from tests.runs.figures import FigureLogger
from tests.runs.other_tasks import TASKS, detection, series

IMAGES = "terramind_plugin.SegmentationImages"


def _show(runner: Any, changes: dict[str, Any], **arguments: Any) -> dict[str, Figure]:
    """Validate and return our figures by tag."""
    callback = {"class_path": IMAGES, "init_args": {"samples": 1, **arguments}}
    log = {"trainer.logger": {"class_path": "tests.runs.figures.FigureLogger"}}
    cli = runner.terratorch("validate", {**log, "trainer.callbacks": [callback], **changes})
    assert isinstance(cli.trainer.logger, FigureLogger)
    figures = {tag: figure for tag, figure in cli.trainer.logger.figures.items() if tag.startswith("validation/")}
    for figure in figures.values():
        figure.canvas.draw()
    return figures


def _halves(scenes: Any, folder: Path) -> str:
    """Write labels that are 1 above and 0 below and return their folder."""
    for name in scenes.chip_ids:
        with rasterio.open(scenes.root / "data" / "NDVIHand" / f"{name}_NDVIHand.tif") as file:
            profile, shape = file.profile, file.shape
        with rasterio.open(folder / f"{name}_NDVIHand.tif", "w", **profile) as file:
            file.write(np.repeat(np.array([1, 0], np.float32), shape[0] // 2)[None, :, None].repeat(shape[1], axis=2))
    return str(folder)


TILED = {
    "model.tiled_inference_on_validation": True,
    "model.tiled_inference_parameters": {"crop": 32, "stride": 16, "batch_size": 4},
}
"""Changes to a task that validates in pieces."""


def _titles(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


EXPECTED = {
    "segmentation": (["S2L1C", "S1GRD", "label", "prediction"], []),
    "pixel-wise regression": (["S2L1C", "S1GRD", "label", "prediction"], ["t/ha"]),
    "one number": (["S2L1C", "S1GRD"], ["label: 0.", "prediction: ", " t/ha"]),
    "several labels": (["S2L1C", "S1GRD"], ["label: ", "town", "prediction: "]),
    "one label": (["S2L1C", "S1GRD"], ["label: class ", "prediction: class ", "%)"]),
}


def _words(figure: Figure) -> str:
    return " ".join(
        [text.get_text() for axis in figure.axes for text in axis.texts] + [a.get_ylabel() for a in figure.axes]
    )


# TerraTorch's own plot, which it makes by default, takes the batch apart before callbacks see it.
@pytest.mark.parametrize(
    ("task", "plot_on_val"), [*[(task, 10) for task in EXPECTED], ("segmentation", 0), ("pixel-wise regression", 0)]
)
def test_each_task_is_drawn(task: str, plot_on_val: int, runner: Any, scenes: Any, tmp_path: Path) -> None:
    changes = TASKS[task](scenes, tmp_path) if task in TASKS else {}
    if task == "several labels":
        changes["model.class_names"] = ["water", "forest", "town"]
    train = scenes.root / "splits" / "flood_train_data.txt"
    figures = _show(runner, {**changes, "data.val_split": str(train), "model.plot_on_val": plot_on_val}, unit="t/ha")
    (figure,) = figures.values()
    titles, words = EXPECTED[task]
    assert _titles(figure) == titles
    assert all(word in _words(figure) for word in words), _words(figure)
    # One legend names the three colours of radar, and the classes.
    named = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert len(figure.legends) == 1
    assert len(named) == (6 if task == "segmentation" else 3), named


def test_each_date_is_drawn(runner: Any, tmp_path: Path) -> None:
    (figure,) = _show(runner, {**series(tmp_path, {"S2L2A": 2, "DEM": 2}), "model.plot_on_val": 10}).values()
    dates = [f"{name}, date {number}" for name in ("S2L2A", "DEM") for number in (1, 2)]
    assert _titles(figure) == [*dates, "label", "prediction"]
    first, second = (axis.images[0].get_array() for axis in figure.axes[:2])
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("ignored", [None, 1])
def test_a_regression_ignores_no_value_or_one(ignored: int | None, runner: Any, scenes: Any, tmp_path: Path) -> None:
    changes = TASKS["pixel-wise regression"](scenes, tmp_path)
    changes |= {"data.label_data_root": _halves(scenes, tmp_path), "model.ignore_index": ignored, **TILED}
    (figure,) = _show(runner, changes).values()
    picture = figure.axes[2].images[0].get_array()
    assert figure.axes[2].get_title() == "label"
    assert np.allclose(picture[:32], to_rgb(NO_VALUE)) == (ignored == 1)
    assert not np.allclose(picture[32:], to_rgb(NO_VALUE))


def test_boxes_are_drawn(runner: Any, scenes: Any, tmp_path: Path) -> None:
    (figure,) = _show(runner, detection(scenes, tmp_path)).values()
    assert _titles(figure) == ["S2L1C", "label", "prediction"]
    assert len(figure.axes[1].patches) == 2
    assert 0 < len(figure.axes[2].patches) <= 4
    assert {"pond", "field"} <= {text.get_text() for text in figure.legends[0].get_texts()}


def test_without_a_logger_the_log_says_once_why(runner: Any, scenes: Any, caplog: pytest.LogCaptureFixture) -> None:
    train = scenes.root / "splits" / "flood_train_data.txt"
    changes = {"trainer.callbacks": [{"class_path": IMAGES}], "data.val_split": str(train), "data.batch_size": 1}
    with caplog.at_level(logging.WARNING, logger="terramind_plugin"):
        runner.terratorch("validate", changes)
    assert _said(caplog) == ["SegmentationImages: no pictures: no logger accepts figures, as TensorBoardLogger does."]


def _said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "SegmentationImages" in record.getMessage()]


def test_tiles_have_no_thought(runner: Any) -> None:
    (figure,) = _show(runner, {**TILED, "model_args.backbone": "terramind_v1_tiny_tim"}).values()
    assert _titles(figure) == ["S2L1C", "S1GRD", "label", "prediction"]


def test_every_0th_epoch_makes_no_sense() -> None:
    with pytest.raises(ConfigError, match="every_n_epochs must be at least 1, got 0"):
        SegmentationImages(every_n_epochs=0)


class OtherTask(LightningModule):
    """A task of which nobody knows what it predicts."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


@pytest.mark.parametrize(
    ("batches", "told"),
    [
        ([{"image": torch.zeros(2, 3, 8, 8)}] * 2, "not OtherTask"),
        ([torch.zeros(2, 3)], "not OtherTask"),
    ],
)
def test_a_task_that_has_no_drawing(batches: list[Any], told: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="terramind_plugin"):
        _validate(OtherTask(), batches)
    (line,) = _said(caplog)
    assert told in line


def _validate(task: LightningModule, batches: list[Any]) -> dict[str, Figure]:
    log = FigureLogger()
    options = {"barebones": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", logger=log, callbacks=[SegmentationImages()], enable_checkpointing=False, **options
    )
    trainer.validate(task, DataLoader(batches, batch_size=None), verbose=False)
    return log.figures


def test_images_without_a_name_are_of_the_backbones_modality() -> None:
    red = torch.zeros(1, 3, 16, 16)
    red[:, 0, :8] = 1
    batch = {"image": red, "mask": torch.zeros(1, 16, 16, dtype=torch.long)}
    model = {
        "backbone": "terramind_v1_tiny",
        "backbone_pretrained": False,
        "backbone_modalities": ["S2L2A"],
        "backbone_bands": {"S2L2A": ["RED", "GREEN", "BLUE"]},
        "necks": [{"name": "terramind_pyramid"}],
        "decoder": "UNetDecoder",
        "decoder_channels": [32, 16, 16, 8],
        "num_classes": 2,
    }
    task = SemanticSegmentationTask(model, "EncoderDecoderFactory", ignore_index=-1, plot_on_val=False)
    (figure,) = _validate(task, [batch]).values()
    assert _titles(figure)[0] == "S2L2A"
    assert figure.axes[0].images[0].get_array()[0, 0].tolist() == [1, 0, 0]


class OwnStep(SemanticSegmentationTask):
    """A task that reads its batches in its own way."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step({"image": {"S2L2A": batch["x"], "coords": torch.zeros(1)}, "mask": batch["y"]}, 99)


def test_batches_of_another_form(caplog: pytest.LogCaptureFixture) -> None:
    task = OwnStep({"num_classes": 2}, model=Threshold(), ignore_index=-1, plot_on_val=False)
    batch = {"x": torch.rand(2, 3, 16, 16), "y": torch.zeros(2, 16, 16, dtype=torch.long)}
    with caplog.at_level(logging.WARNING, logger="terramind_plugin"):
        assert not _validate(task, [batch])
    assert _said(caplog) == ["SegmentationImages: no pictures: the batch has no 'image'."]


class Threshold(nn.Module):
    """A model that takes positions, too."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))

    def forward(self, x: dict[str, torch.Tensor]) -> ModelOutput:
        return ModelOutput(self.factor * x["S2L2A"][:, :2] + x["coords"].mean())


def test_positions_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    batch = {
        "image": {"S2L2A": torch.rand(2, 3, 16, 16), "coords": torch.tensor([[7.5, 50.0], [8.0, 51.0]])},
        "mask": torch.zeros(2, 16, 16, dtype=torch.long),
        "filename": ["a.tif", "b.tif"],
    }
    task = SemanticSegmentationTask({"num_classes": 2}, model=Threshold(), ignore_index=-1, plot_on_val=False)
    with caplog.at_level(logging.WARNING, logger="terramind_plugin"):
        figures = _validate(task, [batch, batch])
    assert list(figures) == ["validation/a", "validation/b"]
    assert not _said(caplog), "positions are not images, and nothing to say about"


class OwnBands(SemanticSegmentationTask):
    """A task that gives its model a part of the bands."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step({**batch, "image": batch["image"][:, :3]}, 99)


class ThreeBands(nn.Module):
    """A model that takes three bands and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> ModelOutput:
        return ModelOutput(self.convolution(x))


@pytest.mark.parametrize(
    ("kind", "bands", "names", "told"),
    [
        (OwnBands, 4, ["a.tif", "b.tif"], "no pictures: RuntimeError: .*channels"),
        (SemanticSegmentationTask, 3, ["a.tif"], "no pictures: IndexError: "),
        (SemanticSegmentationTask, 3, torch.arange(2), "no pictures: RuntimeError: "),
    ],
)
def test_what_cannot_be_drawn_ends_no_validation(
    kind: Any, bands: int, names: Any, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    task = kind({"num_classes": 2}, model=ThreeBands(), ignore_index=-1, plot_on_val=False)
    batch = {
        "image": torch.rand(2, bands, 16, 16),
        "mask": torch.zeros(2, 16, 16, dtype=torch.long),
        "filename": names,
    }
    with caplog.at_level(logging.WARNING, logger="terramind_plugin"):
        _validate(task, [batch, batch])
    (line,) = _said(caplog)
    assert re.search(told, line)


@pytest.mark.parametrize("count", [2, 4, 19])  # 19: the classes of BigEarthNet
def test_long_answers_are_seen_in_the_first_drawing(count: int) -> None:
    names = [f"Transitional woodland, shrub and sparse vegetation {number}" for number in range(count)]
    task = MultiLabelClassificationTask(
        {"num_classes": count}, model=AllLabels(count), loss="bce", class_names=names, plot_on_val=False
    )
    batch = {"image": torch.rand(1, 3, 64, 64), "label": torch.ones(1, count), "filename": ["a.tif"]}
    (figure,) = _validate(task, [batch]).values()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    for text in (figure.axes[0].title, *figure.axes[0].texts):
        extent = text.get_window_extent(canvas.get_renderer())
        assert extent.y0 >= 0
        assert extent.y1 <= figure.bbox.height


class AllLabels(nn.Module):
    """A model that sees every class in every image."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.full((1, count), 9.0))

    def forward(self, x: torch.Tensor) -> ModelOutput:
        return ModelOutput(self.scores.expand(len(x), -1))
