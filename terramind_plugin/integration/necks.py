"""The neck between a backbone's tokens and a decoder's maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from terramind_plugin.errors import ConfigError

STRIDES = (4, 8, 16, 32)
"""Pixels per cell of the pyramid's levels, finest first."""

_CPU = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
TRAINS_ON_PLANES = bool(_CPU.get("avx2", False) and not _CPU.get("avx512_f", False))
"""Whether training of convolutions is faster on this CPU if channels are not last in memory.

Tokens have their channels last. On such maps convolutions copy their weights four times in a step, and the backward
pass is slow without AVX-512."""


class TokenPyramid(nn.Module):
    """Neck that makes a feature pyramid with strides 4, 8, 16 and 32 from the tokens of four layers.

    It replaces TerraTorch's SelectIndices, ReshapeTokensToImage and LearnedInterpolateToPyramidal. The token grid is
    derived from the image size, so that images need not be square. Widths of levels and names of layers are those of
    LearnedInterpolateToPyramidal, so that its weights can be loaded.

    Args:
        channel_list: Channels of each layer of the backbone.
        indices: Numbers of four layers, finest level first; None for the third, sixth, ninth and last of twelve layers,
            and for the same shares of other depths.
        patch_size: Pixels per token.

    Raises:
        ConfigError: There are not four layers, or the backbone lacks one of them.
    """

    def __init__(self, channel_list: Sequence[int], indices: Sequence[int] | None = None, patch_size: int = 16) -> None:
        super().__init__()
        depth = len(channel_list)
        kept = getattr(channel_list, "layers", range(depth))
        if indices is None:
            if depth < len(STRIDES):
                raise ConfigError(f"terramind_pyramid needs at least four layers, the backbone gives {depth}.")
            indices = [kept[depth * (level + 1) // len(STRIDES) - 1] for level in range(len(STRIDES))]
        layers = [kept[index] if -depth <= index < 0 else index for index in indices]
        if len(layers) != len(STRIDES) or not set(layers) <= set(kept):
            raise ConfigError(f"terramind_pyramid needs four layers out of {list(kept)}, got indices {list(indices)}.")
        # Positions instead of layer numbers, because TerraTorch's TemporalWrapper makes a plain list of the backbone's.
        self.positions = [list(kept).index(layer) for layer in layers]
        self.token_size = patch_size
        self.channel_list = [list(channel_list)[position] for position in self.positions]
        first, second, _, _ = self.channel_list
        self.fpn1 = nn.Sequential(
            nn.ConvTranspose2d(first, first // 2, kernel_size=2, stride=2),
            nn.BatchNorm2d(first // 2),
            nn.GELU(),
            nn.ConvTranspose2d(first // 2, first // 4, kernel_size=2, stride=2),
        )
        self.fpn2 = nn.Sequential(nn.ConvTranspose2d(second, second // 2, kernel_size=2, stride=2))
        self.fpn4 = nn.MaxPool2d(kernel_size=2, stride=2)

    def process_channel_list(self, channel_list: Sequence[int]) -> list[int]:
        """Return the channels of the four levels, which TerraTorch passes to the decoder."""
        first, second, third, fourth = self.channel_list
        return [first // 4, second // 2, third, fourth]

    def forward(self, features: Sequence[Tensor], image_size: Any = None, **_: Any) -> list[Tensor]:
        """Return maps [B, channels, H / stride, W / stride], finest first.

        Args:
            features: Tokens [B, N, D] of each layer.
            image_size: Height and width of the images in pixels; needed if they are not square.

        Raises:
            ConfigError: The tokens do not form a grid of that size.
        """
        layers = list(features)
        tokens = [layers[position] for position in self.positions]
        if not all(isinstance(x, Tensor) and x.ndim == 3 for x in tokens):
            raise ConfigError(
                f"terramind_pyramid needs tokens [B, N, D] of each layer, got {type(tokens[0]).__name__}"
                f"{list(tokens[0].shape) if isinstance(tokens[0], Tensor) else ''}. "
                "Use merge_method mean, max or concat, and a time series with temporal_pooling mean, max or diff."
            )
        rows, columns = self._grid(tokens[0].shape[1], image_size)
        maps = [rearrange(x, "b (h w) d -> b d h w", h=rows, w=columns) for x in tokens]
        if TRAINS_ON_PLANES and torch.is_grad_enabled() and maps[0].device.type == "cpu":
            maps = [x.contiguous() for x in maps]
        return [self.fpn1(maps[0]), self.fpn2(maps[1]), maps[2], self.fpn4(maps[3])]

    def _grid(self, count: int, image_size: Any) -> tuple[int, int]:
        if image_size is None:
            side = round(count**0.5)
            rows, columns = side, side
        else:
            rows, columns = int(image_size[0]) // self.token_size, int(image_size[1]) // self.token_size
        if rows * columns != count:
            raise ConfigError(
                f"terramind_pyramid got {count} tokens for an image of {image_size}, expected {rows} x {columns}. "
                "Use merge_method mean, max or concat, and images whose sides are multiples of "
                f"{self.token_size}; set the neck's patch_size to that of the backbone, 16 or for terramind_sim_nano 8."
            )
        return rows, columns
