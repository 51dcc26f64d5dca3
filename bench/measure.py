"""One row of results for each case."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from bench.cases import IMPLEMENTATIONS, PRECISIONS, Case, all_cases
from bench.machine import OtherLoad, count_flops, measure_peak
from bench.memory import measure_in_child
from bench.models import SemanticSegmentationTask, build_all, make_round, outputs_of, relative_difference
from bench.timing import Clock, time_rounds


@dataclass
class Row:
    """Results of one case; mappings are by implementation."""

    size: str
    work: str
    precision: str
    seconds: dict[str, list[float]]
    median: dict[str, float]
    ratio: dict[str, tuple[float, float, float]]
    """Reference's time divided by ours: median, least and greatest of the rounds."""
    peak_share: dict[str, float]
    """Share of the machine's matrix peak in this precision."""
    other_load: float | None
    """Share of the CPUs that others took during the measurement."""
    memory: dict[str, int] = field(default_factory=dict)
    """Bytes on top of the model's weights."""


@dataclass
class Agreement:
    """Differences between the two implementations, as shares of the largest value."""

    size: str
    of: str
    precision: str
    difference: float
    """Ours from the reference's, in the same precision."""
    reference_error: float
    """The reference's from its own in float32."""
    our_error: float
    """Ours from the reference's in float32."""


def say(message: str) -> None:
    """Print progress."""
    print(message, file=sys.stderr, flush=True)


def measure_peaks(precisions: list[str], clock: Clock) -> dict[str, float]:
    """Return the machine's FLOP/s in each precision."""
    return {name: measure_peak(name, clock) for name in precisions}


def measure_agreement(tasks: dict[str, SemanticSegmentationTask], case: Case) -> Agreement:
    """Return how well ours and the reference agree; their weights must still be equal."""
    exact = outputs_of(tasks["reference"], Case(case.size, case.work, "float32"))
    theirs, ours = (outputs_of(tasks[name], case) for name in ("reference", "own necks"))
    result = Agreement(
        case.size,
        "features" if case.work == "forward" else "gradients",
        case.precision,
        relative_difference(ours, theirs),
        relative_difference(theirs, exact),
        relative_difference(ours, exact),
    )
    say(f"  {result.of} in {case.precision} agree to {result.difference:.1e} of the largest value")
    return result


def measure_case(
    tasks: dict[str, SemanticSegmentationTask], case: Case, repeats: int, flops: int, peak: float, clock: Clock
) -> Row:
    """Return a case's times, without memory.

    Args:
        tasks: By implementation.
        case: The case.
        repeats: Number of rounds.
        flops: Floating point operations of one round.
        peak: The machine's FLOP/s in the case's precision.
        clock: Seconds, of any beginning.
    """
    with case.context(), OtherLoad() as load:
        timings = time_rounds({name: make_round(task, case) for name, task in tasks.items()}, repeats, clock)
    reference = timings["reference"]
    row = Row(
        case.size,
        case.work,
        case.precision,
        seconds={name: timing.seconds for name, timing in timings.items()},
        median={name: timing.median for name, timing in timings.items()},
        ratio={name: timing.ratio_to(reference) for name, timing in timings.items() if name != "reference"},
        peak_share={name: flops / timing.median / peak for name, timing in timings.items()},
        other_load=load.share,
    )
    median, least, greatest = row.ratio["own necks"]
    say(
        f"  {case.work:14} {case.precision:15} {reference.median * 1e3:7.0f} ms -> "
        f"{row.median['own necks'] * 1e3:7.0f} ms  x{median:.2f} ({least:.2f}-{greatest:.2f})"
        + ("" if row.other_load is None else f"  others use {row.other_load:.0%} of the CPUs")
    )
    return row


def measure_size(
    size: str,
    works: list[str],
    precisions: list[str],
    repeats: int,
    peaks: dict[str, float],
    threads: int | None,
    clock: Clock,
) -> tuple[list[Row], list[Agreement]]:
    """Return all rows of one size of model.

    Args:
        size: Size of the backbone.
        works: Keys of `cases.WORKS`.
        precisions: Keys of `cases.PRECISIONS`.
        repeats: Number of rounds.
        peaks: The machine's FLOP/s by precision.
        threads: Threads of the processes that measure memory; None to leave memory out.
        clock: As in `measure_case`.
    """
    memory: dict[str, dict[Case, int]] = {}
    if threads is not None:
        for name, label in IMPLEMENTATIONS.items():
            say(f"{size}: memory of {label}")
            memory[name] = measure_in_child(name, size, threads)
    say(f"{size}: build")
    tasks = build_all(IMPLEMENTATIONS, size)
    agreements = [
        measure_agreement(tasks, case) for case in all_cases([size], ["forward", "backbone step"], precisions)
    ]
    rows = []
    for work in works:
        flops = count_flops(tasks["own necks"], Case(size, work, "float32"))
        for precision in (name for name in PRECISIONS if name in precisions):
            case = Case(size, work, precision)
            row = measure_case(tasks, case, repeats, flops, peaks[precision], clock)
            row.memory = {name: peaks_of[case] for name, peaks_of in memory.items() if case in peaks_of}
            rows.append(row)
        for task in tasks.values():
            task.model.zero_grad(set_to_none=True)
    return rows, agreements
