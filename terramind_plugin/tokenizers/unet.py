"""The U-Net of the diffusion decoder: it predicts the clean image from patches of a noisy one and the codes.

Source: the U-Net of guided diffusion (arXiv:2105.05233) on patches (arXiv:2207.04316), as in 4M (arXiv:2312.06647);
parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from terramind_plugin.model.layers import attend

Module = TypeVar("Module", bound=nn.Module)


def sinusoids(times: Tensor, dim: int) -> Tensor:
    """Return embeddings [T, dim] of diffusion times [T], float32: cosines first, then sines.

    Args:
        times: Steps of the diffusion process, 0 for the clean image.
        dim: Even number.
    """
    half = dim // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=times.device) / half)
    angles = times[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def _zero(layer: Module) -> Module:
    """Return a layer with its parameters set to zero, so that its residual block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class ResBlock(nn.Module):
    """Two convolutions with the diffusion time added in between.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output.
        time_dim: Width of the time embedding.
    """

    def __init__(self, channels: int, out_channels: int, time_dim: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, out_channels))
        # The dropout is never active; it keeps the numbering of the published weights.
        last = _zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.out_layers = nn.Sequential(_norm(out_channels), nn.SiLU(), nn.Dropout(0.0), last)
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """Return [B, out_channels, H, W].

        Args:
            x: Features [B, channels, H, W].
            shift: Output of `emb_layers` for the time embedding, [B or 1, out_channels].
        """
        hidden = self.in_layers(x) + shift[:, :, None, None]
        out: Tensor = self.skip_connection(x) + self.out_layers(hidden)
        return out


class AttentionBlock(nn.Module):
    """Self-attention with one head over all positions of a feature map.

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = _zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, channels, H, W]."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        # A convolution of width one is a linear layer; this order of axes avoids transpositions.
        qkv = F.linear(tokens, self.qkv.weight[..., 0], self.qkv.bias)
        q, k, v = qkv[:, None].chunk(3, dim=-1)
        out = F.linear(attend(q, k, v)[:, 0], self.proj_out.weight[..., 0], self.proj_out.bias)
        return x + out.transpose(1, 2).reshape(x.shape)


class Downsample(nn.Module):
    """Convolution with stride 2; odd sizes are rounded up.

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, channels, ceil(H / 2), ceil(W / 2)]."""
        out: Tensor = self.op(x)
        return out


class Upsample(nn.Module):
    """Doubling of the size, then a convolution.

    Args:
        channels: Channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Return [B, channels, *size]; `size` is twice that of x, or one less if the size was rounded up before."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest")[..., : size[0], : size[1]])
        return out


class Stage(nn.ModuleList):
    """Sequence of layers on one level of the U-Net."""

    def forward(self, x: Tensor, shifts: Iterator[Tensor], size: Sequence[int] = ()) -> Tensor:
        """Return the features after all layers.

        Args:
            x: Features [B, C, H, W].
            shifts: Time shifts; each residual block takes the next one.
            size: Height and width after an upsampling layer.
        """
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, next(shifts))
            elif isinstance(layer, Upsample):
                x = layer(x, size)
            else:
                x = layer(x)
        return x


def spread_codes(codes: Tensor, size: Sequence[int]) -> Tensor:
    """Return codes [B, D, *size], each repeated over its part of the map, or unchanged if they have that size.

    Args:
        codes: Codes [B, D, rows, columns].
        size: Height and width.
    """
    return codes if tuple(codes.shape[-2:]) == tuple(size) else F.interpolate(codes, size=tuple(size), mode="nearest")


class PatchedUNet(nn.Module):
    """Predicts the clean image from a noisy one, the diffusion time and the codes.

    Args:
        channels: Bands of the image.
        code_channels: Channels of the codes.
        patch_size: Height and width of a patch in pixels.
        width: Channels of the first level.
        multipliers: Channels of the levels, as multiples of `width`; each level has half the size of the one before.
        blocks: Residual blocks of a level on the way down; one more on the way up.
        attention_at: Downsampling rates at which there is attention.
    """

    def __init__(
        self,
        channels: int,
        code_channels: int,
        *,
        patch_size: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention_at: Collection[int],
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.width = width
        time_dim = 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
        patch_dim = channels * patch_size**2

        def stage(source: int, target: int, rate: int) -> list[nn.Module]:
            layers: list[nn.Module] = [ResBlock(source, target, time_dim)]
            return [*layers, AttentionBlock(target)] if rate in attention_at else layers

        current = width * multipliers[0]
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(patch_dim + code_channels, current, 3, padding=1)])])
        skips = [current]
        last = len(multipliers) - 1
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.input_blocks.append(Stage(stage(current, width * multiplier, 2**level)))
                current = width * multiplier
                skips.append(current)
            if level < last:
                self.input_blocks.append(Stage([Downsample(current)]))
                skips.append(current)
        middle = [ResBlock(current, current, time_dim), AttentionBlock(current), ResBlock(current, current, time_dim)]
        self.middle_block = Stage(middle)
        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            for index in range(blocks + 1):
                layers = stage(current + skips.pop(), width * multipliers[level], 2**level)
                current = width * multipliers[level]
                if level and index == blocks:
                    layers.append(Upsample(current))
                self.output_blocks.append(Stage(layers))
        self.out = nn.Sequential(_norm(current), nn.SiLU(), _zero(nn.Conv2d(current, patch_dim, 3, padding=1)))

    @property
    def shift_widths(self) -> list[int]:
        """Return the channels of the residual blocks, in the order of `time_shifts`."""
        widths: list[Any] = [block.emb_layers[-1] for block in self.modules() if isinstance(block, ResBlock)]
        return [layer.out_features for layer in widths]

    def time_shifts(self, times: Tensor) -> list[Tensor]:
        """Return the time shifts of the residual blocks, in order, each [T, channels of the block].

        Args:
            times: Steps of the diffusion process [T].
        """
        embedding = self.time_embed(sinusoids(times, self.width).to(next(self.time_embed.parameters()).dtype))
        return [block.emb_layers(embedding) for block in self.modules() if isinstance(block, ResBlock)]

    def forward(self, noisy: Tensor, codes: Tensor, shifts: Sequence[Tensor]) -> Tensor:
        """Return the predicted clean image [B, channels, H, W].

        Args:
            noisy: Image [B, channels, H, W]; H and W are multiples of the patch size.
            codes: Codes [B, code channels, rows, columns]; repeated up to the number of patches.
            shifts: Result of `time_shifts` for one time, or for one time per sample; each [B or 1, channels of the
                block].
        """
        size = self.patch_size
        patches = rearrange(noisy, "b c (h p) (w q) -> b (c p q) h w", p=size, q=size)
        x = torch.cat([patches, spread_codes(codes, patches.shape[-2:])], dim=1)
        x = x.contiguous(memory_format=torch.channels_last)
        remaining = iter(shifts)
        skips: list[Tensor] = []
        for stage in self.input_blocks:
            x = stage(x, remaining)
            skips.append(x)
        x = self.middle_block(x, remaining)
        for stage in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            x = stage(x, remaining, skips[-1].shape[-2:] if skips else ())
        image: Tensor = rearrange(self.out(x), "b (c p q) h w -> b c (h p) (w q)", p=size, q=size)
        return image
