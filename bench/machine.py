"""The machine: what it is, how fast its matrix products are, how much of it others use."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.cases import PRECISIONS, Case
from bench.models import SemanticSegmentationTask, make_round
from bench.timing import Clock

SIDE = 2048
"""Rows and columns of the matrices whose product measures the peak."""


def cpu_name() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe() -> dict[str, object]:
    """Return what a reader needs to judge the numbers."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(name)],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def measure_peak(precision: str, clock: Clock, repeats: int = 10) -> float:
    """Return the best speed of a large matrix product in FLOP/s.

    Args:
        precision: Key of `cases.PRECISIONS`.
        clock: Seconds, of any beginning.
        repeats: Number of products; the fastest counts.
    """
    dtype = torch.bfloat16 if PRECISIONS[precision].autocast else torch.float32
    a, b = torch.randn(2, SIDE, SIDE, dtype=dtype).unbind(0)
    out = torch.empty(SIDE, SIDE, dtype=dtype)
    best = float("inf")
    with Case("", "", precision).context():
        for _ in range(repeats):
            start = clock()
            torch.mm(a, b, out=out)
            best = min(best, clock() - start)
    return 2 * SIDE**3 / best


def count_flops(task: SemanticSegmentationTask, case: Case) -> int:
    """Return the floating point operations of matrix products and convolutions in one round.

    Args:
        task: Its weights change if the work is a training step.
        case: The work; its precision is of no importance.
    """
    work = make_round(task, Case(case.size, case.work, "float32"))
    # The counter does not know the CPU's fused attention; the plain form has the same products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


class OtherLoad:
    """Share of the CPUs that other processes, or other machines on the same host, take.

    A context manager; after it, `share` is a number from 0 to 1, or None where the system does not say.
    """

    share: float | None = None

    def __enter__(self) -> OtherLoad:
        self._start = self._read()
        return self

    def __exit__(self, *_: object) -> None:
        end = self._read()
        if self._start is None or end is None:
            return
        busy, own, total = (after - before for before, after in zip(self._start, end, strict=True))
        self.share = min(1.0, max(0.0, busy - own) / total) if total else 0.0

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        """Return seconds of CPU time: of all processes, of this one, and of all CPUs whether busy or not."""
        try:
            fields = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            return None
        tick = os.sysconf("SC_CLK_TCK")
        idle = fields[3] + fields[4]
        return (sum(fields) - idle) / tick, time.process_time(), sum(fields) / tick
