"""Waits of the host for the device, and recompilations after warm-up."""

from __future__ import annotations

import functools
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.gpu.decoding import NAME, in_inference, steps_of
from bench.gpu.models import build_pair, compiled, failures, layers_of, make_step
from bench.gpu.setting import EAGER, GRAPHS, OURS, Measurement, Setting, Work, first_line, side
from terramind_plugin.builders import build_image_tokenizer

WAIT = "called a synchronizing CUDA operation"
"""What PyTorch warns of in the debug mode that counts waits."""
READS = {"_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "equal"}
"""Operations whose result the host reads: each is a wait on a GPU."""


class HostReads(TorchDispatchMode):
    """Counts operations whose result the host reads: a CPU's stand-in for CUDA's count of waits."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in READS:
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def count_waits(setting: Setting, work: Work) -> Counter[str]:
    """Return how often the host waits for the device, by place in the code; on a CPU by operation."""
    if not setting.is_cuda:
        with HostReads() as reads:
            work()
        return reads.found
    setting.synchronise()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(
        f"{Path(one.filename).parent.name}/{Path(one.filename).name}:{one.lineno}"
        for one in caught if WAIT in str(one.message)
    )  # fmt: skip


def count_graphs() -> int:
    """Return the number of graphs that dynamo has compiled so far."""
    dynamo = sys.modules.get("torch._dynamo.utils")  # imported by the first compilation
    return 0 if dynamo is None else int(dynamo.counters["stats"]["unique_graphs"])


def measure_waits(setting: Setting, kind: str, size: str, pixels: int, batch: int) -> None:
    """Count waits and recompilations of a step of the backbone or of TiM, or of a decoded image."""
    if kind == "decoder":
        case = f"decode S2L2A {pixels}, {steps_of(setting)} steps"
        model = build_image_tokenizer(NAME, encoder=False).requires_grad_(False).to(setting.device)
    else:
        case = f"{kind} {size} {pixels}, step"
        model = build_pair(setting, size + ("_tim" if kind == "TiM" else ""))[OURS]
    make = _decodings if kind == "decoder" else _steps
    for mode in (EAGER, GRAPHS):
        try:
            run = compiled(model, OURS, mode)
            _count(setting, case, side(OURS, mode), make(setting, run, size, pixels, batch))
        except Exception as error:  # recorded: the other mode is still worth knowing
            setting.add(Measurement(case, side(OURS, mode), None, "waits", remark=first_line(error)))


def _steps(setting: Setting, model: Any, size: str, pixels: int, batch: int) -> dict[str, Work]:
    """Return steps of a usual batch, of a smaller one, of smaller images, and with a modality mask."""
    layers = layers_of(size)
    shapes = ((batch, pixels), (batch - 1, pixels), (batch, pixels - 32))
    steps = {
        f"{count} samples of {length}": make_step(setting, model, setting.images(count, length), layers)
        for count, length in shapes
    }
    present = torch.arange(batch, device=setting.device) > 0
    mask = {"S2L2A": torch.ones_like(present), "S1GRD": present}
    steps["modality mask"] = make_step(setting, model, setting.images(batch, pixels), layers, mask)
    return steps


def _decodings(setting: Setting, model: Any, _: str, pixels: int, batch: int) -> dict[str, Work]:
    """Return the decoding of a usual batch and of a smaller one, from noise on the device."""
    works = {}
    for count in (batch, batch - 1):
        tokens = torch.zeros(count, pixels // 16, pixels // 16, dtype=torch.int64, device=setting.device)
        noise = setting.random(count, 12, pixels, pixels)
        decode = functools.partial(
            model.decode_tokens, tokens, timesteps=steps_of(setting), noise=noise, checked=True  # as in generation
        )  # fmt: skip
        works[f"{count} samples"] = in_inference(setting, decode, bf16=True)
    return works


def _count(setting: Setting, case: str, name: str, works: Mapping[str, Work]) -> None:
    """Warm up, and count graphs that are compiled later and waits of each piece of work."""
    for _ in range(1 if setting.quick else 3):
        for work in works.values():
            setting.begin_step()
            work()
    before = count_graphs()
    for what, work in works.items():
        setting.begin_step()
        waits = count_waits(setting, work)
        places = ", ".join(f"{place} x {number}" for place, number in waits.most_common(4))
        setting.add(Measurement(f"{case}, {what}", name, waits.total(), "waits", remark=places))
    made = count_graphs() - before
    setting.add(Measurement(case, name, made, "recompilations", remark=failures()))
