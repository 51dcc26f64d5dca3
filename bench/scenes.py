"""Whole scenes beside TerraTorch's tiled inference: memory, agreement, time."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.compare import Pair, Row, Side, compare
from bench.measure import say
from bench.models import build_task
from bench.report import table
from bench.scene_runs import (
    BANDS,
    CLASSES,
    CROP,
    OURS,
    REFERENCE,
    RUNS,
    STRIDE,
    StandIn,
    run_ours,
    run_reference,
    write_scene,
)
from bench.timing import Clock
from terramind_plugin.inference.segmentation import for_inference

SIDES = {OURS: (2048, 8192, 10980), REFERENCE: (1024, 2048, 3072)}
"""Scenes whose memory is measured; TerraTorch's for larger ones follows from these."""
TIMED = {"stand-in": (2048, 4096), "tiny": (2048,)}
"""Scenes whose time is measured: a picture takes as long for a small scene as for a large one."""
MIB = 2**20


@dataclass
class Peak:
    """Memory of a process that works on one scene, in bytes."""

    who: str
    side: int
    peak: int
    """Peak of the resident set, including all imports."""
    measured: bool = True

    def describe(self) -> str:
        """Return it in MiB."""
        return f"{self.peak / MIB:.0f}{'' if self.measured else ' (computed)'}"


def measure_peaks(folder: Path) -> list[Peak]:
    """Return measured peaks, each of a process of its own, and what follows for TerraTorch on larger scenes."""
    rows = []
    for who, sides in SIDES.items():
        for side in sides:
            say(f"scenes: memory of {who}, {side} x {side}")
            command = [sys.executable, "-m", "bench.scene_runs", who, str(side), str(folder)]
            child = subprocess.run(command, capture_output=True, text=True)
            if child.returncode:
                raise RuntimeError(f"{who} with {side} x {side} pixels failed:\n{child.stderr[-2000:]}")
            rows.append(Peak(who, side, json.loads(child.stdout.splitlines()[-1])))
    known = [row for row in rows if row.who == REFERENCE]
    slope, start = np.polyfit([row.side**2 for row in known], [row.peak for row in known], 1)
    rows += [
        Peak(REFERENCE, side, int(start + slope * side**2), False) for side in SIDES[OURS] if side > known[-1].side
    ]
    return rows


def measure_agreement(folder: Path) -> dict[str, float]:
    """Return how far blended scores are apart, as a share of the largest: inside the scene, and at its edge."""
    scene, model = write_scene(folder / "agreement.tif", 700), StandIn()
    theirs = run_reference(scene, folder, model)[0]
    model.blended = []
    run_ours(scene, folder, model)
    difference = (torch.cat(model.blended, dim=1) - theirs).abs() / theirs.abs().max()
    edge = CROP - STRIDE
    inside = difference[:, edge:-edge, edge:-edge].max().item()
    return {"inside": inside, "edge": difference.max().item()}


def measure_times(folder: Path, rounds: int, clock: Clock) -> list[Row]:
    """Return times from file to file, with models from a cheap to a real one."""
    rows = []
    for name, sides in TIMED.items():
        model = StandIn(build_scores() if name == "tiny" else None).eval().requires_grad_(False)
        # As `terramind map` has it.
        models = {REFERENCE: model, OURS: for_inference(deepcopy(model))}
        for side in sides:
            scene = write_scene(folder / f"{side}.tif", side)
            works = {Side(who, "float32"): partial(run, scene, folder, models[who]) for who, run in RUNS.items()}
            pair = Pair(Side(REFERENCE, "float32"), Side(OURS, "float32"), 1 / 0.8)
            rows += compare(name, f"{side} x {side}, file to file", works, [pair], rounds, clock)
    return rows


def build_scores() -> nn.Module:
    """Return a tiny backbone with a UNet decoder, which makes scores of classes of an image."""

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            more = {"num_classes": CLASSES, "decoder": "UNetDecoder"}
            self.model = build_task("own necks", "tiny", modalities={"S2L2A": BANDS}, more=more).model

        def forward(self, image: Tensor) -> Tensor:
            return self.model({"S2L2A": image}).output

    return Scores()


def memory_table(rows: Sequence[Peak]) -> list[str]:
    """Return peaks as a Markdown table."""
    sides = sorted({row.side for row in rows})
    head = ["whose", "", "", *[f"{side} x {side}, MiB" for side in sides]]
    lines = []
    for who in RUNS:
        cells = {
            row.side: f"{row.peak / MIB:.0f}{'' if row.measured else ' (computed)'}" for row in rows if row.who == who
        }
        lines.append([who, "", "", *[cells.get(side, "") for side in sides]])
    return table(head, lines)


def verdict_lines(rows: Sequence[Peak], agreement: Mapping[str, float]) -> list[str]:
    """Return whether each aim is met."""
    peaks = {row.side: row.peak for row in rows if row.who == OURS}
    lines = []
    if peaks:
        growth, largest = peaks[8192] / peaks[2048], peaks[10980] / MIB
        lines += [
            f"- 8192 x 8192 takes at most 1.25 times the memory of 2048 x 2048 — {_met(growth <= 1.25)} ({growth:.2f})",
            f"- 10980 x 10980 takes less than 3 GB — {_met(largest < 3e9 / MIB)} ({largest:.0f} MiB)",
        ]
    return [
        *lines,
        f"- scores within 1e-5 of the largest where both blend alike — {_met(agreement['inside'] <= 1e-5)} "
        f"({agreement['inside']:.1e}; {agreement['edge']:.1e} at the edge of the scene, where TerraTorch's weights are "
        "so small that the 1e-6 it adds to them shows)",
    ]


def _met(met: bool) -> str:
    return "met" if met else "**missed**"
