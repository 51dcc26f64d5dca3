"""Content of a data set's file: bands by name, missing values as NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.model.modalities import find
from terramind_plugin.raster.bands import find_bands
from terramind_plugin.raster.missing import is_odd, refuse_complex

FAR_VALUES = (
    "%s holds values that are infinite or beyond %g; they are taken as missing. Further files of %s are not named: "
    "terramind check counts them."
)
"""Warning that is logged once for a modality, with file, bound and modality."""


def by_name(
    path: Any,
    data: NDArray[Any],
    names: Sequence[str | None],
    modality: str,
    bands: Sequence[Any] | None,
    count: int,
    *,
    dates: bool,
) -> NDArray[Any]:
    """Return an image [bands, H, W] with its bands in the order of the configuration.

    Args:
        path: Path of the file, for messages.
        data: Image of the file, [dates * bands, H, W] with dates.
        names: Descriptions of its bands; None for a band without a description.
        modality: Modality of the image.
        bands: Configured dataset_bands; None for the bands of the modality.
        count: Number of the model's bands.
        dates: Whether the file holds several dates one after the other.

    Raises:
        DataError: The file names its bands otherwise than the configuration.
    """
    stored = list(bands or ())
    if dates:
        for first in range(0, len(names) - len(stored) + 1, len(stored)):
            find_bands(path, modality, names[first : first + len(stored)], stored, stored, binding=True)
        return data
    entry = find(modality)
    if not stored and entry is not None and len(entry.bands) == count:
        stored = list(entry.band_names)
    if not stored:
        return data
    order = find_bands(path, modality, names, stored, stored if bands else (), binding=bool(bands))
    return data if order == list(range(len(data))) else data[order]


def without_odd(path: Any, data: Any) -> NDArray[Any]:
    """Return numbers of a file that is not a GeoTIFF, with NaN for missing values.

    Args:
        path: Path of the file, for the message.
        data: Numbers of any type and shape.

    Raises:
        DataError: The numbers are complex.
    """
    values = np.asarray(data)
    refuse_complex(path, [values.dtype])
    odd = is_odd(values)
    return np.where(odd, np.asarray(np.nan, values.dtype), values) if odd.any() else values
