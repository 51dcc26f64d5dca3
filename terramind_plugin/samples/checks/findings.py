"""Findings of checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    check: str
    """Group and name, e.g. 'values: S2L1C units'."""
    verdict: Verdict
    """'note' is worth knowing; a 'warning' trains and gives worse maps; an 'error' stops or spoils the run."""
    seen: str
    advice: str = ""
    """Remedy."""

    def __str__(self) -> str:
        return f"{self.check}: {self.seen}" + (f" {self.advice}" if self.advice else "")


def worst(findings: Iterable[Finding]) -> Verdict:
    """Return the gravest verdict, 'ok' if there is none."""
    order: tuple[Verdict, ...] = ("ok", "note", "warning", "error")
    return max((finding.verdict for finding in findings), key=order.index, default="ok")


def some(names: Sequence[object], count: int = 3) -> str:
    """Return the first names, and how many more there are.

    Args:
        names: Anything with a short text.
        count: How many to name.
    """
    shown = ", ".join(str(name) for name in names[:count])
    return f"{shown} and {len(names) - count} more" if len(names) > count else shown
