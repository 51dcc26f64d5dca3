"""Time series of a data set: dates within files, files of each date, and the number of dates that a model expects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from terramind_plugin.data.terratorch_internals import TemporalWrapper
from terramind_plugin.errors import ConfigError, DataError, suggest
from terramind_plugin.model.dates import DatesTaken
from terramind_plugin.raster.series import check_time
from terramind_plugin.samples.dates import date_key, modality_of

ROOTS = ("data_root", *(f"{stage}_data_root" for stage in ("train", "val", "test", "predict")))
"""Arguments that may list a folder for each date."""


def dates_taken(model: Any) -> DatesTaken | None:
    """Return the number of dates that a model expects; None if it accepts any number, or no series.

    Args:
        model: A task or model with TerraTorch's wrapper for time series inside, or None.
    """
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    wrapper = next((module for module in modules if isinstance(module, TemporalWrapper)), None)
    if wrapper is None:
        return None
    if wrapper.subset_lengths is not None:
        return DatesTaken(sum(wrapper.subset_lengths), f"temporal_subset_lengths: {list(wrapper.subset_lengths)}")
    if wrapper.pooling == "diff":
        return DatesTaken(2, "temporal_pooling: diff")
    widths, own = getattr(wrapper, "out_channels", None), getattr(wrapper.encoder, "out_channels", None)
    if wrapper.pooling != "concat" or not widths or not own:
        return None
    count = next(iter(widths)) // next(iter(own))
    return DatesTaken(count, f"temporal_pooling: concat with temporal_n_timestamps: {count}")


def count_listed(kwargs: Mapping[str, Any], modalities: Sequence[str], temporal: bool) -> dict[str, int]:
    """Return the number of dates that have files of their own, by modality; 1 if all dates are in one file.

    Args:
        kwargs: Arguments of the data module.
        modalities: Names of the modalities.
        temporal: Whether expand_temporal_dimension is set.

    Raises:
        ConfigError: Lists differ in length, or lists are given without expand_temporal_dimension.
    """
    counts = dict.fromkeys(modalities, 1)
    for key in (*ROOTS, "image_grep"):
        given = kwargs.get(key)
        for name in modalities:
            entry = given.get(name) if isinstance(given, Mapping) else None
            if not isinstance(entry, list | tuple):
                continue
            if not temporal:
                raise ConfigError(
                    f"{key} lists {len(entry)} entries for {name}, one for each date. Set expand_temporal_dimension: "
                    "true, or give one entry."
                )
            if not entry or counts[name] not in (1, len(entry)):
                raise ConfigError(
                    f"{key} of {name} lists {len(entry)} dates, but another argument lists {counts[name]}. Give one "
                    "entry for each date, in the order of time."
                )
            counts[name] = len(entry)
    return counts


def find_by_band(given: bool | Sequence[str], modalities: Sequence[str], temporal: bool) -> frozenset[str]:
    """Return the modalities whose files hold all dates of a band together.

    Args:
        given: temporal_channel_major: True for all modalities, or some of their names.
        modalities: Names of the modalities.
        temporal: Whether expand_temporal_dimension is set.

    Raises:
        ConfigError: A name is unknown, or there are no series.
    """
    if given and not temporal:
        raise ConfigError("temporal_channel_major needs time series: set expand_temporal_dimension: true as well.")
    names = modalities if given is True else [*(given or ())]
    for name in names:
        if name not in modalities:
            raise ConfigError(
                f"temporal_channel_major names '{name}', but modalities has {', '.join(modalities)}."
                f"{suggest(name, modalities)}"
            )
    return frozenset(names)


def spread_entries(value: Any, counts: Mapping[str, int], *, listed: bool = False) -> Any:
    """Return an argument by modality with an entry for the files of each date; other values as they are.

    Args:
        value: Argument of the data module.
        counts: Number of dates with files of their own, by modality.
        listed: Whether a list has an entry for each date; otherwise all dates share an entry.
    """
    if not isinstance(value, Mapping):
        return value
    result = {}
    for name, entry in value.items():
        for number in range(1, counts.get(name, 1) + 1):
            each = listed and isinstance(entry, list | tuple)
            result[date_key(name, number)] = entry[number - 1] if each else entry
    return result


def spread_names(names: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """Return the keys of the files of all dates of some modalities, in the order of time."""
    return [date_key(name, number) for name in names for number in range(1, counts.get(name, 1) + 1)]


def by_date(path: Any, data: NDArray[Any], bands: int, modality: str, *, by_band: bool) -> NDArray[Any]:
    """Return the bands of a file as [dates, bands, H, W].

    Args:
        path: Name of the file, for the message.
        data: All bands of the file.
        bands: Number of bands of one date.
        modality: Name of the modality, for the message.
        by_band: Whether the dates of a band follow one another (temporal_channel_major), not the bands of a date.

    Raises:
        DataError: The number of bands is not a multiple of the bands of one date.
    """
    if len(data) % bands:
        raise DataError(
            f"{path} has {len(data)} bands, which is not a multiple of the {bands} bands of one date (dataset_bands of "
            f"{modality})."
        )
    return rearrange(data, "(c t) h w -> t c h w" if by_band else "(t c) h w -> t c h w", c=bands)


def join_dates(images: Mapping[str, Tensor], counts: Mapping[str, int], files: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the images [bands, dates, H, W] of each modality, joined from its files in the order of time.

    Args:
        images: Images [bands, dates, H, W] by the key of their file.
        counts: Number of dates with files of their own, by modality.
        files: Names of the files by their key.

    Raises:
        DataError: The files of a modality differ in size, or the dates in their names are not in the order of time.
    """
    joined = {name: image for name, image in images.items() if modality_of(name) == name}
    for name, count in counts.items():
        keys = [date_key(name, number) for number in range(1, count + 1)]
        if count > 1 and all(key in images for key in keys):
            check_time([Path(str(files[key])) for key in keys if key in files])
            sizes = {key: tuple(images[key].shape[-2:]) for key in keys}
            other = next((key for key in keys if sizes[key] != sizes[name]), None)
            if other is not None:
                raise DataError(
                    f"The dates of {name} differ in size: {files.get(name)} {list(sizes[name])}, {files.get(other)} "
                    f"{list(sizes[other])}. Cut the files to one size."
                )
            joined[name] = torch.cat([images[key] for key in keys], dim=1)
    return joined


def repeat_single(
    images: Mapping[str, Tensor], files: Mapping[str, Any], taken: DatesTaken | None = None
) -> dict[str, Tensor]:
    """Return images with the same number of dates: a modality with one date is repeated.

    Args:
        images: Images [bands, dates, H, W] by modality; tensors of other shapes are returned unchanged.
        files: Name of a file of each modality, for the message.
        taken: Number of dates that the model expects; None for any.

    Raises:
        DataError: The modalities have different numbers of dates, or not the number that the model expects.
    """
    counts = {name: image.shape[1] for name, image in images.items() if image.ndim == 4}
    dates = max(counts.values(), default=1)
    if any(count not in (1, dates) for count in counts.values()):
        listed = ", ".join(f"{files.get(name, name)} has {count}" for name, count in counts.items())
        raise DataError(
            f"The modalities of a sample have different numbers of dates: {listed}. Give each modality the same "
            "number of dates, or one date, which is repeated."
        )
    if taken is not None and counts and dates != taken.count:
        longest = max(counts, key=lambda name: counts[name])
        raise DataError(taken.refuse(f"{files.get(longest, longest)}: {longest}", dates))
    return {name: image.expand(-1, dates, -1, -1) if counts.get(name) == 1 else image for name, image in images.items()}


def has_data(image: Tensor, *, dated: bool) -> Tensor:
    """Return whether an image has a pixel with data: a boolean, or one for each date [dates] of a series.

    Args:
        image: Image, or a series [bands, dates, H, W], with NaN for missing data.
        dated: Whether it is a series.
    """
    known = ~image.isnan()
    return known.flatten(2).any(dim=2).any(dim=0) if dated else known.any()
