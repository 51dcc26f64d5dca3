"""Settings and helpers for reading the files of a data set: bands by name, missing values as NaN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.data.slots import Slots
from terramind_plugin.model.dates import DatesTaken
from terramind_plugin.model.modalities import find
from terramind_plugin.raster.bands import check_dated_names, find_bands
from terramind_plugin.raster.decoded import DecodedChips
from terramind_plugin.raster.missing import is_odd, refuse_complex
from terramind_plugin.samples.tables import LabelPlan


@dataclass(frozen=True)
class ReadingPlan:
    """Arguments of a data set that TerraTorch's data sets do not have."""

    means: Mapping[str, Sequence[float]]
    """Mean of each of the model's bands, by modality, after `constant_scale`."""
    fill_with_mean: bool
    """True if pixels without data are set to the mean of their band."""
    temporal: bool
    """True if samples are series [bands, dates, H, W]."""
    by_band: frozenset[str] = frozenset()
    """Modalities whose files hold all dates of a band together, not all bands of a date."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Number of dates that have files of their own, by modality."""
    taken: DatesTaken | None = None
    """Number of dates that the model expects; None for any."""
    concat_bands: bool = False
    """True if the bands of all modalities form one image, or one series."""
    keep_missing_pixels: bool = False
    """True if NaN stays NaN, for statistics."""
    num_classes: int | None = None
    """Number of classes; None if there are no classes."""
    table: LabelPlan = field(default_factory=LabelPlan)
    """Requirements for a table of labels."""
    label_ids: tuple[int, ...] | None = None
    """Class ids that a label may hold; None to accept all."""
    empty_label: int | None = None
    """Label of pixels without data in any modality; None for the label of the file."""
    constant_scale: Mapping[str, float] = field(default_factory=dict)
    offsets: Mapping[str, float] = field(default_factory=dict)
    """Number added to the values of files before `constant_scale`, by modality."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Modality of the table for each input with another name."""
    positions: str | None = None
    """Name of the input that is the position of a chip, from its georeference."""
    position_images: bool = False
    """True if positions are constant images [2, H, W]: tiled inference cuts all inputs in the same way."""
    cache: DecodedChips | None = None
    """Decoded copies of rasters; None to decode each time."""
    slots: Slots = field(default_factory=Slots)
    """Memory for batches."""


FAR_VALUES = (
    "%s holds values that are infinite or beyond %g; they count as missing. Further files of %s are not named; "
    "terramind check counts them."
)
"""Warning logged once per modality; its arguments are the file, the bound and the modality."""


def by_name(
    path: Any,
    data: NDArray[Any],
    names: Sequence[str | None],
    modality: str,
    bands: Sequence[Any] | None,
    count: int,
    *,
    dates: bool,
    by_band: bool = False,
) -> NDArray[Any]:
    """Return an image [bands, H, W] with its bands in the order of the configuration.

    Args:
        path: Path of the file, for messages.
        data: Image of the file, [dates * bands, H, W] with dates.
        names: Descriptions of its bands; None for a band without a description.
        modality: Modality of the image.
        bands: Configured dataset_bands; None for the bands of the modality.
        count: Number of the model's bands.
        dates: Whether the file may hold several dates.
        by_band: Whether the dates of a band follow one another, not the bands of a date.

    Raises:
        DataError: The file's names of bands differ from the configuration.
    """
    stored = list(bands or ())
    entry = find(modality)
    if not stored and entry is not None and len(entry.bands) == count:
        stored = list(entry.band_names)
    if dates:
        check_dated_names(path, modality, names, stored, by_band=by_band)
        return data
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
