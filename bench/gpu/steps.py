"""Forward and backward passes of backbones: eager, with graphs, compiled; with a mask; with less memory."""

from __future__ import annotations

import torch

from bench.gpu.memory import peak_bytes
from bench.gpu.models import build_ours, build_pair, compiled, layers_of, make_forward, make_step
from bench.gpu.setting import CHANNELS, EAGER, GRAPHS, OURS, REFERENCE, THEIRS, Measurement, Setting, side
from bench.gpu.timing import compare

SAVING, MASKED, FULL = "ours, checkpointing", "ours, modality mask", "ours, mask that lacks nothing"
MIB = 2**20


def measure_steps(setting: Setting, size: str, pixels: int, batch: int) -> None:
    """Measure steps of TerraTorch's eagerly, and of ours eagerly and with graphs; forward passes eagerly."""
    pair, images = build_pair(setting, size), setting.images(batch, pixels)
    works = {side(who): make_forward(setting, model, images) for who, model in pair.items()}
    compare(setting, f"{size} {pixels}, forward", works, REFERENCE, seconds=1.5)
    models = {side(who): model for who, model in pair.items()}
    models[side(OURS, GRAPHS)] = compiled(pair[OURS], OURS, GRAPHS)
    works = {name: make_step(setting, model, images, layers_of(size)) for name, model in models.items()}
    compare(setting, f"{size} {pixels}, step", works, REFERENCE)


def measure_compiled(setting: Setting, mode: str, size: str, pixels: int, batch: int) -> None:
    """Measure steps that both compile, beside TerraTorch's run eagerly."""
    case, images = f"{size} {pixels}, step, both in mode {mode}", setting.images(batch, pixels)
    pair = build_pair(setting, size)
    models = {REFERENCE: pair[THEIRS]}
    models |= {side(who, mode): compiled(model, who, mode) for who, model in pair.items()}
    works = {name: make_step(setting, model, images, layers_of(size)) for name, model in models.items()}
    compare(setting, case, works, REFERENCE, seconds=2.0)


def measure_memory(setting: Setting, size: str, pixels: int, batch: int) -> None:
    """Measure time and memory of steps: with checkpointing, with a modality mask, and beside TerraTorch's."""
    case, layers, images = f"{size} {pixels}, step", layers_of(size), setting.images(batch, pixels)
    pair = build_pair(setting, size)
    arguments = {"modalities": list(CHANNELS), "out_indices": layers, "activation_checkpointing": True}
    saving = build_ours(setting, f"terramind_v1_{size}", pair[THEIRS], **arguments)
    everyone = torch.ones(batch, dtype=torch.bool, device=setting.device)
    some = torch.arange(batch, device=setting.device) % 4 > 0
    masks = {MASKED: {"S2L2A": everyone, "S1GRD": some}, FULL: {"S2L2A": everyone, "S1GRD": everyone}}
    models = {THEIRS: pair[THEIRS], OURS: pair[OURS], SAVING: saving, MASKED: pair[OURS], FULL: pair[OURS]}
    steps = {name: make_step(setting, model, images, layers, masks.get(name)) for name, model in models.items()}
    for name, step in steps.items():
        step()
        setting.add(Measurement(f"{case}, memory", name, peak_bytes(setting, step) / MIB, "MiB"))
    compare(setting, f"{case}, {EAGER}", steps, OURS, seconds=2.0)
    del models[THEIRS]
    models = {name: compiled(model, OURS, GRAPHS) for name, model in models.items()}
    steps = {name: make_step(setting, model, images, layers, masks.get(name)) for name, model in models.items()}
    compare(setting, f"{case}, {GRAPHS}", steps, OURS, seconds=2.0, compiled=list(steps))
    for name, step in steps.items():
        setting.add(Measurement(f"{case}, memory, {GRAPHS}", name, peak_bytes(setting, step) / MIB, "MiB"))
