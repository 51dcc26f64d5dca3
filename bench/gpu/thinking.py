"""Thinking-in-Modalities: forward and backward passes, cold and with a cache."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.gpu.models import build_ours, build_pair, compiled, layers_of, make_forward, make_step
from bench.gpu.setting import CHANNELS, GRAPHS, OURS, REFERENCE, THEIRS, Setting, side
from bench.gpu.timing import compare

CACHED = "ours, warm cache"
PLAIN = "ours, without TiM"


def measure_thinking(setting: Setting, size: str, pixels: int, batch: int) -> None:
    """Measure TiM with LULC: TerraTorch's eagerly; ours eagerly, with graphs, from a cache, and the plain backbone."""
    with tempfile.TemporaryDirectory() as folder:
        _measure(setting, size, pixels, batch, Path(folder))


def _measure(setting: Setting, size: str, pixels: int, batch: int, folder: Path) -> None:
    layers, images, case = layers_of(size), setting.images(batch, pixels), f"TiM {size} {pixels}"
    pair = build_pair(setting, f"{size}_tim")
    arguments = {"modalities": list(CHANNELS), "out_indices": layers}
    plain = build_ours(setting, f"terramind_v1_{size}", pair[THEIRS], **arguments)
    cached = build_ours(setting, f"terramind_v1_{size}_tim", pair[THEIRS], **arguments, tim_cache=folder)
    ours = {side(OURS): pair[OURS], CACHED: cached, PLAIN: plain}
    models = {REFERENCE: pair[THEIRS], **ours, side(OURS, GRAPHS): compiled(pair[OURS], OURS, GRAPHS)}
    models[f"{PLAIN}, {GRAPHS}"] = compiled(plain, OURS, GRAPHS)
    works = {name: make_step(setting, model, images, layers) for name, model in models.items()}
    compare(setting, f"{case}, step", works, REFERENCE)
    if setting.has_time(f"{case}, forward", 10):
        works = {name: make_forward(setting, models[name], images) for name in (REFERENCE, *ours)}
        compare(setting, f"{case}, forward", works, REFERENCE, seconds=2.0)
