"""The parts that run on a CPU: `python -m bench --help`."""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.cache import MOST, measure_frozen_cache, measure_thinking_cache
from bench.cases import PRECISIONS, SIZES, WORKS
from bench.compare import speed_table
from bench.decoding import measure_decoder
from bench.footprint import footprint_table, measure_footprint
from bench.generation import STEPS, measure_generator, measure_thinking, measure_thinking_step, measure_tokenizer
from bench.loading import loading_table, measure_loading
from bench.loading import verdict_lines as loading_verdicts
from bench.machine import describe
from bench.measure import measure_peaks, measure_size, say
from bench.model import SHARE, measure_shares, measure_thinking_floor
from bench.report import describe_machine, load_line, render
from bench.scenes import measure_agreement, measure_times, memory_table, verdict_lines
from bench.scenes import measure_peaks as measure_scene_peaks
from bench.shards import SAMPLES, measure_shards, shard_lines
from bench.sources import as_json, measure_engine, measure_sources, source_lines
from bench.start import measure_start, start_lines
from bench.timing import CLOCKS
from bench.verdicts import write_tables

HERE = Path(__file__).parent
RESULTS, README = HERE / "results.json", HERE / "README.md"
REPEATS = {"tiny": 15, "base": 7}
QUICK = 3


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser("python -m bench", description="Speed and memory beside TerraTorch's TerraMind.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
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
    parser.add_argument(
        "--tables", action="store_true", help="write the README's tables from results.json; no measuring"
    )
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sizes = ["tiny"]
        arguments.repeats = arguments.repeats or QUICK
        if arguments.write:
            parser.error("--quick gives no result to write.")
    return arguments


def run_backbone(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return report and results of the backbones."""
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
    results = {"machine": machine, "rows": [asdict(x) for x in rows], "agreement": [asdict(x) for x in agreements]}
    return render(machine, rows, agreements), results


def run_generation(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return report and results of tokenizers, generators and TiM models."""
    machine = describe() | {"clock": arguments.clock}
    clock = CLOCKS[arguments.clock]
    footprints = [] if arguments.no_memory else measure_footprint(arguments.sizes)
    rows, distances = measure_tokenizer(arguments.repeats or REPEATS["base"], clock)
    for size in arguments.sizes:
        rows += measure_thinking(size, arguments.repeats or REPEATS[size], clock)
        rows += measure_thinking_step(size, arguments.repeats or REPEATS[size], clock)
        # The tokenizers, nearly all of the work, are the same for all sizes.
        rows += measure_generator(size, arguments.repeats or QUICK, clock)
    lines = [describe_machine(machine), "", load_line(row.other_load for row in rows), "", *speed_table(rows), ""]
    lines += [f"Pictures after {STEPS} steps, peak signal-to-noise ratio: {'; '.join(distances)}.", ""]
    lines += footprint_table(footprints)
    results = {"machine": machine, "rows": [asdict(x) for x in rows], "footprints": [asdict(x) for x in footprints]}
    return "\n".join(lines), results | {"pictures": distances}


def run_cache(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return report and results of caches."""
    remark = f"Looking up, below {MOST:.0%} of a round"
    return _run_by_size(arguments, [measure_thinking_cache, measure_frozen_cache], remark, "look_up")


def run_decoder(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return report and results of decoders."""
    return _run_by_size(arguments, [measure_decoder], "Kept for the backward pass", "kept")


def _run_by_size(
    arguments: argparse.Namespace, measures: list[Callable[..., Any]], remark: str, key: str
) -> tuple[str, dict[str, Any]]:
    """Return report and results of measures that give rows and remarks for a size, the remarks under a key."""
    machine = describe() | {"clock": arguments.clock}
    rows, remarks = [], []
    for size in arguments.sizes:
        for measure in measures:
            more_rows, more_remarks = measure(
                size, arguments.precisions, arguments.repeats or REPEATS[size], CLOCKS[arguments.clock]
            )
            rows += more_rows
            remarks += more_remarks
    lines = [describe_machine(machine), "", load_line(row.other_load for row in rows), "", *speed_table(rows), ""]
    lines += [f"{remark}: {'; '.join(remarks)}."]
    return "\n".join(lines), {"machine": machine, "rows": [asdict(x) for x in rows], key: remarks}


def run_scenes(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return report and results of whole scenes."""
    machine = describe() | {"clock": arguments.clock}
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        peaks = [] if arguments.no_memory else measure_scene_peaks(folder)
        agreement = measure_agreement(folder)
        rows = measure_times(folder, arguments.repeats or REPEATS["base"], CLOCKS[arguments.clock])
    lines = [describe_machine(machine), "", load_line(row.other_load for row in rows), ""]
    lines += [
        "Aims:",
        "",
        *verdict_lines(peaks, agreement),
        "",
        *(memory_table(peaks) if peaks else []),
        "",
        *speed_table(rows),
    ]
    results = {"machine": machine, "rows": [asdict(x) for x in rows], "peaks": [asdict(x) for x in peaks]}
    return "\n".join(lines), results | {"agreement": agreement}


def run_sources(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return report and results of chips from a catalogue."""
    machine = describe() | {"clock": "cpu"}
    with tempfile.TemporaryDirectory() as name:
        rows = measure_sources(Path(name), arguments.repeats or REPEATS["base"])
        spent = measure_engine(Path(name))
    lines = [describe_machine(machine), "", *source_lines(rows, spent)]
    return "\n".join(lines), {"machine": machine, **as_json(rows, spent)}


def run_shards(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return report and results of tar shards, measured in CPU time of one thread."""
    machine = describe() | {"clock": "cpu"}
    seconds = measure_shards(arguments.repeats or REPEATS["tiny"], CLOCKS["cpu"])
    lines = [describe_machine(machine), "", *shard_lines(seconds)]
    return "\n".join(lines), {"machine": machine, "seconds": seconds, "samples": SAMPLES}


def run_loading(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return report and results of the data module."""
    machine = describe() | {"clock": arguments.clock}
    with tempfile.TemporaryDirectory() as name:
        times, what = measure_loading(Path(name), arguments.repeats or REPEATS["tiny"], CLOCKS[arguments.clock])
    lines = [describe_machine(machine), "", f"Data: {what}.", "", *loading_verdicts(times), "", *loading_table(times)]
    seconds = {name: {reader: one.seconds for reader, one in readers.items()} for name, readers in times.items()}
    return "\n".join(lines), {"machine": machine, "data": what, "seconds": seconds}


def run_model(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return report and results of the floor of TiM and of the model's share of a scene's time."""
    machine = describe() | {"clock": arguments.clock}
    rows = []
    for size in arguments.sizes:
        rows += measure_thinking_floor(size, arguments.repeats or REPEATS["base"], CLOCKS[arguments.clock])
    shares = measure_shares(arguments.repeats or QUICK)
    lines = [describe_machine(machine), "", load_line(row.other_load for row in rows), "", *speed_table(rows), ""]
    said = [f"{name} {share:.2f} ({'met' if share >= SHARE else '**missed**'})" for name, share in shares]
    lines += [f"Share of CPU time in a tiny model, aim {SHARE}: {'; '.join(said)}."]
    return "\n".join(lines), {"machine": machine, "rows": [asdict(x) for x in rows], "shares": shares}


def run_start(arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Return report and results of start-up, measured in CPU time of processes of their own."""
    machine = describe() | {"clock": "cpu"}
    seconds = measure_start(arguments.repeats or QUICK)
    return "\n".join([describe_machine(machine), "", *start_lines(seconds)]), {"machine": machine, "seconds": seconds}


PARTS = {
    "backbone": run_backbone,
    "generation": run_generation,
    "cache": run_cache,
    "decoder": run_decoder,
    "scenes": run_scenes,
    "sources": run_sources,
    "shards": run_shards,
    "loading": run_loading,
    "model": run_model,
    "start": run_start,
}


def main() -> None:
    """Measure, print and, with --write, write the results."""
    arguments = parse_arguments()
    if arguments.tables:
        write_tables(RESULTS, README, arguments.parts)
        return
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(arguments.threads)
    for part in arguments.parts:
        report, results = PARTS[part](arguments)
        print(report)
        if arguments.write:
            everything = json.loads(RESULTS.read_text()) | {part: results}
            RESULTS.write_text(json.dumps(everything, indent=1) + "\n")
            write_tables(RESULTS, README, [part])
