"""Start-up of commands beside the imports that they need, each in processes of its own."""

from __future__ import annotations

import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.scene_runs import write_scene

ROOT = Path(__file__).parents[1]
SECONDS_MORE = 2.0
"""Largest number of seconds that `generate` may take beyond importing torch and diffusers' schedulers."""
TIMES = 1.15
"""Largest time of `terramind check --no_step`, as a multiple of importing TerraTorch."""
PYTHON = (sys.executable, "-W", "ignore")
IMPORTS = {
    "import torch, diffusers.schedulers": [*PYTHON, "-c", "import torch, diffusers.schedulers"],
    "import terratorch": [*PYTHON, "-c", "import terratorch"],
}


def measure_start(rounds: int) -> dict[str, float]:
    """Return the CPU seconds of each process, the median of interleaved rounds."""
    with tempfile.TemporaryDirectory() as name:
        chip = write_scene(Path(name, "chip.tif"), 64)
        works: dict[str, Sequence[str]] = {
            **IMPORTS,
            "terramind generate on a chip": [
                *PYTHON, "-m", "terramind_plugin.cli", "generate", str(chip), "--modality", "S2L2A", "--to", "S1GRD",
                "--model", "terramind_sim_nano", "--steps", "2", "--restart", "--out", str(Path(name, "out")),
            ],
            "terramind check --no_step": [
                *PYTHON, "-m", "terramind_plugin.cli", "check", "-c", "configs/demo_flood.yaml", "--no_step",
            ],
        }  # fmt: skip
        seconds: dict[str, list[float]] = {work: [] for work in works}
        order = list(works)
        for number in range(-1, rounds):
            random.Random(number).shuffle(order)
            for work in order:
                elapsed = _run(works[work])
                if number >= 0:  # the first round fills the cache of files
                    seconds[work].append(elapsed)
    return {work: statistics.median(times) for work, times in seconds.items()}


def _run(command: Sequence[str]) -> float:
    """Return the CPU seconds of a process, whose result does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)


def start_lines(seconds: Mapping[str, float]) -> list[str]:
    """Return the seconds as a Markdown table with aims and verdicts."""
    torch_alone, terratorch = (seconds[work] for work in IMPORTS)
    made, checked = seconds["terramind generate on a chip"], seconds["terramind check --no_step"]
    rows = [
        ("terramind generate on a chip", made, "import torch, diffusers.schedulers", torch_alone,
         f"{made - torch_alone:+.1f} s", f"{SECONDS_MORE:+.1f} s", made - torch_alone <= SECONDS_MORE),
        ("terramind check --no_step", checked, "import terratorch", terratorch,
         f"{checked / terratorch:.2f} x", f"{TIMES:.2f} x", checked / terratorch <= TIMES),
    ]  # fmt: skip
    lines = [
        "| command | CPU s | beside | CPU s | difference | aim at most |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for command, ours, beside, theirs, apart, aim, met in rows:
        verdict = "met" if met else "**missed**"
        lines.append(f"| {command} | {ours:.1f} | {beside} | {theirs:.1f} | {apart} | {aim}, {verdict} |")
    return lines
