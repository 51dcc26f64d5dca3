"""The results as Markdown: machine, aims with verdicts, a table for each part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

GRAPHS, OURS = "graphs", "ours, graphs"
Found = Mapping[str, Any]
"""What the command writes as JSON."""


class Aim(NamedTuple):
    """An aim: a number and the bound that it should keep."""

    text: str
    value: Callable[[Found], float | None]
    """Returns the number; None if it was not measured."""
    bound: float
    at_least: bool = True

    def verdict(self, found: Found) -> list[str]:
        """Return the cells of the aim's row."""
        value, bound = self.value(found), f"{'at least' if self.at_least else 'at most'} {self.bound:g}"
        if value is None:
            return [self.text, bound, "", "not measured"]
        met = value >= self.bound if self.at_least else value <= self.bound
        return [self.text, bound, f"{value:.3g}", "met" if met else "**missed**"]


def pick(found: Found, part: str, case: str, side: str, field: str = "ratio") -> list[float]:
    """Return a field of the measurements of a part whose case begins and whose side ends as given."""
    rows = found["parts"].get(part, {}).get("measurements", [])
    return [
        row[field] for row in rows
        if row["case"].startswith(case) and row["side"].endswith(side) and row[field] is not None
    ]  # fmt: skip


def _first(values: Sequence[float]) -> float | None:
    return values[0] if values else None


def _faster(part: str, case: str, side: str = OURS) -> Callable[[Found], float | None]:
    return lambda found: _first(pick(found, part, case, side))


def _slower(case: str, side: str) -> Callable[[Found], float | None]:
    """Return a function that gives how many times as long something takes as the plain step."""

    def value(found: Found) -> float | None:
        ratio = _first(pick(found, "memory", case, side))
        return None if ratio is None else 1 / ratio

    return value


def _memory(found: Found) -> float | None:
    """Return the largest memory of ours beside TerraTorch's, of all cases."""
    rows = [row for row in found["parts"].get("memory", {}).get("measurements", []) if row["unit"] == "MiB"]
    of = {(row["case"], row["side"]): row["value"] for row in rows if row["value"]}
    shares = [value / of[case, "TerraTorch"] for (case, side), value in of.items()
              if side == "ours" and (case, "TerraTorch") in of]  # fmt: skip
    return max(shares) if shares else None


def _sum(part: str, unit: str, side: str) -> Callable[[Found], float | None]:
    def value(found: Found) -> float | None:
        rows = found["parts"].get(part, {}).get("measurements", [])
        counts = [row["value"] for row in rows if row["unit"] == unit and row["side"].endswith(side)]
        if not counts or None in counts:
            return None
        return float(sum(counts))

    return value


def _largest(case: str, side: str) -> Callable[[Found], float | None]:
    def value(found: Found) -> float | None:
        rows = found["parts"].get("parity", {}).get("measurements", [])
        values = [row["value"] for row in rows if case in row["case"] and row["side"] == side]
        return max(values) if values and None not in values else None

    return value


AIMS = (
    Aim(
        "parity with TerraTorch, float32, largest difference", _largest("float32", "ours from TerraTorch"), 1e-5, False
    ),
    Aim("tiny 224, step: times as fast", _faster("steps", "tiny 224, step"), 5),
    Aim("base 224, step: times as fast", _faster("steps", "base 224, step"), 4),
    Aim("base 512, step: times as fast", _faster("steps", "base 512, step"), 1.6),
    Aim("TiM base 224, step: times as fast", _faster("thinking", "TiM base 224, step"), 3),
    Aim("TiM base 512, step: times as fast", _faster("thinking", "TiM base 512, step"), 1.8),
    Aim("decode S2L2A 224, batch 8: times as fast", _faster("decoding", "decode S2L2A 224"), 6),
    Aim("S2L2A to three modalities: times as fast", _faster("generation", "base 224"), 5),
    Aim("activation checkpointing: times the step", _slower("base 512, step, graphs", "checkpointing"), 1.4, False),
    Aim("modality mask: times the step", _slower("base 512, step, graphs", "ours, modality mask"), 1.05, False),
    Aim("memory of a step: times TerraTorch's", _memory, 1.0, False),
    Aim("recompilations after warm-up", _sum("waits", "recompilations", GRAPHS), 0, False),
    Aim("waits in steps with graphs", _sum("waits", "waits", GRAPHS), 0, False),
)
"""Ratios are to TerraTorch's run eagerly, in the same rounds."""


def render(found: Found, *, quick: bool = False) -> str:
    """Return the page.

    Args:
        found: Results.
        quick: Whether the run is a test: the page says that its numbers mean nothing.
    """
    machine = dict(found.get("machine", {}))
    packages = ", ".join(f"{name} {version}" for name, version in machine.pop("packages", {}).items() if version)
    lines = [f"{machine.pop('device', 'No device')}, {machine.pop('date', '')}. "
             f"{', '.join(f'{name} {value}' for name, value in machine.items())}; {packages}."]  # fmt: skip
    if quick:
        lines += ["", "**A quick run: a test that it works. Its numbers mean nothing.**"]
    lines += ["", *_table(("aim", "bound", "found", "verdict"), (aim.verdict(found) for aim in AIMS))]
    for name, report in found["parts"].items():
        lines += ["", f"**{name}** ({report['seconds']:.0f} s): {report['state']}."]
        lines += [f"Not measured: {'; '.join(report['left_out'])}."] if report["left_out"] else []
        if report["measurements"]:
            head = ("case", "side", "value", "times as fast", "rounds", "remark")
            lines += ["", *_table(head, map(_cells, report["measurements"]))]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    value = "" if row["value"] is None else f"{_shown(row['value'])} {row['unit']}".strip()
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
    if row["spread"]:
        ratio += f" ({row['spread'][0]:.2f} to {row['spread'][1]:.2f})"
    return [row["case"], row["side"], value, ratio, str(row["rounds"] or ""), row["remark"].replace("|", "/")]


def _shown(value: float) -> str:
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.1e}" if value < 1e-3 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
