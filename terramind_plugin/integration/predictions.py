"""What each of TerraTorch's tasks predicts, and how that is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from terratorch.tasks import (
    ClassificationTask,
    MultiLabelClassificationTask,
    ObjectDetectionTask,
    PixelwiseRegressionTask,
    ScalarRegressionTask,
    SemanticSegmentationTask,
)
from torch import Tensor

from terramind_plugin.plotting import (
    STRETCH,
    VALUES,
    Bands,
    add_bar,
    add_legend,
    as_array,
    image_pictures,
    label_color,
    plot_samples,
    value_range,
)

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
    bands: Bands | None,
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
        bands: Bands of a modality, where they are not all of them.
        pictures: Further panels behind the inputs, [H, W, 3] in 0..1 by title.
    """
    if isinstance(task, ObjectDetectionTask):
        return plot_boxes(images, label, output, class_names, title, bands)
    if isinstance(task, SemanticSegmentationTask):
        ids = label[0] if label.ndim == 3 else label
        return plot_samples([(title, images, ids, output.argmax(dim=0))], class_names, bands, [pictures or {}])
    if isinstance(task, PixelwiseRegressionTask):
        ignored = task.hparams.get("ignore_index")
        values = label if ignored is None else label.float().masked_fill(label == ignored, torch.nan)
        return plot_values(images, values, output, title, unit, bands, pictures)
    words = say_answers(task, label.flatten(), output.flatten(), class_names, unit)
    return plot_samples([(f"{title}\n{words}", images, None, None)], None, bands, [pictures or {}])


def plot_values(
    images: Mapping[str, Any],
    label: Any,
    prediction: Any,
    title: str = "",
    unit: str = "",
    bands: Bands | None = None,
    pictures: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """Return a figure with the inputs, and label and prediction of a regression on one scale with a colour bar.

    The scale is that of the label, without its outer 2 percent, so that figures of several epochs can be compared.

    Args:
        images: As in `draw`.
        label: Values [H, W], or [variables, H, W] with a scale for each variable; grey where they are not finite.
        prediction: Values of the same shape.
        title: Text below.
        unit: Unit of the values, for the colour bar.
        bands: Bands of a modality, where they are not all of them.
        pictures: Further panels behind the inputs.
    """
    variables = list(zip(_maps(label), _maps(prediction), strict=False))
    panels = dict(pictures or {})
    bars = []
    for number, pair in enumerate(variables, start=1):
        known = next((values.compressed() for values in pair if values.count()), np.zeros(0))
        limits = value_range(np.percentile(known, STRETCH) if known.size else known)
        names = [f"{what} {number}" if len(variables) > 1 else what for what in ("label", "prediction")]
        panels |= {name: VALUES(Normalize(*limits)(values))[..., :3] for name, values in zip(names, pair, strict=True)}
        bars.append((names, limits))
    figure = plot_samples([(title, images, None, None)], None, bands, [panels])
    axes = {axis.get_title(): axis for axis in figure.axes}
    for names, limits in bars:
        add_bar([axes[name] for name in names], VALUES, limits, unit, extend="both")
    return figure


def plot_boxes(
    images: Mapping[str, Any],
    label: tuple[Any, Any],
    prediction: tuple[Any, Any],
    class_names: Sequence[str] | None = None,
    title: str = "",
    bands: Bands | None = None,
) -> Figure:
    """Return a figure with the inputs, and the boxes of label and prediction on the first of them.

    Args:
        images: As in `draw`.
        label: Boxes [N, 4] as (left, top, right, bottom) in pixels, and their class ids [N].
        prediction: The predicted boxes and class ids.
        class_names: Names of the classes, for the legend.
        title: Text below.
        bands: Bands of a modality, where they are not all of them.
    """
    first = next(image_pictures(images, bands or {}))[1]
    figure = plot_samples([(title, images, None, None)], None, bands, [{"label": first, "prediction": first}])
    axes = {axis.get_title(): axis for axis in figure.axes}
    drawn: set[int] = set()
    for what, (boxes, ids) in (("label", label), ("prediction", prediction)):
        for (left, top, right, bottom), number in zip(as_array(boxes), map(int, as_array(ids)), strict=True):
            drawn.add(number)
            size, color = (right - left, bottom - top), label_color(number)
            axes[what].add_patch(Rectangle((left - 0.5, top - 0.5), *size, fill=False, edgecolor=color, lw=1.5))
    names = dict(enumerate(class_names or ()))
    add_legend(figure, [(names.get(i, f"class {i}"), label_color(i)) for i in sorted(drawn)])
    return figure


def _maps(values: Any) -> np.ma.MaskedArray:
    """Return values [variables, H, W], masked where they are not finite."""
    array = as_array(values)
    return np.ma.masked_invalid(array[None] if array.ndim == 2 else array)


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
