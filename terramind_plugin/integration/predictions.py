"""What each of TerraTorch's tasks predicts, and how that is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from terratorch.tasks import (
    ClassificationTask,
    MultiLabelClassificationTask,
    ObjectDetectionTask,
    PixelwiseRegressionTask,
    ScalarRegressionTask,
    SemanticSegmentationTask,
)
from torch import Tensor

from terramind_plugin.plotting import plot_boxes, plot_sample, plot_values

MAPS = (SemanticSegmentationTask, PixelwiseRegressionTask)
"""Tasks with an answer for each pixel."""
ONE_ANSWER = (ClassificationTask, ScalarRegressionTask)
"""Tasks with one answer for each image; those with several labels are among the former."""


def keys_of(task: Any) -> tuple[str, ...]:
    """Return what a batch must hold to be drawn; nothing for a task that has no drawing.

    Args:
        task: Any task.
    """
    if isinstance(task, ObjectDetectionTask):
        return ("image", task.boxes_field, task.labels_field)
    if isinstance(task, MAPS):
        return ("image", "mask")
    return ("image", "label") if isinstance(task, ONE_ANSWER) else ()


def label_of(task: Any, batch: Mapping[str, Any]) -> Any:
    """Return the labels of a batch, one for each sample: a tensor, or for detection pairs of boxes and class ids.

    Args:
        task: One that can be drawn.
        batch: As the task's validation step takes it.
    """
    _, *keys = keys_of(task)
    return batch[keys[0]] if len(keys) == 1 else list(zip(*(batch[key] for key in keys), strict=True))


def predict(task: Any, batch: Mapping[str, Any]) -> Any:
    """Return the outputs of a batch as the task validates them, in the form of `label_of`.

    Args:
        task: One that can be drawn.
        batch: As the task's validation step takes it.
    """
    images = batch["image"]
    if isinstance(task, ObjectDetectionTask):
        found = task(images).output
        return [(one["boxes"], one["labels"]) for one in task.apply_nms_batch(found, len(found))]
    rest = {key: batch[key] for key in batch.keys() - {"image", "mask", "label", "filename"}}
    return task.handle_full_or_tiled_inference(images, task.tiled_inference_on_validation, **rest).output


def draw(
    task: Any,
    images: Mapping[str, Tensor],
    label: Any,
    output: Any,
    class_names: Sequence[str],
    title: str,
    unit: str,
    bands: Mapping[str, Sequence[object] | None] | None,
    pictures: Mapping[str, np.ndarray] | None,
) -> Figure:
    """Return a figure of one sample.

    Args:
        task: One that can be drawn.
        images: Tensors [bands, H, W] or [bands, dates, H, W] by modality.
        label: The sample's part of `label_of`.
        output: The sample's part of `predict`.
        class_names: Names of the classes; none where they have none.
        title: Text below.
        unit: Unit of continuous values.
        bands: As in `plot_sample`.
        pictures: As in `plot_sample`.
    """
    if isinstance(task, ObjectDetectionTask):
        return plot_boxes(images, label, output, class_names, title, bands)
    if isinstance(task, SemanticSegmentationTask):
        ids = label[0] if label.ndim == 3 else label
        return plot_sample(images, ids, output.argmax(dim=0), class_names, title, bands, pictures)
    if isinstance(task, PixelwiseRegressionTask):
        ignored = task.hparams.get("ignore_index")
        values = label if ignored is None else label.float().masked_fill(label == ignored, torch.nan)
        return plot_values(images, values, output, title, unit, bands, pictures)
    words = say_answers(task, label.flatten(), output.flatten(), class_names, unit)
    return plot_sample(images, None, None, None, f"{title}\n{words}", bands, pictures)


def say_answers(task: Any, label: Tensor, output: Tensor, class_names: Sequence[str], unit: str) -> str:
    """Return label and prediction of an image in words, on a line each.

    Args:
        task: One with an answer for each image.
        label: A class id, 0 or 1 for each class, or values.
        output: Scores of the classes, or values.
        class_names: Names of the classes.
        unit: Unit of values.
    """

    def name(number: int) -> str:
        return class_names[number] if 0 <= number < len(class_names) else f"class {number}"

    def names(chosen: Tensor) -> str:
        return ", ".join(name(int(number)) for number in chosen.nonzero().flatten()) or "none"

    if isinstance(task, ScalarRegressionTask):
        variables = task.hparams.get("var_names") or [""] * len(output)
        said = [
            ", ".join(
                f"{variable} {value:.4g} {unit}".strip() for variable, value in zip(variables, values, strict=False)
            )
            for values in (label.tolist(), output.tolist())
        ]
    elif isinstance(task, MultiLabelClassificationTask):
        said = [names(label > 0.5), names(output.sigmoid() > 0.5)]
    else:
        scores = output.float().softmax(dim=0)
        said = [name(int(label)), f"{name(int(scores.argmax()))} ({scores.max():.0%})"]
    return f"label: {said[0]}\nprediction: {said[1]}"
