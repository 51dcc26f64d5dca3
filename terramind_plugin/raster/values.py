"""Checks of the values of a raster: class ids and units."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import Modality
from terramind_plugin.model.units import EIGHT_BIT, is_eight_bit, other_unit

logger = logging.getLogger("terramind_plugin")


def check_classes(path: Path, name: str, values: NDArray[np.float32], classes: int) -> None:
    """Raise an error unless the values are class ids.

    Args:
        path: The raster.
        name: Name of the modality.
        values: Numbers of any shape.
        classes: Number of classes.

    Raises:
        DataError: A value is not a whole number from 0 to classes - 1.
    """
    wrong = np.unique(values[(values != np.round(values)) | (values < 0) | (values >= classes)])
    if wrong.size:
        found = ", ".join(f"{value:g}" for value in wrong[:5])
        raise DataError(
            f"{path}: class ids of {name} are whole numbers from 0 to {classes - 1}, found {found}. Map missing "
            "pixels to 0, or declare their value as nodata of the file."
        )


def warn_of_units(
    path: Path, modality: Modality, values: NDArray[np.float32], *, all_values: bool, scale: float = 1.0
) -> None:
    """Log a warning if values seem to be in another unit, because the model would then see a very unusual image.

    Args:
        path: The raster.
        modality: Modality of the raster.
        values: Values of any shape, at least one.
        all_values: Whether these are all values of the file. (A dark window of a scene may lack large values.)
        scale: Factor by which the values of the file were multiplied.
    """
    guess = other_unit(modality, values)
    if guess is None and all_values and is_eight_bit(modality, values):
        guess = EIGHT_BIT
    if guess is None:
        return
    advice = f"Multiply them by {guess.scale:g}." if guess.scale is not None else guess.advice
    scaled = ""
    if scale != 1:
        scaled = f", multiplied by constant_scale {scale:g},"
        if other_unit(modality, values / np.float32(scale)) is None:
            advice = f"For files in these units: constant_scale: {{{modality.name}: 1}}."
    logger.warning("%s: its values%s look like %s. Expected: %s. %s", path, scaled, guess, modality.units, advice)
