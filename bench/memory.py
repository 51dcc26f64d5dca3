"""Peak memory, each implementation in a process of its own: `python -m bench.memory IMPLEMENTATION SIZE THREADS`.

It is the peak of the resident set while the work runs, less the resident set before: what the work needs on top of
the model's weights, the allocator's waste included. The other implementations cannot disturb it.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import torch

from bench.cases import PRECISIONS, WORKS, Case, all_cases
from bench.models import SemanticSegmentationTask, build_task, make_round
from terramind_plugin.system.process import RESET, give_back, read_status, restart_peak

ROUNDS = 2
"""Number of rounds; from the second on, the optimiser has its state."""


def give_memory_back() -> None:
    """Return freed memory to the system, so that it does not hide what comes next."""
    gc.collect()
    give_back()


def measure_here(task: SemanticSegmentationTask, case: Case) -> int:
    """Return the bytes that the case's work adds to this process at its peak."""
    task.model.zero_grad(set_to_none=True)
    give_memory_back()
    before = restart_peak()
    work = make_round(task, case)
    with case.context():
        for _ in range(ROUNDS):
            work()
    return read_status("VmHWM") - before


def measure_in_child(implementation: str, size: str, threads: int) -> dict[Case, int]:
    """Return the bytes that each work adds at its peak; empty where the system does not say.

    Args:
        implementation: Key of `cases.IMPLEMENTATIONS`.
        size: Size of the backbone.
        threads: Number of threads of the child.
    """
    if not RESET.exists():
        return {}
    command = [sys.executable, "-m", "bench.memory", implementation, size, str(threads)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        raise RuntimeError(f"Measuring the memory of {implementation} failed:\n{child.stderr[-2000:]}")
    rows = json.loads(child.stdout.splitlines()[-1])
    return {Case(size, work, precision): peak for work, precision, peak in rows}


def main(implementation: str, size: str, threads: str) -> None:
    """Print [work, precision, bytes] for each case of a size, as JSON."""
    torch.manual_seed(0)
    torch.set_num_threads(int(threads))
    task = build_task(implementation, size)
    cases = all_cases([size], list(WORKS), list(PRECISIONS))
    print(json.dumps([[case.work, case.precision, measure_here(task, case)] for case in cases]))


if __name__ == "__main__":
    main(*sys.argv[1:])
