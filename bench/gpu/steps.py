"""Forward and backward passes of backbones: eager, with graphs, compiled; with a mask; with less memory."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

from bench.gpu.memory import peak_bytes
from bench.gpu.models import QUICK_PIXELS, build_ours, build_pair, compiled, layers_of, make_forward, make_step
from bench.gpu.setting import (
    CHANNELS,
    DEFAULT,
    EAGER,
    GRAPHS,
    OURS,
    REFERENCE,
    THEIRS,
    Measurement,
    Setting,
    Work,
    first_line,
    side,
)
from bench.gpu.timing import compare

CASES = [("tiny", 224, 8), ("base", 224, 8), ("base", 512, 8), ("large", 224, 8), ("large", 512, 4), ("tiny", 512, 8)]
"""Size, pixels and batch, those with an aim first."""
QUICK_CASES = [("tiny", QUICK_PIXELS, 2)]
MIB = 2**20


def cases_of(setting: Setting) -> list[tuple[str, int, int]]:
    """Return the sizes, pixels and batches to measure."""
    return QUICK_CASES if setting.quick else CASES


def measure_steps(setting: Setting) -> None:
    """Measure steps of TerraTorch's eagerly, and of ours eagerly and with graphs; forward passes eagerly."""
    for size, pixels, batch in cases_of(setting):
        case = f"{size} {pixels}"
        if not setting.has_time(case, 15):
            continue
        pair, images = build_pair(setting, size), setting.images(batch, pixels)
        works = {side(who): make_forward(setting, model, images) for who, model in pair.items()}
        compare(setting, f"{case}, forward", works, REFERENCE, seconds=1.5)
        works = {side(who): make_step(setting, model, images, layers_of(size)) for who, model in pair.items()}
        works |= _compiled_steps(setting, case, {OURS: pair[OURS]}, GRAPHS, size, images)
        compare(setting, f"{case}, step", works, REFERENCE)
        del works, pair
        setting.release()


def measure_compiled(setting: Setting) -> None:
    """Measure steps of both with graphs and compiled by default, beside TerraTorch's eagerly."""
    for mode in (GRAPHS, DEFAULT):
        for size, pixels, batch in cases_of(setting):
            case = f"{size} {pixels}"
            if not setting.has_time(f"{case}, {mode}", 60):
                continue
            pair, images = build_pair(setting, size), setting.images(batch, pixels)
            works = {REFERENCE: make_step(setting, pair[THEIRS], images, layers_of(size))}
            works |= _compiled_steps(setting, case, pair, mode, size, images)
            compare(setting, f"{case}, step, both in mode {mode}", works, REFERENCE, seconds=2.0)
            del works, pair
            setting.release()


def _compiled_steps(
    setting: Setting, case: str, pair: Mapping[str, Any], mode: str, size: str, images: Mapping[str, torch.Tensor]
) -> dict[str, Work]:
    """Return the steps of models in a mode; one that cannot be compiled is recorded and left out."""
    works = {}
    for who, model in pair.items():
        try:
            other = compiled(copy.deepcopy(model), who, mode)
        except Exception as error:  # recorded
            setting.add(Measurement(f"{case}, step", side(who, mode), None, "ms", remark=first_line(error)))
            continue
        works[side(who, mode)] = make_step(setting, other, images, layers_of(size))
    return works


def measure_memory(setting: Setting) -> None:
    """Measure time and memory of steps: with checkpointing, with a modality mask, and beside TerraTorch's."""
    sizes = QUICK_CASES if setting.quick else [("base", 512, 8), ("tiny", 224, 8), ("large", 512, 4)]
    for size, pixels, batch in sizes:
        case = f"{size} {pixels}"
        if not setting.has_time(case, 12):
            continue
        layers, images = layers_of(size), setting.images(batch, pixels)
        pair = build_pair(setting, size)
        arguments = {"modalities": list(CHANNELS), "out_indices": layers, "activation_checkpointing": True}
        saving = build_ours(setting, f"terramind_v1_{size}", pair[THEIRS], **arguments)
        present = torch.arange(batch, device=setting.device) % 4 > 0
        mask = {"S2L2A": torch.ones_like(present), "S1GRD": present}
        full = {name: torch.ones_like(present) for name in mask}
        steps = {
            "TerraTorch": make_step(setting, pair[THEIRS], images, layers),
            "ours": make_step(setting, pair[OURS], images, layers),
            "ours, checkpointing": make_step(setting, saving, images, layers),
            "ours, modality mask": make_step(setting, pair[OURS], images, layers, mask),
            "ours, mask of a whole batch": make_step(setting, pair[OURS], images, layers, full),
        }
        for name, step in steps.items():
            step()
            peak = peak_bytes(setting, step)
            setting.add(Measurement(f"{case}, step, memory", name, peak / MIB, "MiB"))
        for mode in (EAGER, GRAPHS):
            works = dict(steps)
            if mode == GRAPHS:
                models = {"ours": pair[OURS], "ours, checkpointing": saving, "ours, modality mask": pair[OURS]}
                works = _in_graphs(setting, models, images, size, mask)
            compare(setting, f"{case}, step, {mode}", works, "ours", seconds=2.0)
        del pair, saving, steps, works
        setting.release()


def _in_graphs(
    setting: Setting, models: Mapping[str, Any], images: Mapping[str, torch.Tensor], size: str, mask: Any
) -> dict[str, Work]:
    works = {}
    for name, model in models.items():
        given = mask if "mask" in name else None
        works[name] = make_step(setting, compiled(copy.deepcopy(model), OURS, GRAPHS), images, layers_of(size), given)
    return works
