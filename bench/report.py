"""Results as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.cases import IMPLEMENTATIONS, WORKS
from bench.measure import Agreement, Row
from bench.models import BATCH, MODALITIES, PIXELS

OURS = [name for name in IMPLEMENTATIONS if name != "reference"]
BUSY = 0.05
"""Share of the CPUs from which other load is worth a warning."""
AIMS = {"float32": 1.0, "float32 medium": 1.0, "bf16": 1.3}
"""Aimed ratio of the reference's time to ours."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; all columns but the first three are numbers."""
    rule = ["---" if index < 3 else "---:" for index in range(len(head))]
    return ["| " + " | ".join(cells) + " |" for cells in (head, rule, *rows)]


def milliseconds(seconds: float) -> str:
    """Return a time with three digits or none behind the point."""
    return f"{seconds * 1e3:.1f}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def describe_ratio(ratio: tuple[float, float, float]) -> str:
    """Return 'median (least-greatest)'."""
    return "{:.2f} ({:.2f}–{:.2f})".format(*ratio)  # noqa: RUF001  an en dash between numbers


def speed_table(rows: Sequence[Row]) -> list[str]:
    """Return times, ratios and shares of the peak."""
    labels = [IMPLEMENTATIONS[name] for name in OURS]
    head = ["size", "work", "precision", "TerraTorch, ms", *[f"{x}, ms" for x in labels]]
    head += [f"times as fast, {x}" for x in labels] + ["share of peak", "other load"]
    lines = []
    for row in rows:
        shares = "{:.0%} → {:.0%}".format(row.peak_share["reference"], row.peak_share["own necks"])
        lines.append(
            [row.size, row.work, row.precision]
            + [milliseconds(row.median[name]) for name in IMPLEMENTATIONS]
            + [describe_ratio(row.ratio[name]) for name in OURS]
            + [shares, "?" if row.other_load is None else f"{row.other_load:.0%}"]
        )
    return table(head, lines)


def memory_table(rows: Sequence[Row]) -> list[str]:
    """Return the memory on top of the weights."""
    head = ["size", "work", "precision", *[f"{label}, MiB" for label in IMPLEMENTATIONS.values()], "saved"]
    lines = []
    for row in rows:
        numbers = [row.memory[name] for name in IMPLEMENTATIONS]
        lines.append(
            [row.size, row.work, row.precision]
            + [f"{x / 2**20:.0f}" for x in numbers]
            + [f"{1 - numbers[-1] / numbers[0]:.0%}"]
        )
    return table(head, lines)


def agreement_table(agreements: Sequence[Agreement]) -> list[str]:
    """Return how far the features are apart."""
    head = ["size", "of", "precision", "ours from TerraTorch's", "TerraTorch's from float32", "ours from float32"]
    lines = [
        [x.size, x.of, x.precision, f"{x.difference:.1e}", f"{x.reference_error:.1e}", f"{x.our_error:.1e}"]
        for x in agreements
    ]
    return table(head, lines)


def aim_lines(rows: Sequence[Row]) -> list[str]:
    """Return whether each aim is met, in the worst row."""
    lines = []
    for precision, aim in AIMS.items():
        for work in WORKS:
            group = [row for row in rows if (row.precision, row.work) == (precision, work)]
            if not group:
                continue
            # A ratio a hair below one is noise; the spread in the table says how much.
            worst = min(row.ratio["own necks"][0] for row in group)
            met = worst >= aim - (0.02 if aim == 1.0 else 0.0)
            want = "no slower" if aim == 1.0 else f"{aim} times as fast"
            lines.append(f"- {work}, {precision}: {want} — {'met' if met else '**missed**'} ({worst:.2f} at worst)")
    group = [row for row in rows if row.memory]
    if group:
        more = [row for row in group if row.memory["own necks"] > row.memory["reference"]]
        names = "; ".join(f"{row.size} {row.work} {row.precision}" for row in more)
        lines.append(f"- less memory — {'met' if not more else f'**missed** in {names}'}")
    return lines


def load_line(loads: Iterable[float | None]) -> str:
    """Return what else ran on the machine, from its share of the CPUs in each row."""
    shares = [share for share in loads if share is not None]
    if not shares:
        return "Other load on the machine: not known."
    if max(shares) < BUSY:
        return f"Other load on the machine: none to speak of (at most {max(shares):.0%} of the CPUs)."
    return (
        f"**Other load was on the machine**: {min(shares):.0%} to {max(shares):.0%} of the CPUs. "
        "Times are too long and ratios uncertain; measure again when it is idle."
    )


def describe_machine(machine: dict[str, Any]) -> str:
    """Return what the numbers were measured on, and when."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['instructions'])}), "
        f"{machine['threads']} threads, torch {machine['torch']}, Python {machine['python']}, {machine['date']}. "
        f"Clock: {machine['clock']} time."
    )


def render(machine: dict[str, Any], rows: Sequence[Row], agreements: Sequence[Agreement]) -> str:
    """Return the whole report.

    Args:
        machine: From `machine.describe`, and 'peaks' in FLOP/s by precision.
        rows: Results.
        agreements: Differences between the implementations.
    """
    peaks = ", ".join(f"{name} {peak / 1e9:.0f}" for name, peak in machine["peaks"].items())
    rounds = ", ".join(
        f"{size} {len(next(row for row in rows if row.size == size).seconds['reference'])}"
        for size in dict.fromkeys(row.size for row in rows)
    )
    lines = [
        f"{describe_machine(machine)} "
        f"Matrix peak in GFLOP/s: {peaks}. Batch {BATCH}, {PIXELS} x {PIXELS} pixels, {' + '.join(MODALITIES)}. "
        f"Rounds: {rounds}.",
        "",
        load_line(row.other_load for row in rows),
        "",
        "Aims:",
        "",
        *aim_lines(rows),
        "",
        "Speed (median; how many times as fast as TerraTorch: median, least and greatest of the rounds):",
        "",
        *speed_table(rows),
        "",
    ]
    with_memory = [row for row in rows if row.memory]
    if with_memory:
        lines += ["Peak memory on top of the weights:", "", *memory_table(with_memory), ""]
    lines += ["Largest difference, as a share of the largest value:", "", *agreement_table(agreements)]
    return "\n".join(lines)


def write_report(path: Path, part: str, report: str) -> None:
    """Put the report of a part between its markers in a file."""
    begin, end = f"<!-- {part} begin -->", f"<!-- {part} end -->"
    text = path.read_text()
    before, rest = text.split(begin, 1)
    path.write_text(f"{before}{begin}\n{report}\n{end}{rest.split(end, 1)[1]}")
