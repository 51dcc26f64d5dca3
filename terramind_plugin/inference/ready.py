"""Models made ready for inference: the same numbers, up to rounding, with less work."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from terramind_plugin.integration.decoders import upsample_at_once

Module = TypeVar("Module", bound=nn.Module)


def for_inference(model: Module) -> Module:
    """Return a model in evaluation mode that cannot be trained any more.

    UNet blocks upsample and convolve at once, and batch norms become part of the convolutions before them.

    Args:
        model: Changed in place; its weights, too, so hash or save them before.
    """
    model.eval().requires_grad_(False)
    upsample_at_once(model)
    for module in list(model.modules()):
        if type(module).forward is nn.Sequential.forward:
            _fold_norms(module)
    return model


def _fold_norms(layers: nn.Module) -> None:
    for (name, layer), (next_name, norm) in pairwise(list(layers.named_children())):
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        if norm.running_mean is not None:
            setattr(layers, name, fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, nn.ConvTranspose2d)))
            setattr(layers, next_name, nn.Identity())
