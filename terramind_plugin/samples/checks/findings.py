"""The findings of checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One row of the table."""

    check: str
    """Group and name of the check, e.g. 'values: S2L1C units'."""
    verdict: Verdict
    """A 'note' is worth knowing; with a 'warning' training works but maps get worse; an 'error' stops or spoils it."""
    seen: str
    advice: str = ""
    """Remedy."""

    def __str__(self) -> str:
        return f"{self.check}: {self.seen}" + (f" {self.advice}" if self.advice else "")


def worst(findings: Iterable[Finding]) -> Verdict:
    """Return the most severe verdict; 'ok' if there are no findings."""
    order: tuple[Verdict, ...] = ("ok", "note", "warning", "error")
    return max((finding.verdict for finding in findings), key=order.index, default="ok")


def some(names: Sequence[object], count: int = 3) -> str:
    """Return a text with the first names and the number of the others.

    Args:
        names: Anything with a short text.
        count: Maximum number of names in the text.
    """
    shown = ", ".join(str(name) for name in names[:count])
    return f"{shown} and {len(names) - count} more" if len(names) > count else shown
