"""How files of a data set are read: bands by name, missing values as NaN."""

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
    """Arguments of a data set beyond TerraTorch's own."""

    means: Mapping[str, Sequence[float]]
    """Mean of each of the model's bands, by modality, after `constant_scale`."""
    fill_with_mean: bool
    """True if pixels without data take their band's mean."""
    temporal: bool
    """True if samples are series [bands, dates, H, W]."""
    by_band: frozenset[str] = frozenset()
    """Modalities whose files hold all dates of a band together, not all bands of a date."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Number of dates with files of their own, by modality."""
    taken: DatesTaken | None = None
    """Number of dates that the model takes; None for any."""
    concat_bands: bool = False
    """True if a series is one image of the bands of all modalities."""
    keep_missing_pixels: bool = False
    """True if NaN stays NaN, for statistics."""
    num_classes: int | None = None
    """Number of classes, if there are classes."""
    table: LabelPlan = field(default_factory=LabelPlan)
    """Requirements on a table of labels."""
    label_ids: tuple[int, ...] | None = None
    """Class ids that a label may hold; None to accept all."""
    empty_label: int | None = None
    """Label of pixels without data in any modality; None for the label of the file."""
    constant_scale: Mapping[str, float] = field(default_factory=dict)
    offsets: Mapping[str, float] = field(default_factory=dict)
    """Number that is added to the values of files before `constant_scale`, by modality."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Modality of the table that an input of another name has."""
    positions: str | None = None
    """Name of the input that is the position of a chip, from its georeference."""
    position_images: bool = False
    """True if positions are images [2, H, W] of one value, for tiled inference, which cuts all inputs alike."""
    cache: DecodedChips | None = None
    """Decoded copies of rasters; None to decode each time."""
    slots: Slots = field(default_factory=Slots)
    """Memory of batches."""


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
        DataError: The file names its bands otherwise than the configuration.
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
