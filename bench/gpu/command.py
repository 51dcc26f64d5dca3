"""`python -m bench --gpu`: starts the processes that measure, stops what takes too long, and writes the table."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.gpu.ahead import compiling, list_jobs
from bench.gpu.page import render
from bench.gpu.parts import AHEAD, GRACE, PARITY, PARTS, REST, START, TOTAL
from bench.gpu.reference import find_files
from terramind_plugin.system.files import write_text

HERE = Path(__file__).parents[1]
RESULTS, README = HERE / "results.json", HERE / "README.md"
RUNNING = "running"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser("python -m bench --gpu", description="Both TerraMinds on one GPU.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny models, two rounds: a test that it works, no result")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--terratorch", type=Path, metavar="DIR",
                        help="TerraTorch's model files: DIR of an installed TerraTorch, or a copy of its folder "
                             "models/backbones/terramind (default: the installed one)")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=TOTAL, help="time of the whole run (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("output/gpu.json"), help="default: %(default)s")
    parser.add_argument("--write", action="store_true", help="also write the table to bench/README.md")
    found = parser.parse_args(arguments)
    if found.write and (found.quick or found.device != "cuda"):
        parser.error("--quick and --device cpu give no result to write.")
    if found.seconds <= 0:
        parser.error(f"--seconds must be above 0, got {found.seconds}.")
    try:
        found.terratorch = find_files(found.terratorch)
    except FileNotFoundError as error:
        parser.error(str(error))
    return found


def plan_groups(parts: list[str], ahead: bool) -> list[list[str]]:
    """Return parts in the order of their worth, in groups that share a process.

    Args:
        parts: Names of parts.
        ahead: Whether parity runs while other parts are compiled, and so by itself.
    """
    ordered = [name for name in PARTS if name in parts]
    groups = groupby(ordered, key=lambda name: (ahead and name == PARITY, PARTS[name].alone))
    return [list(group) for _, group in groups]


def make_plan(arguments: argparse.Namespace, parts: list[str], seconds: float) -> dict[str, Any]:
    """Return what `worker.main` takes."""
    alone = PARTS[parts[0]].alone
    return {
        "device": arguments.device, "quick": arguments.quick, "parts": parts, "seconds": seconds,
        "out": str(arguments.out), "terratorch": None if alone else str(arguments.terratorch),
    }  # fmt: skip


def run_group(group: list[str], arguments: argparse.Namespace, ends: float) -> None:
    """Run parts in a process, and those that are left in a new one where a part ends or outstays its process.

    Args:
        group: Names of parts.
        arguments: Of the command line.
        ends: When they should be through, in seconds of `time.monotonic`.
    """
    left = list(group)
    while left:
        plan = make_plan(arguments, left, ends - time.monotonic())
        process = subprocess.Popen([sys.executable, "-m", "bench.gpu.worker", json.dumps(plan)])
        try:
            why = _watch(process, arguments, ends)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        reports = _read(arguments.out)["parts"]
        left = [name for name in left if reports.get(name, {"state": RUNNING})["state"] == RUNNING]
        if left:
            # The first of them was at work, or the process did not come that far.
            _end_part(arguments.out, left.pop(0), why)


def _watch(process: subprocess.Popen[bytes], arguments: argparse.Namespace, ends: float) -> str:
    """Wait until a process has ended or a part takes too long, and return what happened."""
    began, at_work = time.monotonic(), ""
    while process.poll() is None:
        time.sleep(0.2)
        name = next((key for key, one in _read(arguments.out)["parts"].items() if one["state"] == RUNNING), "")
        if name != at_work:
            began, at_work = time.monotonic(), name
        limit = PARTS[name].seconds if name and name != REST else START
        stop = ends if name == REST else min(began + limit, ends)
        if not arguments.quick and time.monotonic() > stop + GRACE + (0 if name else 100):
            return f"stopped: {time.monotonic() - began:.0f} s were too long"
    return f"failed: its process ended with status {process.returncode}"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"parts": {}}
    return found


def _end_part(path: Path, name: str, why: str) -> None:
    found = _read(path)
    report = found["parts"].setdefault(name, {"measurements": [], "left_out": [], "seconds": 0.0})
    report["state"] = why
    write_text(path, json.dumps(found, indent=1) + "\n")
    print(f"{name}: {why}", file=sys.stderr, flush=True)


def measure(arguments: argparse.Namespace) -> None:
    """Run all parts; with graphs to compile, parity runs while other parts are compiled ahead."""
    ends = time.monotonic() + arguments.seconds
    ahead = arguments.device == "cuda" and not arguments.quick and bool(list_jobs(arguments.parts))
    groups = plan_groups(arguments.parts, ahead)
    if ahead:
        stop = min(ends, time.monotonic() + AHEAD)
        first = groups.pop(0) if groups[0] == [PARITY] else []
        plan = make_plan(arguments, ["steps"], AHEAD)
        with tempfile.TemporaryDirectory() as folder, compiling(plan, arguments.parts, Path(folder), stop):
            run_group(first, arguments, stop)
    for number, group in enumerate(groups):
        later = sum(START + sum(PARTS[name].seconds for name in other) for other in groups[number + 1 :])
        run_group(group, arguments, ends - later)


def main(given: list[str] | None = None) -> int:
    """Measure, print the table and, with --write, put it into the README; return 1 if a part failed.

    A run that is interrupted, or asked to end by SIGTERM, still writes the table of what it has.
    """
    arguments = parse_arguments(given)
    arguments.out.unlink(missing_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for cache in ("TORCHINDUCTOR_FX_GRAPH_CACHE", "TORCHINDUCTOR_AUTOGRAD_CACHE"):
        os.environ.setdefault(cache, "1")  # what is compiled ahead is found again
    with ending_on_signals() as received:
        measure(arguments)
    found = _read(arguments.out)
    for name in [name for name, report in found["parts"].items() if report["state"] == RUNNING]:
        _end_part(arguments.out, name, f"stopped by signal {received[0]}" if received else "stopped")
    found = _read(arguments.out)
    text = render(found, quick=arguments.quick)
    print(text)
    write_text(arguments.out.with_suffix(".md"), text + "\n")
    print(f"Written: {arguments.out}, {arguments.out.with_suffix('.md')}", file=sys.stderr)
    if received:
        return 128 + received[0]
    if arguments.write:
        from bench.report import write_report

        write_report(README, "gpu", text)
        RESULTS.write_text(json.dumps(json.loads(RESULTS.read_text()) | {"gpu": found}, indent=1) + "\n")
    return int(any(one["state"].startswith(("failed", "stopped")) for one in found["parts"].values()))


@contextmanager
def ending_on_signals() -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM end what is inside, without an error; the list then holds the signal."""
    received: list[int] = []

    def stop(number: int, _: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    except KeyboardInterrupt:
        print("Stopped: what was measured so far is kept.", file=sys.stderr)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
