"""Command line: `python -m bench --help`."""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

from bench.cases import PRECISIONS, SIZES, WORKS
from bench.machine import describe
from bench.measure import measure_peaks, measure_size, say
from bench.report import render, write_report
from bench.timing import CLOCKS

HERE = Path(__file__).parent
REPEATS = {"tiny": 15, "base": 7}
QUICK = 3


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser("python -m bench", description="Speed and memory beside TerraTorch's TerraMind.")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--repeats", type=int, help=f"rounds of each case (default: {REPEATS})")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu, with one thread, for a machine that is not idle"
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--quick", action="store_true", help=f"the tiny model only, {QUICK} rounds: a try, no result")
    parser.add_argument("--write", action="store_true", help="write bench/README.md and bench/results.json")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes = ["tiny"]
        arguments.repeats = arguments.repeats or QUICK
        if arguments.write:
            parser.error("--quick gives no result to write.")
    return arguments


def main() -> None:
    """Measure and print, and write if asked to."""
    arguments = parse_arguments()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    machine = describe() | {"clock": arguments.clock}
    say("matrix peak")
    peaks = measure_peaks(arguments.precisions, CLOCKS[arguments.clock])
    rows, agreements = [], []
    for size in arguments.sizes:
        more_rows, more_agreements = measure_size(
            size,
            arguments.works,
            arguments.precisions,
            arguments.repeats or REPEATS[size],
            peaks,
            None if arguments.no_memory else arguments.threads,
            CLOCKS[arguments.clock],
        )
        rows += more_rows
        agreements += more_agreements
    machine["peaks"] = peaks
    report = render(machine, rows, agreements)
    print(report)
    if arguments.write:
        write_report(HERE / "README.md", report)
        results = {"machine": machine, "rows": [asdict(x) for x in rows], "agreement": [asdict(x) for x in agreements]}
        (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
