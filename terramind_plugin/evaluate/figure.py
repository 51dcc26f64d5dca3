"""A picture and the scores of a model's predictions for a test set in the folder layout of Sen1Floods11."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.evaluate.overlap import intersection_over_union
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.plotting.panels import draw_panels
from terramind_plugin.plotting.pictures import (
    AGREEMENT_COLORS,
    NO_LABEL,
    agreement_picture,
    class_picture,
    image_pictures,
    label_color,
    radar_key,
)
from terramind_plugin.system.files import check_picture, write_figure

INPUTS = {
    "S2L1C": ("S2L1CHand", "_S2Hand.tif"),
    "S1GRD": ("S1GRDHand", "_S1Hand.tif"),
    "DEM": ("DEMHand", "_DEMHand.tif"),
}
LABEL_FILES = ("LabelHand", "_LabelHand.tif")


@dataclass(frozen=True)
class PredictedChip:
    """Map and label of a chip, compared pixel by pixel."""

    name: str
    file: Path
    """Predicted map."""
    confusion: NDArray[np.int64]
    """Pixels by class of the label and class of the map, [classes, classes]; 0 without a label."""

    @property
    def region(self) -> str:
        """Return the part of the name before the number."""
        return self.name.rpartition("_")[0] or self.name

    @property
    def score(self) -> float:
        """Return the IoU of the last class, or of all if there are more than two; NaN where there is none."""
        each = class_ious(self.confusion)
        chosen = each[-1:] if len(each) == 2 else each
        return float(np.nanmean(chosen)) if np.isfinite(chosen).any() else float("nan")


def class_ious(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the IoU of each class [classes]; NaN for a class that is neither in labels nor in maps."""
    hits = np.diag(confusion)
    return intersection_over_union(np.stack([hits, confusion.sum(axis=0) - hits, confusion.sum(axis=1) - hits], -1))


def compare_predictions(data: Path, predictions: Path, classes: int) -> list[PredictedChip]:
    """Compare the maps in a folder with their labels; return the results in the order of the maps' names.

    Args:
        data: Folder with S2L1CHand, S1GRDHand and LabelHand; each may be absent.
        predictions: Folder with '<input name>_pred.tif' files.
        classes: Number of classes.

    Raises:
        DataError: There is no prediction, or none has an input in `data`.
    """
    chips = []
    for file in sorted(predictions.rglob("*_pred.tif")):
        name = _chip_name(file)
        if not any((data / folder / f"{name}{suffix}").is_file() for folder, suffix in INPUTS.values()):
            continue
        label = _read(data / LABEL_FILES[0] / f"{name}{LABEL_FILES[1]}")
        confusion = np.zeros((classes, classes), np.int64)
        if label is not None:
            wanted, found = label[0], _read(file)[0]
            known = (wanted >= 0) & (wanted < classes) & (found >= 0) & (found < classes)
            pairs = wanted[known].astype(int) * classes + found[known].astype(int)
            confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        chips.append(PredictedChip(name, file, confusion))
    if not chips:
        raise DataError(
            f"No prediction in {predictions} has an input in {data}. Expected files such as <id>_S2Hand_pred.tif there "
            f"and {INPUTS['S2L1C'][0]}/<id>{INPUTS['S2L1C'][1]} here."
        )
    return chips


def table(chips: Sequence[PredictedChip], class_names: Sequence[str]) -> list[list[str]]:
    """Return head and rows: the scores of the maps, and of a map with the most frequent class of the labels alone."""
    confusion = np.sum([chip.confusion for chip in chips], axis=0)
    commonest = int(confusion.sum(axis=1).argmax())
    constant = np.zeros_like(confusion)
    constant[:, commonest] = confusion.sum(axis=1)
    head = ["", "mIoU", *(f"IoU {name}" for name in class_names), "pixels right"]
    rows = [("the model", confusion), (f"a map of {class_names[commonest]} alone", constant)]
    return [head, *([text, *_scores(one)] for text, one in rows)]


def _scores(confusion: NDArray[np.int64]) -> list[str]:
    each = class_ious(confusion)
    right = np.diag(confusion).sum() / max(1, confusion.sum())
    return [f"{np.nanmean(each):.2f}", *("-" if np.isnan(one) else f"{one:.2f}" for one in each), f"{right:.0%}"]


def pick_chips(chips: Sequence[PredictedChip], count: int) -> list[PredictedChip]:
    """Return the best chip, chips of other regions, and the worst chip, in the order of their scores.

    Args:
        chips: All chips, at least one.
        count: Number of chips.
    """
    judged = [chip for chip in chips if np.isfinite(chip.score)] or list(chips)
    ranked = sorted(judged, key=lambda chip: -np.nan_to_num(chip.score))
    chosen = [ranked[0], *([ranked[-1]] if len(ranked) > 1 and count > 1 else [])]
    places = np.linspace(0, len(ranked) - 1, count).round().astype(int)[1:-1]
    for place in places:
        rest = [chip for chip in ranked if chip not in chosen]
        if not rest:
            break
        new = [chip for chip in rest if chip.region not in {one.region for one in chosen}] or rest
        chosen.append(min(new, key=lambda chip: abs(ranked.index(chip) - place)))
    return sorted(chosen, key=ranked.index)


def draw_predictions(
    data: Path, predictions: Path, out: Path, *, chips: int, class_names: Sequence[str]
) -> list[list[str]]:
    """Write a PNG with inputs, label and map of some chips, from the best to the worst, and return the scores of all.

    With two classes, the map is drawn as hits, false alarms and misses of the second one.

    Args:
        data: Folder with S2L1CHand, S1GRDHand and LabelHand; each may be absent. DEMHand is shown beside series.
        predictions: Folder with '<input name>_pred.tif' files.
        out: Picture to write.
        chips: Number of chips.
        class_names: Names of the classes.

    Returns:
        Head and rows of a table; the head alone without labels.

    Raises:
        ConfigError: `chips` is less than 1, or `out` is a file that is not a picture of this program.
        DataError: There is no prediction, or none has an input in `data`.
    """
    if chips < 1:
        raise ConfigError(f"chips must be at least 1, got {chips}.")
    check_picture(out)
    compared = compare_predictions(data, predictions, len(class_names))
    rows = table(compared, class_names)
    labelled = any(chip.confusion.any() for chip in compared)
    colors = [label_color(number) for number in range(len(class_names))]
    agrees = labelled and len(class_names) == 2
    panels = [_draw_chip(chip, data, colors, agrees=agrees) for chip in pick_chips(compared, chips)]
    legend = [*zip(class_names, colors, strict=True), ("no data", NO_LABEL)]
    if agrees:
        legend += [(f"map: {text}", color) for text, color in list(AGREEMENT_COLORS.items())[1:]]
    titles = dict.fromkeys(title for _, pictures in panels for title in pictures)
    legend += radar_key(title.partition(",")[0] for title in titles)
    title = (
        f"Maps of {len(compared)} chips: mIoU {rows[1][1]}, where {rows[2][0]} has {rows[2][1]}" if labelled else None
    )
    write_figure(out, draw_panels(panels, legend, title))
    return rows if labelled else rows[:1]


def _draw_chip(
    chip: PredictedChip, data: Path, colors: Sequence[str], *, agrees: bool
) -> tuple[str, dict[str, NDArray[Any]]]:
    """Return the text below a chip and its pictures."""
    images = {key: _read(data / folder / f"{chip.name}{suffix}") for key, (folder, suffix) in INPUTS.items()}
    images = {key: _by_date(key, values) for key, values in images.items() if values is not None}
    if all(values.ndim == 3 for values in images.values()):
        images.pop("DEM", None)  # beside a series alone
    pictures = dict(image_pictures(images, {}))
    label, found = _read(data / LABEL_FILES[0] / f"{chip.name}{LABEL_FILES[1]}"), _read(chip.file)[0]
    if label is not None:
        pictures["label"] = class_picture(label[0], colors)
    if agrees and label is not None:
        known = (label[0] >= 0) & (found < len(colors))
        pictures["prediction"] = agreement_picture(found == 1, label[0] == 1, known)
    else:
        pictures["prediction"] = class_picture(found, colors)
    text = f"{chip.name}: IoU {chip.score:.2f}" if np.isfinite(chip.score) else chip.name
    return text, pictures


def _by_date(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an image [bands, H, W], or one of several dates as [bands, dates, H, W]."""
    bands = len(MODALITIES[name].bands)
    if len(values) == bands or len(values) % bands:
        return values
    return values.reshape(-1, bands, *values.shape[1:]).swapaxes(0, 1)


def _chip_name(prediction: Path) -> str:
    stem = prediction.name.removesuffix("_pred.tif")
    for _, suffix in INPUTS.values():
        stem = stem.removesuffix(suffix.removesuffix(".tif"))
    return stem


def _read(path: Path) -> Any:
    if not path.is_file():
        return None
    with rasterio.open(path) as raster:
        values = raster.read()
    return values.astype(np.float32)
