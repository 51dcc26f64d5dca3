"""Compiles cases ahead, many at a time, so that the process that measures finds them in torch's cache on disk.

Compiling one step takes half a minute or more of one core: one after another, the cases would fill the whole run.
Tracing is not kept, so that each case still takes a few seconds where it is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.gpu.parts import PARTS

MOST = 8
"""Processes at a time: each holds a model and its activations on the device."""


def list_jobs(parts: list[str]) -> list[tuple[str, int]]:
    """Return the cases to compile ahead, as part and number of the case, in order of worth."""
    return [(name, number) for name in parts for number in range(PARTS[name].ahead)]


class Ahead:
    """Processes that compile.

    Args:
        plan: What `worker.main` takes; parts and out are set for each process.
        jobs: From `list_jobs`.
        folder: For the files that the processes write, which say nothing of use.
    """

    def __init__(self, plan: dict[str, Any], jobs: list[tuple[str, int]], folder: Path) -> None:
        self.plan, self.left, self.folder = plan, list(jobs), folder
        self.running: list[subprocess.Popen[bytes]] = []
        self.most = max(1, min(MOST, (os.cpu_count() or 1) // 2))
        self.threads = max(1, (os.cpu_count() or 1) // self.most)

    def go_on(self) -> bool:
        """Start processes where there is room, and return whether any is at work."""
        self.running = [process for process in self.running if process.poll() is None]
        while self.left and len(self.running) < self.most:
            name, number = self.left.pop(0)
            out = self.folder / f"{name}_{number}.json"
            plan = {**self.plan, "parts": [name], "only": number, "compile_only": True, "out": str(out)}
            words = [sys.executable, "-m", "bench.gpu.worker", json.dumps(plan)]
            environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": str(self.threads), "OMP_NUM_THREADS": "1"}
            self.running.append(subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL))
        return bool(self.running)

    def stop(self) -> None:
        """End all processes."""
        for process in self.running:
            process.kill()
        for process in self.running:
            process.wait()


@contextmanager
def compiling(plan: dict[str, Any], parts: list[str], folder: Path, ends: float) -> Iterator[None]:
    """Compile ahead while something else runs, and go on until all is compiled or the time is over.

    Args:
        plan: As for `Ahead`.
        parts: Names of the parts that are to be measured later.
        folder: Empty folder.
        ends: When to stop, in seconds of `time.monotonic`.
    """
    ahead = Ahead(plan, list_jobs(parts), folder)
    try:
        ahead.go_on()
        yield
        while ahead.go_on() and time.monotonic() < ends:
            time.sleep(0.2)
        if ahead.running:
            print(f"Not compiled ahead: {len(ahead.running) + len(ahead.left)} cases", file=sys.stderr, flush=True)
    finally:
        ahead.stop()
