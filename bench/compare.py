"""Any two kinds of work beside each other: interleaved times as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.cases import Case
from bench.machine import OtherLoad
from bench.measure import say
from bench.report import describe_ratio, milliseconds, table
from bench.timing import Clock, time_rounds

Work = Callable[[], Any]
NEARLY = 0.02
"""A ratio that misses its aim by less is noise; the spread in the table says how much."""


class Side(NamedTuple):
    """Whose work, and how it computes."""

    who: str
    precision: str

    def __str__(self) -> str:
        return f"{self.who}, {self.precision}"


class Pair(NamedTuple):
    """Two sides of a comparison, and how many times as fast the second means to be."""

    reference: Side
    ours: Side
    aim: float | None = None


@dataclass
class Row:
    """One pair of one comparison."""

    size: str
    work: str
    reference: Side
    ours: Side
    reference_seconds: float
    our_seconds: float
    ratio: tuple[float, float, float]
    """Reference's time divided by ours: median, least and greatest of the rounds."""
    aim: float | None
    other_load: float | None
    rounds: int

    def verdict(self) -> str:
        """Return whether the aim is met."""
        if self.aim is None:
            return ""
        return "met" if self.ratio[0] >= self.aim - NEARLY else "**missed**"


def in_precision(work: Work, precision: str, *, autocast: bool = True) -> Work:
    """Return the same work in a precision.

    Args:
        work: What to do.
        precision: Key of `cases.PRECISIONS`.
        autocast: False for work that switches autocast on by itself, because it has a backward pass.
    """
    case = Case("", "", precision)

    def run() -> None:
        with case.context(), case.autocast() if autocast else nullcontext():
            work()

    return run


def compare(
    size: str, name: str, works: Mapping[Side, Work], pairs: Sequence[Pair], rounds: int, clock: Clock
) -> list[Row]:
    """Return a row for each pair; all sides run in turn in each round.

    Args:
        size: Size of the model.
        name: Name of the work.
        works: The work of each side.
        pairs: What to compare.
        rounds: Number of rounds.
        clock: Seconds, of any beginning.
    """
    with OtherLoad() as load:
        timings = time_rounds({str(side): work for side, work in works.items()}, rounds, clock, warm_up=1)
    rows = []
    for pair in pairs:
        reference, ours = timings[str(pair.reference)], timings[str(pair.ours)]
        ratio = ours.ratio_to(reference)
        row = Row(
            size, name, pair.reference, pair.ours, reference.median, ours.median, ratio, pair.aim, load.share, rounds
        )
        rows.append(row)
        say(
            f"  {size:5} {name:28} {pair.reference!s:24} {reference.median * 1e3:7.0f} ms -> "
            f"{pair.ours!s:24} {ours.median * 1e3:7.0f} ms  x{describe_ratio(ratio)}"
        )
    return rows


def speed_table(rows: Sequence[Row]) -> list[str]:
    """Return the rows as a Markdown table."""
    head = ["size", "work", "this", "ms", "beside", "ms", "times as fast", "aim", "other load"]
    lines = []
    for row in rows:
        aim = "" if row.aim is None else f"{row.aim:.2f} {row.verdict()}"
        load = "?" if row.other_load is None else f"{row.other_load:.0%}"
        times = milliseconds(row.our_seconds), milliseconds(row.reference_seconds)
        sides = str(row.ours), str(row.reference)
        lines.append([row.size, row.work, sides[0], times[0], sides[1], times[1], describe_ratio(row.ratio), aim, load])
    return table(head, lines)
