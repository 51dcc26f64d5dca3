"""TerraTorch's wrapper for time series around a backbone of this package.

TerraTorch puts its TemporalWrapper around a backbone where a configuration has `backbone_use_temporal: true`. `install`
replaces two of its methods. Around other backbones the wrapper works as before, except that one-date inputs are
repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from terramind_plugin.backbones.encoder import TerraMindBackbone
from terramind_plugin.backbones.layer_list import LayerList
from terramind_plugin.data.terratorch_internals import TemporalWrapper
from terramind_plugin.errors import ConfigError

_init, _forward = TemporalWrapper.__init__, TemporalWrapper.forward


class UnknownWidths(Sequence[int]):
    """Stands for the widths of features that are concatenated over an unknown number of dates.

    TerraTorch has None there, and fails at it without a reason when it builds necks and decoder.
    """

    def __getitem__(self, index: Any) -> Any:
        raise ConfigError(
            "temporal_pooling: concat needs the number of dates to build the decoder. Add "
            "backbone_temporal_n_timestamps: NUMBER to model_args."
        )

    def __len__(self) -> int:
        return 0

    def copy(self) -> UnknownWidths:
        """Refuse what TerraTorch does first with widths.

        Raises:
            ConfigError: Always.
        """
        self[0]
        return self


def install() -> None:
    """Give TerraTorch's TemporalWrapper the methods of this module; a second call changes nothing."""
    TemporalWrapper.__init__ = _init_with_layers
    TemporalWrapper.forward = _forward_series


def _init_with_layers(self: Any, encoder: Any, *args: Any, **kwargs: Any) -> None:
    """Wrap an encoder, and keep the numbers of its layers beside the widths of its features."""
    _init(self, encoder, *args, **kwargs)
    widths, own = getattr(self, "out_channels", None), getattr(encoder, "out_channels", None)
    if widths is None or own is None:
        if self.pooling == "concat" and isinstance(encoder, TerraMindBackbone):
            self.out_channels = UnknownWidths()
        return
    if self.pooling == "concat" and self.subset_lengths is not None:
        widths = [width * len(self.subset_lengths) for width in list(own)]  # one mean for each part of the series
    keeps_numbers = isinstance(own, LayerList)
    self.out_channels = LayerList(list(widths), own.layers, positions=own.positions) if keeps_numbers else widths


def _forward_series(
    self: Any,
    x: Tensor | Mapping[str, Tensor],
    modality_mask: Mapping[str, Tensor] | None = None,
    image_size: object = None,
    **named: Any,
) -> list[Any]:
    """Return the features of a series, pooled over its dates.

    Args:
        self: The wrapper.
        x: By modality a series [B, bands, dates, H, W], standardised. A modality with one date, or without the
            dimension of dates, is repeated for each date. An image alone is the first modality of the encoder.
        modality_mask: For some modalities a boolean [B, dates] or [B]; False where a sample lacks the modality. A date
            that no series has takes the mean of the features of the sample's other dates, so that it changes neither
            the mean nor the maximum over the dates.
        image_size: Ignored, as by the backbone.
        named: Arguments that an encoder of another package may take.

    Returns:
        For each layer what the encoder returns for one date, pooled as configured.

    Raises:
        ConfigError: The modalities have different numbers of dates, or the encoder does not take a mask.
        ValueError: No input has the dimension of dates, or the pooling needs another number of dates.
    """
    single = isinstance(x, Tensor)
    series = {"": x} if isinstance(x, Tensor) else dict(x)
    batch, dates = _count(series)
    if not isinstance(self.encoder, TerraMindBackbone):
        if modality_mask:
            raise ConfigError(
                f"{type(self.encoder).__name__} takes no modality_mask in a time series: allow_missing_modalities "
                "needs a backbone of this package, or no expand_temporal_dimension."
            )
        repeated = x if single else {name: _repeat(image, dates) for name, image in series.items()}
        return list(_forward(self, repeated, **named))
    flat = {name: _flatten(image, dates) for name, image in series.items()}
    masks = {name: _flatten_mask(mask, batch, dates) for name, mask in (modality_mask or {}).items()}
    features = self.encoder(flat[""] if single else flat, modality_mask=masks or None, **named)
    known = _known_dates(series, masks, batch, dates) if masks else None
    pooled = [_pool_layer(self, layer, batch, dates, known) for layer in features]
    return LayerList(pooled, features.layers) if isinstance(features, LayerList) else pooled


def _count(series: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return the numbers of samples and dates."""
    with_dates = {name: image for name, image in series.items() if image.ndim == 5}
    if not with_dates:
        shape = tuple(next(iter(series.values())).shape)
        raise ValueError(f"Expected input shape [B, C, T, H, W], got {shape}")
    counts = {name: image.shape[2] for name, image in with_dates.items()}
    dates = max(counts.values())
    if any(count not in (1, dates) for count in counts.values()):
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(
            f"The modalities have different numbers of dates: {listed}. Give each as many dates, or one date, which is "
            "repeated."
        )
    return len(next(iter(with_dates.values()))), dates


def _repeat(image: Tensor, dates: int) -> Tensor:
    """Return an image [B, bands, H, W] or [B, bands, 1, H, W] for each date; other inputs as they are."""
    image = image[:, :, None] if image.ndim == 4 else image
    return image.expand(-1, -1, dates, -1, -1) if image.ndim == 5 and image.shape[2] == 1 else image


def _flatten(image: Tensor, dates: int) -> Tensor:
    """Return an input with its dates as samples, those of a sample one after the other."""
    if image.ndim == 5 and image.shape[2] > 1:
        return rearrange(image, "b c t h w -> (b t) c h w")
    return (image[:, :, 0] if image.ndim == 5 else image).repeat_interleave(dates, dim=0)


def _flatten_mask(mask: Tensor, batch: int, dates: int) -> Tensor:
    """Return a mask [B * dates] of one [B, dates] or [B]."""
    mask = torch.as_tensor(mask).bool()
    if mask.shape not in ((batch,), (batch, 1), (batch, dates)):
        raise ConfigError(
            f"modality_mask has the shape {list(mask.shape)}, expected [{batch}] or [{batch}, {dates}]: a value for "
            "each sample, or for each of its dates."
        )
    return mask.reshape(batch, -1).expand(-1, dates).flatten()


def _known_dates(series: Mapping[str, Tensor], masks: Mapping[str, Tensor], batch: int, dates: int) -> Tensor | None:
    """Return a boolean [B, dates], True where some series that changes has data; None if that is so at every date."""
    seen = []
    for name, image in series.items():
        if image.ndim == 5 and image.shape[2] == dates:
            has_data = ~image.isnan().flatten(3).all(dim=3).all(dim=1)
            mask = masks.get(name)
            has_data = has_data if mask is None else has_data & mask.to(image.device).view(batch, dates)
            first = image[:, :, :1]
            changes = ((image != first) & ~(image.isnan() & first.isnan())).flatten(1).any(dim=1)
            seen.append(has_data & changes[:, None])  # one date that was repeated says nothing about the others
    known = torch.stack(seen).any(dim=0)
    known = known | ~known.any(dim=1, keepdim=True)  # without any date all count: there is nothing to take instead
    return None if bool(known.all()) else known


def _pool_layer(wrapper: Any, features: Any, batch: int, dates: int, known: Tensor | None) -> Any:
    """Return the features of one layer pooled over the dates."""
    if isinstance(features, Mapping):
        return {name: _pool_layer(wrapper, one, batch, dates, known) for name, one in features.items()}
    stacked = wrapper.reshape_5d(wrapper.permute_op(features, wrapper.features_permute_op), batch, dates)
    if known is not None:
        weights = known.to(stacked.dtype).view(batch, dates, *[1] * (stacked.ndim - 2))
        mean = (stacked * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
        stacked = torch.where(weights.bool(), stacked, mean)
    pooled = wrapper.pool_temporal(stacked, wrapper.pooling, wrapper.subset_lengths)
    pooled = wrapper.permute_op(pooled, wrapper.reverse_permute_op)
    return wrapper.vit_postprocess(pooled)
