"""What a file of a data set holds: its bands by name, nothing that is not finite."""

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
"""Said once for a modality, with file, bound and modality."""


def by_name(
    path: Any,
    data: NDArray,
    names: Sequence[str | None],
    modality: str,
    bands: Sequence[Any] | None,
    count: int,
    *,
    dates: bool,
) -> NDArray:
    """Return an image [bands, H, W] with its bands in the order that the configuration means.

    Args:
        path: Of the file, for messages.
        data: The image as it is in the file, [dates * bands, H, W] with dates.
        names: Descriptions of its bands, None where the file has none.
        modality: What it shows.
        bands: Of the configuration, dataset_bands; None takes those of the modality.
        count: Number of bands that the model gets.
        dates: Whether the file holds several dates, date by date.

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


def without_odd(path: Any, data: Any) -> NDArray:
    """Return numbers of a file that is no GeoTIFF with NaN for what counts as missing.

    Args:
        path: Of the file, for the message.
        data: Numbers of any type and shape.

    Raises:
        DataError: They are complex.
    """
    values = np.asarray(data)
    refuse_complex(path, [values.dtype])
    odd = is_odd(values)
    return np.where(odd, np.asarray(np.nan, values.dtype), values) if odd.any() else values
