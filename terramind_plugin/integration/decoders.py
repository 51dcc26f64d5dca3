"""UNet decoder that upsamples and convolves in one step.

A 3 x 3 convolution of an image that was enlarged twofold by repeating its pixels uses each pixel up to four times. It
equals a transposed convolution of the small image whose 4 x 4 kernel contains sums of the weights. This takes 4/9 of
the multiplications, and no large image needs to be kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from terratorch.models.decoders import UNetDecoder
from torch import Tensor, nn
from torch.nn import functional as F

Module = TypeVar("Module", bound=nn.Module)


class UpsamplingBlock(UnetDecoderBlock):  # type: ignore[misc]  # a library without types
    """A faster version of segmentation_models_pytorch's block, with its layers and, up to rounding, its result."""

    _kernel: Tensor | None = None
    _made_of: tuple[Any, ...] = ()

    def forward(
        self, feature_map: Tensor, target_height: int, target_width: int, skip_connection: Tensor | None = None
    ) -> Tensor:
        """Return maps [B, channels, target_height, target_width].

        Args:
            feature_map: Maps [B, channels, h, w]. Unless they are half as high and wide as the target, they are
                upsampled first and then convolved.
            target_height: Height in pixels.
            target_width: Width in pixels.
            skip_connection: Maps of the encoder, [B, channels, target_height, target_width].
        """
        _, deep, height, width = feature_map.shape
        if (target_height, target_width) != (2 * height, 2 * width) or not self._is_plain(skip_connection):
            usual: Tensor = super().forward(feature_map, target_height, target_width, skip_connection)
            return usual
        convolution, norm, activation = self.conv1
        x = F.conv_transpose2d(feature_map, self._upsampling(deep), convolution.bias, stride=2, padding=1)
        if skip_connection is not None:
            x += F.conv2d(skip_connection, convolution.weight[:, deep:], padding=1)
        out: Tensor = self.attention2(self.conv2(activation(norm(x))))
        return out

    def _is_plain(self, skip_connection: Tensor | None) -> bool:
        attends = skip_connection is not None and not isinstance(self.attention1.attention, nn.Identity)
        return bool(self.interpolation_mode == "nearest") and not attends

    def _upsampling(self, deep: int) -> Tensor:
        """Return the kernel for the first channels. It is cached if the weights are not trained."""
        fixed: Tensor | None = getattr(self, "fixed_kernel", None)
        if fixed is not None:
            return fixed[:deep]
        weight = self.conv1[0].weight
        # Not cached in validation either, because averaged weights may be swapped in; a traced graph cannot cache it.
        if weight.requires_grad or torch.compiler.is_compiling():
            return upsampling_kernel(weight[:, :deep])
        made_of = (weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.dtype, deep)
        if self._kernel is None or made_of != self._made_of:
            self._kernel, self._made_of = upsampling_kernel(weight[:, :deep]), made_of
        return self._kernel

    def __getstate__(self) -> dict[str, Any]:
        # A copy has its own weights.
        return {name: value for name, value in super().__getstate__().items() if name not in ("_kernel", "_made_of")}


def upsampling_kernel(weight: Tensor) -> Tensor:
    """Return the kernel [in, out, 4, 4] of a transposed convolution with stride 2 and padding 1.

    The result equals repeating each pixel 2 x 2 times and convolving with `weight`, padded by 1.

    Args:
        weight: Weight of that convolution, [out, in, 3, 3].
    """
    kernel = weight.flip(2, 3).transpose(0, 1)
    kernel = F.pad(kernel, (0, 1)) + F.pad(kernel, (1, 0))
    return F.pad(kernel, (0, 0, 0, 1)) + F.pad(kernel, (0, 0, 1, 0))


def upsample_at_once(model: Module) -> Module:
    """Make all UNet blocks of a model upsample and convolve in one step, and return the model.

    Layers and their names stay the same. Blocks of derived classes do not change.

    Args:
        model: Changed in place.
    """
    for module in model.modules():
        if type(module) is UnetDecoderBlock:
            module.__class__ = UpsamplingBlock
    return model


def fix_kernels(model: Module) -> Module:
    """Store the kernels of a model's UNet blocks as buffers, and return the model.

    The graph made by `torch.compile` then does not compute the kernels again in each call.

    Args:
        model: Changed in place. Its weights must not change afterwards.
    """
    for module in model.modules():
        if isinstance(module, UpsamplingBlock):
            kernel = upsampling_kernel(module.conv1[0].weight.detach())
            module.register_buffer("fixed_kernel", kernel, persistent=False)
    return model


def build_unet(embed_dim: Sequence[int], channels: Sequence[int], **more: Any) -> UNetDecoder:
    """Return a faster UNetDecoder of TerraTorch, which gives the same results with the same weights.

    Args:
        embed_dim: Channels of each level, finest first.
        channels: Channels of each block.
        more: Further arguments of UNetDecoder.
    """
    return upsample_at_once(UNetDecoder(list(embed_dim), list(channels), **more))
