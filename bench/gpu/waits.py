"""Waits of the host for the device, and recompilations after warm-up."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.gpu.decoding import NAME, in_inference, steps_of
from bench.gpu.models import QUICK_PIXELS, build_ours, build_pair, build_theirs, compiled, layers_of, make_step
from bench.gpu.setting import EAGER, GRAPHS, OURS, Measurement, Setting, Work, first_line, side

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


def measure_waits(setting: Setting) -> None:
    """Count waits and recompilations of a step of the backbone, of TiM, and of a decoded image."""
    size, pixels, batch = ("tiny", QUICK_PIXELS, 2) if setting.quick else ("tiny", 224, 8)
    layers = layers_of(size)
    for kind in ("backbone", "TiM"):
        case = f"{kind} {size} {pixels}, step"
        if not setting.has_time(case, 10):
            continue
        model = build_pair(setting, size + ("_tim" if kind == "TiM" else ""))[OURS]
        for mode in (EAGER, GRAPHS):
            try:
                run = compiled(model, OURS, mode)
                steps = {
                    f"{count} samples of {side_}": make_step(setting, run, setting.images(count, side_), layers)
                    for count, side_ in ((batch, pixels), (batch - 1, pixels), (batch, pixels - 32))
                }
                present = torch.arange(batch, device=setting.device) > 0
                mask = {"S2L2A": torch.ones_like(present), "S1GRD": present}
                steps["modality mask"] = make_step(setting, run, setting.images(batch, pixels), layers, mask)
                _count(setting, case, side(OURS, mode), steps)
            except Exception as error:  # recorded
                setting.add(Measurement(case, side(OURS, mode), None, "waits", remark=first_line(error)))
        del model, run, steps
        setting.release()
    _count_decoding(setting, pixels, batch)


def _count_decoding(setting: Setting, pixels: int, batch: int) -> None:
    case = f"decode S2L2A {pixels}, {steps_of(setting)} steps"
    if not setting.has_time(case, 10):
        return
    model = build_ours(setting, NAME, build_theirs(setting, NAME), encoder=False)
    model.requires_grad_(False)
    for mode in (EAGER, GRAPHS):
        try:
            run = compiled(model, OURS, mode)
            works = {}
            for count in (batch, batch - 1):
                tokens = torch.zeros(count, pixels // 16, pixels // 16, dtype=torch.int64, device=setting.device)
                noise = setting.random(count, 12, pixels, pixels)

                def decode(run: Any = run, tokens: Any = tokens, noise: Any = noise) -> Any:
                    return run.decode_tokens(tokens, timesteps=steps_of(setting), noise=noise)

                works[f"{count} samples"] = in_inference(setting, decode, bf16=True)
            _count(setting, case, side(OURS, mode), works)
        except Exception as error:  # recorded
            setting.add(Measurement(case, side(OURS, mode), None, "waits", remark=first_line(error)))
    del model, run, works
    setting.release()


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
    setting.add(Measurement(case, name, count_graphs() - before, "recompilations"))
