"""Time series through a backbone of one date: dates are encoded as samples, and their features are pooled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from terramind_plugin.backbones.layer_list import LayerList
from terramind_plugin.errors import ConfigError
from terramind_plugin.model.dates import DatesTaken

POOLINGS = ("mean", "max", "diff", "concat", "keep")
"""Poolings of TerraTorch's wrapper for time series."""
Encode = Callable[[Mapping[str, Tensor], Mapping[str, Tensor] | None], list[Any]]
"""Function that returns the features of each layer from images of one date by modality, and their masks [B]."""
Pool = Callable[[Any, int, int, Tensor | None], Any]
"""Function that pools one layer's features [B * dates, N, D], given B, dates, and a mask [B, dates] of known dates."""


@dataclass(frozen=True)
class SeriesPooling:
    """Pooling of the features of several dates, as in TerraTorch's TemporalWrapper."""

    pooling: str = "mean"
    """One of `POOLINGS`; 'keep', which leaves the dates to a decoder, concatenates vectors like 'concat'."""
    subsets: tuple[int, ...] = ()
    """Lengths of the parts of a series that are averaged first; empty for single dates."""
    dates: int | None = None
    """Number of dates that the model was trained with, if the width of its features depends on it."""

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ConfigError(f"temporal_pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}.")

    @property
    def taken(self) -> DatesTaken | None:
        """Return the number of dates that can be pooled; None for any."""
        if self.subsets:
            return DatesTaken(sum(self.subsets), f"temporal_subset_lengths: {list(self.subsets)}")
        if self.pooling == "diff":
            return DatesTaken(2, "temporal_pooling: diff")
        if self.pooling in ("concat", "keep") and self.dates is not None:
            return DatesTaken(self.dates, f"temporal_pooling: {self.pooling} with {self.dates} dates")
        return None

    def describe(self) -> str:
        """Return the pooling as text."""
        return self.pooling + (f" of the means of {list(self.subsets)} dates" if self.subsets else "")

    def widen(self, width: int, dates: int) -> int:
        """Return the width of pooled vectors.

        Args:
            width: Width of the vectors of one date.
            dates: Number of dates.
        """
        return width * (len(self.subsets) or dates) if self.pooling in ("concat", "keep") else width

    def pool(self, features: Tensor, batch: int, dates: int, known: Tensor | None) -> Tensor:
        """Return pooled features [B, N, D].

        Args:
            features: Features [B * dates, N, D], with the dates of a sample one after the other.
            batch: Number of samples.
            dates: Number of dates.
            known: Boolean [B, dates], False where a date has no data; None if all dates have data.

        Raises:
            ConfigError: The pooling needs another number of dates.
        """
        taken = self.taken
        if taken is not None and taken.count != dates:
            raise ConfigError(taken.refuse("The series", dates))
        stacked = features.reshape(batch, dates, *features.shape[1:])
        stacked = stacked if known is None else fill_dates(stacked, known)
        if self.subsets:
            stacked = torch.stack([part.mean(dim=1) for part in torch.split(stacked, list(self.subsets), dim=1)], dim=1)
        if self.pooling == "mean":
            return stacked.mean(dim=1)
        if self.pooling == "max":
            return stacked.amax(dim=1)
        if self.pooling == "diff":
            return stacked[:, 0] - stacked[:, 1]
        return rearrange(stacked, "b t n d -> b n (t d)")


def encode_series(
    encode: Encode, series: Mapping[str, Tensor], modality_mask: Mapping[str, Tensor] | None, pool: Pool
) -> list[Any]:
    """Return the features of each layer, pooled over the dates.

    Args:
        encode: Backbone of one date.
        series: Series by modality, [B, bands, dates, H, W]. A modality with one date, or without the dimension of
            dates, is repeated for each date.
        modality_mask: Boolean [B, dates] or [B] for some modalities, False where a sample lacks the modality. A date
            that all series lack gets the mean of the features of the sample's other dates; this mean does not change
            the mean over the dates.
        pool: Function that pools one layer.

    Raises:
        ConfigError: The modalities have different numbers of dates, or a mask does not fit.
        ValueError: No input has the dimension of dates.
    """
    batch, dates = count_dates(series)
    flat = {name: _flatten(image, dates) for name, image in series.items()}
    masks = {name: _flatten_mask(mask, batch, dates) for name, mask in (modality_mask or {}).items()}
    features = encode(flat, masks or None)
    known = _known_dates(series, masks, batch, dates) if masks else None
    pooled = [pool(layer, batch, dates, known) for layer in features]
    return LayerList(pooled, features.layers) if isinstance(features, LayerList) else pooled


def count_dates(series: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return the numbers of samples and dates.

    Raises:
        ConfigError: The modalities have different numbers of dates.
        ValueError: No input has the dimension of dates.
    """
    with_dates = {name: image for name, image in series.items() if image.ndim == 5}
    if not with_dates:
        shape = tuple(next(iter(series.values())).shape)
        raise ValueError(f"Expected input shape [B, C, T, H, W], got {shape}")
    counts = {name: image.shape[2] for name, image in with_dates.items()}
    dates = max(counts.values())
    if any(count not in (1, dates) for count in counts.values()):
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(
            f"The modalities have different numbers of dates: {listed}. Give each the same number of dates, or one "
            "date, which is repeated."
        )
    return len(next(iter(with_dates.values()))), dates


def repeat_date(image: Tensor, dates: int) -> Tensor:
    """Return an image [B, bands, H, W] or [B, bands, 1, H, W] repeated for each date; other inputs unchanged."""
    image = image[:, :, None] if image.ndim == 4 else image
    return image.expand(-1, -1, dates, -1, -1) if image.ndim == 5 and image.shape[2] == 1 else image


def fill_dates(features: Tensor, known: Tensor) -> Tensor:
    """Return features in which dates without data are replaced by the mean of the sample's other dates.

    Args:
        features: Features [B, dates, ...].
        known: Boolean [B, dates], True for at least one date of each sample.
    """
    weights = known.to(features.dtype).view(*known.shape, *[1] * (features.ndim - 2))
    mean = (features * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
    return torch.where(weights.bool(), features, mean)


def _flatten(image: Tensor, dates: int) -> Tensor:
    """Return an input with its dates as samples, those of a sample one after the other."""
    if image.ndim == 5 and image.shape[2] > 1:
        return rearrange(image, "b c t h w -> (b t) c h w")
    return (image[:, :, 0] if image.ndim == 5 else image).repeat_interleave(dates, dim=0)


def _flatten_mask(mask: Tensor, batch: int, dates: int) -> Tensor:
    """Return a mask [B * dates] from a mask [B, dates] or [B]."""
    mask = torch.as_tensor(mask).bool()
    if mask.shape not in ((batch,), (batch, 1), (batch, dates)):
        raise ConfigError(
            f"modality_mask has the shape {list(mask.shape)}, expected [{batch}] or [{batch}, {dates}]: a value for "
            "each sample, or for each of its dates."
        )
    return mask.reshape(batch, -1).expand(-1, dates).flatten()


def _known_dates(series: Mapping[str, Tensor], masks: Mapping[str, Tensor], batch: int, dates: int) -> Tensor | None:
    """Return a boolean [B, dates], True where some series that was not repeated has data; None if True everywhere."""
    seen = []
    for name, image in series.items():
        if image.ndim == 5 and image.shape[2] == dates:
            has_data = ~image.isnan().flatten(3).all(dim=3).all(dim=1)
            mask = masks.get(name)
            has_data = has_data if mask is None else has_data & mask.to(image.device).view(batch, dates)
            first = image[:, :, :1]
            changes = ((image != first) & ~(image.isnan() & first.isnan())).flatten(1).any(dim=1)
            seen.append(has_data & changes[:, None])  # a repeated date does not show whether other dates have data
    known = torch.stack(seen).any(dim=0)
    known = known | ~known.any(dim=1, keepdim=True)  # without any known date all count, because there is no replacement
    return None if bool(known.all()) else known


def read_pooling(arguments: Mapping[str, Any]) -> SeriesPooling | None:
    """Return the pooling that the arguments of a backbone ask for; None for a backbone of one date.

    Args:
        arguments: Arguments without 'backbone_', such as use_temporal and temporal_pooling.
    """
    if not arguments.get("use_temporal"):
        return None
    subsets: Sequence[int] = arguments.get("temporal_subset_lengths") or ()
    return SeriesPooling(
        str(arguments.get("temporal_pooling") or "mean"), tuple(subsets), arguments.get("temporal_n_timestamps")
    )
