"""TerraTorch's wrapper for time series around a backbone of this package.

TerraTorch puts its TemporalWrapper around a backbone if a configuration has `backbone_use_temporal: true`. `install`
replaces two of its methods. Around other backbones the wrapper works as before, except that inputs of one date are
repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from terramind_plugin.backbones.encoder import TerraMindBackbone
from terramind_plugin.backbones.layer_list import LayerList
from terramind_plugin.backbones.series import count_dates, encode_series, fill_dates, repeat_date
from terramind_plugin.data.terratorch_internals import TemporalWrapper
from terramind_plugin.errors import ConfigError

_init, _forward = TemporalWrapper.__init__, TemporalWrapper.forward


class UnknownWidths(Sequence[int]):
    """Placeholder for the widths of features that are concatenated over an unknown number of dates.

    TerraTorch uses None, and then fails without a clear message when it builds necks and decoder.
    """

    def __getitem__(self, index: Any) -> Any:
        raise ConfigError(
            "temporal_pooling: concat needs the number of dates to build the decoder. Add "
            "backbone_temporal_n_timestamps: NUMBER to model_args."
        )

    def __len__(self) -> int:
        return 0

    def copy(self) -> UnknownWidths:
        """Raise the error, because TerraTorch first copies the widths.

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
    """Wrap an encoder, and keep the numbers of its layers together with the widths of its features."""
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
        x: Standardised series by modality, [B, bands, dates, H, W]. A modality with one date, or without the dimension
            of dates, is repeated for each date. A single tensor is the first modality of the encoder.
        modality_mask: Boolean [B, dates] or [B] for some modalities, False where a sample lacks the modality. A date
            that all series lack gets the mean of the features of the sample's other dates.
        image_size: Ignored, as by the backbone.
        named: Further arguments for an encoder of another package.

    Returns:
        The features of each layer, pooled as configured.

    Raises:
        ConfigError: The modalities have different numbers of dates, or the encoder does not take a mask.
        ValueError: No input has the dimension of dates, or the pooling needs another number of dates.
    """
    single = isinstance(x, Tensor)
    series = {"": x} if isinstance(x, Tensor) else dict(x)
    if not isinstance(self.encoder, TerraMindBackbone):
        if modality_mask:
            raise ConfigError(
                f"{type(self.encoder).__name__} takes no modality_mask in a time series: allow_missing_modalities "
                "needs a backbone of this package, or no expand_temporal_dimension."
            )
        _, dates = count_dates(series)
        repeated = x if single else {name: repeat_date(image, dates) for name, image in series.items()}
        return list(_forward(self, repeated, **named))

    def encode(flat: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None) -> list[Any]:
        features: list[Any] = self.encoder(flat[""] if single else flat, modality_mask=masks, **named)
        return features

    return encode_series(encode, series, modality_mask, partial(_pool_layer, self))


def _pool_layer(wrapper: Any, features: Any, batch: int, dates: int, known: Tensor | None) -> Any:
    """Return the features of one layer pooled over the dates."""
    if isinstance(features, Mapping):
        return {name: _pool_layer(wrapper, one, batch, dates, known) for name, one in features.items()}
    stacked = wrapper.reshape_5d(wrapper.permute_op(features, wrapper.features_permute_op), batch, dates)
    if known is not None:
        stacked = fill_dates(stacked, known)
    pooled = wrapper.pool_temporal(stacked, wrapper.pooling, wrapper.subset_lengths)
    pooled = wrapper.permute_op(pooled, wrapper.reverse_permute_op)
    return wrapper.vit_postprocess(pooled)
