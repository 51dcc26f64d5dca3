"""One picture of what a model made of a test set in the Sen1Floods11 folder layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.files import check_picture, write_figure
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.plotting import plot_samples

INPUTS = {
    "S2L1C": ("S2L1CHand", "_S2Hand.tif"),
    "S1GRD": ("S1GRDHand", "_S1Hand.tif"),
    "DEM": ("DEMHand", "_DEMHand.tif"),
}
LABEL_FILES = ("LabelHand", "_LabelHand.tif")


def draw_predictions(data: Path, predictions: Path, out: Path, *, chips: int, class_names: Sequence[str]) -> None:
    """Write a PNG with inputs, label and prediction of the first chips that were predicted.

    Args:
        data: Folder with S2L1CHand, S1GRDHand and LabelHand; each may be absent. DEMHand is shown beside series.
        predictions: Folder with '<input name>_pred.tif' files.
        out: Picture to write.
        chips: Number of chips.
        class_names: Names of the classes.

    Raises:
        ConfigError: `chips` is less than 1, or `out` is a file that is no picture of this program.
        DataError: There is no prediction, or none has an input in `data`.
    """
    if chips < 1:
        raise ConfigError(f"chips must be at least 1, got {chips}.")
    check_picture(out)
    rows = []
    for prediction in sorted(predictions.rglob("*_pred.tif")):
        name = _chip_name(prediction)
        images = {key: _read(data / folder / f"{name}{suffix}") for key, (folder, suffix) in INPUTS.items()}
        images = {key: _by_date(key, values) for key, values in images.items() if values is not None}
        if all(values.ndim == 3 for values in images.values()):
            images.pop("DEM", None)  # beside a series alone
        if not images:
            continue
        label = _read(data / LABEL_FILES[0] / f"{name}{LABEL_FILES[1]}")
        predicted = _read(prediction)
        rows.append((name, images, None if label is None else label[0], None if predicted is None else predicted[0]))
        if len(rows) == chips:
            break
    if not rows:
        raise DataError(
            f"No prediction in {predictions} has an input in {data}. Expected files such as <id>_S2Hand_pred.tif there "
            f"and {INPUTS['S2L1C'][0]}/<id>{INPUTS['S2L1C'][1]} here."
        )
    write_figure(out, plot_samples(rows, class_names))


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
