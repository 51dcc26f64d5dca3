"""Size in memory and on disk, each implementation in a process: `python -m bench.footprint IMPLEMENTATION SIZE`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.cases import Case
from bench.memory import give_memory_back
from bench.models import SemanticSegmentationTask, build_task, make_inputs, make_round
from bench.report import table
from terramind_plugin.system.process import read_status, restart_peak

KINDS = {"reference": "TerraTorch", "own necks": "ours"}
MIB = 2**20


@dataclass
class Footprint:
    """Figures of one task with a UNet decoder; sizes in bytes."""

    who: str
    size: str
    """Name of the backbone's size, e.g. 'tiny_tim'."""
    parameters: int
    """Number of the backbone's parameters."""
    parameter_bytes: int
    checkpoint_bytes: int
    """Size of a file with weights and the state of AdamW."""
    forward_peak: int
    """Peak of the resident set, weights included, less the resident set of a process without a model."""
    training_peak: int


def measure_here(implementation: str, size: str) -> Footprint:
    """Return the figures of a model that this process builds; it must not have built one before."""
    before = read_status("VmRSS")
    task = build_task(implementation, size)
    backbone = task.model.encoder
    parameters = list(backbone.parameters())
    give_memory_back()
    peaks = []
    for work in ("forward", "training step"):
        restart_peak()
        case = Case(size, work, "float32")
        with case.context():
            run = make_round(task, case)
            for _ in range(2):
                run()
        peaks.append(read_status("VmHWM") - before)
    return Footprint(
        KINDS[implementation],
        size,
        sum(x.numel() for x in parameters),
        sum(x.numel() * x.element_size() for x in parameters),
        checkpoint_size(task),
        *peaks,
    )


def checkpoint_size(task: SemanticSegmentationTask) -> int:
    """Return the bytes of a checkpoint after a first step of the optimiser."""
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=2e-5)
    images, labels = make_inputs()
    task.criterion(task.model(images).output, labels).backward()
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.ckpt")
        torch.save({"state_dict": task.model.state_dict(), "optimizer": optimizer.state_dict()}, path)
        return path.stat().st_size


def measure_footprint(sizes: Sequence[str]) -> list[Footprint]:
    """Return the figures of both implementations, plain and thinking."""
    rows = []
    for size in sizes:
        for name in (size, f"{size}_tim"):
            for implementation in KINDS:
                command = [sys.executable, "-m", "bench.footprint", implementation, name]
                child = subprocess.run(command, capture_output=True, text=True)
                if child.returncode:
                    raise RuntimeError(f"Measuring {implementation} {name} failed:\n{child.stderr[-2000:]}")
                rows.append(Footprint(**json.loads(child.stdout.splitlines()[-1])))
    return rows


def footprint_table(rows: Sequence[Footprint]) -> list[str]:
    """Return the figures as a Markdown table."""
    head = ["model", "whose", "", "parameters, M", "their memory, MiB", "checkpoint, MiB", "peak, forward, MiB"]
    head.append("peak, training step, MiB")
    lines = []
    for row in rows:
        sizes = (row.parameter_bytes, row.checkpoint_bytes, row.forward_peak, row.training_peak)
        lines.append([row.size, row.who, "", f"{row.parameters / 1e6:.1f}", *[f"{x / MIB:.0f}" for x in sizes]])
    return table(head, lines)


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps(vars(measure_here(*sys.argv[1:]))))
