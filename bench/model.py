"""The floor of Thinking-in-Modalities, and the model's share of the time of a scene."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.compare import Pair, Row, Side, compare, in_precision
from bench.embedding import run_embed
from bench.measure import say
from bench.scene_runs import StandIn, run_ours, write_scene
from bench.scenes import build_scores
from bench.timing import Clock
from terramind_plugin.builders import build_tim
from terramind_plugin.generation.token_generator import EncoderTokens
from terramind_plugin.inference.embedder import Embedder
from terramind_plugin.inference.segmentation import for_inference
from terramind_plugin.model.modalities import token_key

PIXELS, BATCH = 224, 2
SHARE = 0.9
"""Smallest share of a command's time in the model."""


@torch.inference_mode()
def measure_thinking_floor(size: str, rounds: int, clock: Clock) -> list[Row]:
    """Return the time of a TiM forward beside the sum of its parts, each measured alone, in float32.

    The parts are matrix products that no other program of the same model could leave out: the generator's encoder, its
    decoder, and the encoder with one more modality.
    """
    say(f"thinking {size}: build")
    torch.manual_seed(0)
    model: Any = build_tim(f"terramind_v1_{size}", ["S2L1C", "S1GRD"]).eval()
    random = torch.Generator().manual_seed(0)
    images = {"S2L1C": torch.randn(BATCH, 13, PIXELS, PIXELS, generator=random),
              "S1GRD": torch.randn(BATCH, 2, PIXELS, PIXELS, generator=random)}  # fmt: skip
    sampler = model.sampler
    thoughts = model.think(images)
    everything = {**images, **thoughts}
    everything = {spec.name: everything[spec.name] for spec in model.inputs}
    tokens: EncoderTokens = sampler.read(images, checked=True)
    context = tokens.context()
    grid = PIXELS // model.patch_size
    index = torch.arange(grid * grid).expand(BATCH, -1)
    keys = [token_key(target) for target in sampler.targets.values()]
    parts: dict[str, Callable[[], Any]] = {
        "generator's encoder": lambda: sampler.model.encode(list(tokens.parts.values()), BATCH),
        "generator's decoder": lambda: [sampler.model.grid_logits(key, index, (grid, grid), context) for key in keys],
        "encoder, one more modality": lambda: model.encode(everything, None),
    }

    def all_parts() -> None:
        for part in parts.values():
            part()

    whole = Side("TiM forward", "float32")
    works = {whole: lambda: model(images), Side("its parts", "float32"): all_parts}
    works |= {Side(name, "float32"): part for name, part in parts.items()}
    pairs = [Pair(whole, side, None) for side in works if side != whole]
    pairs[0] = Pair(Side("its parts", "float32"), whole, 0.95)
    return compare(size, "TiM forward", {side: in_precision(work, "float32") for side, work in works.items()},
                   pairs, rounds, clock)  # fmt: skip


def measure_shares(rounds: int) -> list[tuple[str, float]]:
    """Return the share of each command's CPU time that is the model's, on one thread, its weights loaded.

    The scene has 1120 x 1120 pixels, compressed; the model is a tiny backbone, for the map with a UNet decoder.
    """
    runs: dict[str, tuple[type[nn.Module], Callable[[Path, Path], object]]] = {
        "embed": (Embedder, lambda scene, folder: run_embed(scene, folder, "terramind_v1_tiny", "cog")),
        "map": (StandIn, partial(run_ours, model=for_inference(StandIn(build_scores()).eval()))),
    }
    found = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the clock of the forward passes is that of their own thread
    with tempfile.TemporaryDirectory() as name:
        scene = write_scene(Path(name, "scene.tif"), 1120)
        for command, (kind, run) in runs.items():
            shares = [_share(kind, partial(run, scene, Path(name, command))) for _ in range(rounds)]
            found.append((command, statistics.median(shares)))
    torch.set_num_threads(threads)
    return found


def _share(kind: type[nn.Module], run: Callable[[], object]) -> float:
    """Return the share of CPU time that a function spends in the forward passes of a kind of model."""
    forward, inside = kind.forward, [0.0]

    def timed(self: Any, *arguments: Any) -> Any:
        began = time.thread_time()
        result = forward(self, *arguments)
        inside[0] += time.thread_time() - began
        return result

    kind.forward = timed
    try:
        began = time.process_time()
        run()
        return inside[0] / (time.process_time() - began)
    finally:
        kind.forward = forward
