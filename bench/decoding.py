"""The UNet decoder that upsamples and convolves at once, beside TerraTorch's, with equal weights."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from terratorch.models.decoders import UNetDecoder
from torch import Tensor, nn

from bench.cache import chosen
from bench.compare import Pair, Row, Side, Work, compare, in_precision
from bench.measure import say
from bench.models import PIXELS
from bench.timing import Clock
from terramind_plugin.inference.segmentation import for_inference
from terramind_plugin.integration.decoders import build_unet
from terramind_plugin.model.variants import VARIANTS

CHANNELS = [512, 256, 128, 64]
STRIDES = (4, 8, 16, 32)
THEIRS, OURS, MAPPED = "TerraTorch", "ours", "ours, as for maps"
IMAGES = {"forward": 8, "forward and backward": 2}
MIB = 2**20


def measure_decoder(size: str, precisions: Sequence[str], rounds: int, clock: Clock) -> tuple[list[Row], list[str]]:
    """Return times of decoders, and what the backward pass keeps in memory."""
    say(f"decoder, {size}")
    torch.manual_seed(0)
    width = VARIANTS[f"terramind_v1_{size}"].dim
    widths = [width // 4, width // 2, width, width]
    theirs = UNetDecoder(widths, CHANNELS)
    ours = build_unet(widths, CHANNELS)
    ours.load_state_dict(theirs.state_dict())
    decoders = {THEIRS: theirs.eval(), OURS: ours.eval(), MAPPED: for_inference(deepcopy(theirs))}
    rows = []
    for work, count in IMAGES.items():
        maps = _maps(widths, count)
        for decoder in (theirs, ours):
            decoder.train(work != "forward")
        whose = list(decoders) if work == "forward" else [THEIRS, OURS]
        run = _forward if work == "forward" else _backward
        works = {
            Side(who, precision): in_precision(run(decoders[who], maps), precision)
            for precision in chosen(precisions)
            for who in whose
        }
        pairs = [
            Pair(Side(THEIRS, precision), Side(who, precision), 1.0)
            for precision in chosen(precisions)
            for who in whose[1:]
        ]
        rows += compare(size, f"{work}, {count} images", works, pairs, rounds, clock)
    kept = []
    for count in IMAGES.values():
        before, after = (kept_bytes(decoder, _maps(widths, count)) / MIB for decoder in (theirs, ours))
        kept.append(f"{size}, {count} images: {before:.0f} → {after:.0f} MiB")
    return rows, kept


def _maps(widths: Sequence[int], count: int) -> list[Tensor]:
    return [torch.randn(count, n, PIXELS // step, PIXELS // step) for n, step in zip(widths, STRIDES, strict=True)]


def _forward(decoder: nn.Module, maps: list[Tensor]) -> Work:
    return torch.no_grad()(lambda: decoder(maps))


def _backward(decoder: nn.Module, maps: list[Tensor]) -> Work:
    def run() -> None:
        decoder.zero_grad()
        decoder([level.detach().requires_grad_() for level in maps]).sum().backward()

    return run


def kept_bytes(decoder: nn.Module, maps: list[Tensor]) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, inputs and weights not counted."""
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    inputs = [level.detach().requires_grad_() for level in maps]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        decoder(inputs)
    known = {x.untyped_storage().data_ptr() for x in [*inputs, *decoder.parameters(), *decoder.buffers()]}
    return sum(size for place, size in kept.items() if place not in known)
