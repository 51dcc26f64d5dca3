"""Figures of validation samples: inputs, label and prediction of TerraTorch's tasks, and generated modalities."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from terratorch.tasks import (
    ClassificationTask,
    MultiLabelClassificationTask,
    ObjectDetectionTask,
    PixelwiseRegressionTask,
    ScalarRegressionTask,
    SemanticSegmentationTask,
)
from torch import Tensor, nn

from terramind_plugin.backbones.tim import TerraMindTiM
from terramind_plugin.builders import build_image_tokenizer
from terramind_plugin.model.download import SHIPPED
from terramind_plugin.model.modalities import resolve
from terramind_plugin.plotting.panels import add_bar, add_legend
from terramind_plugin.plotting.pictures import (
    STRETCH,
    VALUES,
    Bands,
    as_array,
    image_pictures,
    label_color,
    modality_picture,
    plot_samples,
    value_range,
)
from terramind_plugin.tokenizers.fsq import FiniteScalarQuantizer
from terramind_plugin.tokenizers.image import ImageTokenizer
from terramind_plugin.tokenizers.variants import TokenizerVariant, tokenizers_of

logger = logging.getLogger("terramind_plugin")

MAPS = (SemanticSegmentationTask, PixelwiseRegressionTask)
"""Tasks that predict a value for each pixel."""
ONE_ANSWER = (ClassificationTask, ScalarRegressionTask)
"""Tasks that predict one result for each image. Multi-label tasks derive from the first class."""


def keys_of(task: Any) -> tuple[str, ...]:
    """Return the keys that a batch needs to be drawn; none for a task that has no drawing."""
    if isinstance(task, ObjectDetectionTask):
        return ("image", task.boxes_field, task.labels_field)
    if isinstance(task, MAPS):
        return ("image", "mask")
    return ("image", "label") if isinstance(task, ONE_ANSWER) else ()


def labels_of(task: Any, batch: Mapping[str, Any]) -> Any:
    """Return the labels of a batch, one for each sample: a tensor, or for detection pairs of boxes and class ids."""
    _, *keys = keys_of(task)
    return batch[keys[0]] if len(keys) == 1 else list(zip(*(batch[key] for key in keys), strict=True))


def predict(task: Any, batch: Mapping[str, Any]) -> Any:
    """Return the outputs of a batch as in validation, in the format of `labels_of`."""
    images = batch["image"]
    if isinstance(task, ObjectDetectionTask):
        found = task(images).output
        return [(one["boxes"], one["labels"]) for one in task.apply_nms_batch(found, len(found))]
    rest = {key: batch[key] for key in batch.keys() - {"image", "mask", "label", "filename"}}
    return task.handle_full_or_tiled_inference(images, task.tiled_inference_on_validation, **rest).output


def draw_sample(
    task: Any,
    images: Mapping[str, Tensor],
    label: Any,
    output: Any,
    class_names: Sequence[str],
    title: str,
    unit: str,
    bands: Bands | None,
    pictures: Mapping[str, NDArray[Any]] | None,
) -> Figure:
    """Return a figure of one sample.

    Args:
        task: A task that `keys_of` knows.
        images: Tensors [bands, H, W] or [bands, dates, H, W] by modality.
        label: The sample's part of `labels_of`.
        output: The sample's part of `predict`.
        class_names: Names of the classes; may be empty.
        title: Text below.
        unit: Unit of continuous values.
        bands: Bands of a modality, if some are missing.
        pictures: Further panels after the inputs, [H, W, 3] in 0..1, by title.
    """
    if isinstance(task, ObjectDetectionTask):
        return plot_boxes(images, label, output, class_names, title, bands)
    if isinstance(task, SemanticSegmentationTask):
        ids = label[0] if label.ndim == 3 else label
        rows = [(title, images, ids, output.argmax(dim=0))]
        figure: Figure = plot_samples(rows, class_names, bands, [pictures or {}])
        return figure
    if isinstance(task, PixelwiseRegressionTask):
        ignored = task.hparams.get("ignore_index")
        values = label if ignored is None else label.float().masked_fill(label == ignored, torch.nan)
        return plot_values(images, values, output, title, unit, bands, pictures)
    text = describe_answers(task, label.flatten(), output.flatten(), class_names, unit)
    figure = plot_samples([(f"{title}\n{text}", images, None, None)], None, bands, [pictures or {}])
    return figure


def plot_values(
    images: Mapping[str, Any],
    label: Any,
    prediction: Any,
    title: str = "",
    unit: str = "",
    bands: Bands | None = None,
    pictures: Mapping[str, NDArray[Any]] | None = None,
) -> Figure:
    """Return a figure with the inputs, and with label and prediction of a regression on one scale with a colour bar.

    The scale is that of the label, without its outer 2 percent, so that figures of several epochs can be compared.

    Args:
        images: As in `draw_sample`, like the arguments that are not listed here.
        label: Values [H, W], or [variables, H, W] with a scale for each variable; grey where they are not finite.
        prediction: Values of the same shape.
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
    figure: Figure = plot_samples([(title, images, None, None)], None, bands, [panels])
    axes = {axis.get_title(): axis for axis in figure.axes}
    for names, limits in bars:
        add_bar([axes[name] for name in names], VALUES, limits, unit, extend="both")
    return figure


def _maps(values: Any) -> Any:
    """Return values [variables, H, W], masked where they are not finite."""
    array = as_array(values)
    return np.ma.masked_invalid(array[None] if array.ndim == 2 else array)


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
        images: As in `draw_sample`, like the arguments that are not listed here.
        label: Boxes [N, 4] as (left, top, right, bottom) in pixels, and their class ids [N].
        prediction: The predicted boxes and class ids.
    """
    first = next(image_pictures(images, bands or {}))[1]
    figure: Figure = plot_samples([(title, images, None, None)], None, bands, [{"label": first, "prediction": first}])
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


def describe_answers(task: Any, label: Tensor, output: Tensor, class_names: Sequence[str], unit: str) -> str:
    """Return label and prediction of an image as two lines of text.

    Args:
        task: A task with one answer for each image.
        label: A class id, 0 or 1 for each class, or values.
        output: Scores of the classes, or values.
        class_names: Names of the classes.
        unit: Unit of values.
    """

    def name(number: int) -> str:
        return class_names[number] if 0 <= number < len(class_names) else f"class {number}"

    def names(chosen: Tensor) -> str:
        return ", ".join(name(int(number)) for number in chosen.nonzero().flatten()) or "none"

    def numbers(values: Tensor) -> str:
        variables = task.hparams.get("var_names") or [""] * len(output)
        pairs = zip(variables, values.tolist(), strict=False)
        return ", ".join(f"{variable} {value:.4g} {unit}".strip() for variable, value in pairs)

    if isinstance(task, ScalarRegressionTask):
        texts = numbers(label), numbers(output)
    elif isinstance(task, MultiLabelClassificationTask):
        texts = names(label > 0.5), names(output.sigmoid() > 0.5)
    else:
        scores = output.float().softmax(dim=0)
        texts = name(int(label)), f"{name(int(scores.argmax()))} ({scores.max():.0%})"
    return "label: {}\nprediction: {}".format(*texts)


def find_tim(model: nn.Module) -> TerraMindTiM | None:
    """Return the backbone of a model that generates modalities, if there is one."""
    return next((module for module in model.modules() if isinstance(module, TerraMindTiM)), None)


class GeneratedPainter:
    """Painter of generated token ids: land cover as a map if its tokenizer is on this machine, others by their codes.

    Similar codes have similar colours: the first three numbers of a code are red, green and blue.

    Args:
        tokenizer_ckpt_paths: Files with tokenizer weights, by name of the modality. Without one the published weights
            are used if they are in the hub's cache; nothing is downloaded.
    """

    def __init__(self, tokenizer_ckpt_paths: Mapping[str, str | Path] | None = None) -> None:
        self.paths = {resolve(name).name: path for name, path in (tokenizer_ckpt_paths or {}).items()}
        self._tokenizers: dict[str, ImageTokenizer | None] = {}

    def paint(self, backbone: TerraMindTiM, index: int) -> dict[str, NDArray[Any]]:
        """Return pictures [rows, columns, 3] in 0..1, by title, of the modalities last generated for one sample.

        Args:
            backbone: Backbone after a forward pass.
            index: Position of the sample in the batch.
        """
        pictures = {}
        for target, name in backbone.generated_names.items():
            modality = backbone.targets[target]
            if modality.kind == "sequence" or name not in backbone.generated_tokens:
                continue
            ids = backbone.generated_tokens[name][index]
            variant = tokenizers_of(backbone.variant.family)[modality.name]
            tokenizer = self._tokenizer(variant) if modality.kind == "classes" else None
            if tokenizer is None:
                pictures[f"{modality.name} (generated, tokens)"] = paint_codes(ids, variant)
            else:
                scores = tokenizer.to(ids.device).decode_tokens(ids[None])[0]
                pictures[f"{modality.name} (generated)"] = modality_picture(scores.argmax(dim=0), modality.name)
        return pictures

    def _tokenizer(self, variant: TokenizerVariant) -> ImageTokenizer | None:
        """Return the decoder of a tokenizer, or None if its weights are not on this machine."""
        if variant.name in self._tokenizers:
            return self._tokenizers[variant.name]
        path = self.paths.get(variant.modality.name) or _local_weights(variant)
        tokenizer = None
        if path is None:
            logger.info("%s: no tokenizer weights on this machine; its token ids are drawn.", variant.modality.name)
        else:
            tokenizer = build_image_tokenizer(variant.name, ckpt_path=path, encoder=False).requires_grad_(False)
        self._tokenizers[variant.name] = tokenizer
        return tokenizer


def _local_weights(variant: TokenizerVariant) -> str | Path | None:
    """Return the file of a tokenizer's weights, or None if it would have to be downloaded."""
    if variant.hub_repo is None:
        shipped = SHIPPED / variant.hub_file
        return shipped if shipped.is_file() else None
    cached = try_to_load_from_cache(variant.hub_repo, variant.hub_file)
    return cached if isinstance(cached, str) else None


def paint_codes(ids: Tensor, variant: TokenizerVariant) -> NDArray[Any]:
    """Return a picture [rows, columns, 3] in 0..1 of token ids [rows, columns]."""
    with torch.no_grad():
        codes = FiniteScalarQuantizer(variant.levels).codes(ids.cpu()[None])
    return np.asarray(codes[0, :3].permute(1, 2, 0), dtype=np.float32)
