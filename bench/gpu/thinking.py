"""Thinking-in-Modalities: forward and backward passes, cold and with a cache."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

from bench.gpu.models import QUICK_PIXELS, build_ours, build_pair, compiled, layers_of, make_forward, make_step
from bench.gpu.setting import CHANNELS, EAGER, GRAPHS, OURS, REFERENCE, THEIRS, Measurement, Setting, first_line, side
from bench.gpu.timing import compare

CASES = [("base", 224, 8), ("base", 512, 4)]
QUICK_CASES = [("tiny", QUICK_PIXELS, 2)]
CACHED = "ours, warm cache"
PLAIN = "ours, without TiM"


def measure_thinking(setting: Setting) -> None:
    """Measure TiM with LULC: TerraTorch's eagerly; ours eagerly, with graphs, from a cache, and the plain backbone."""
    for size, pixels, batch in QUICK_CASES if setting.quick else CASES:
        case = f"TiM {size} {pixels}"
        if not setting.has_time(case, 20):
            continue
        layers, images = layers_of(size), setting.images(batch, pixels)
        pair: dict[str, Any] = build_pair(setting, f"{size}_tim")
        plain = build_ours(setting, f"terramind_v1_{size}", pair[THEIRS], modalities=list(CHANNELS), out_indices=layers)
        with tempfile.TemporaryDirectory() as folder:
            cached = build_ours(
                setting, f"terramind_v1_{size}_tim", pair[THEIRS],
                modalities=list(CHANNELS), out_indices=layers, tim_cache=Path(folder),
            )  # fmt: skip
            models = {side(THEIRS): pair[THEIRS], side(OURS): pair[OURS], PLAIN: plain, CACHED: cached}
            for name, model in (("ours", pair[OURS]), (CACHED, cached), (PLAIN, plain)):
                try:
                    models[f"{name}, {GRAPHS}"] = compiled(copy.deepcopy(model), OURS, GRAPHS)
                except Exception as error:  # recorded
                    setting.add(Measurement(f"{case}, step", f"{name}, {GRAPHS}", None, "ms", remark=first_line(error)))
            works = {name: make_step(setting, model, images, layers) for name, model in models.items()}
            compare(setting, f"{case}, step", works, REFERENCE)
            if setting.has_time(f"{case}, forward", 10):
                models = {name: model for name, model in models.items() if EAGER in name or name in (PLAIN, CACHED)}
                works = {name: make_forward(setting, model, images) for name, model in models.items()}
                compare(setting, f"{case}, forward", works, REFERENCE, seconds=2.0)
            del models, works, cached
        del pair, plain
        setting.release()
