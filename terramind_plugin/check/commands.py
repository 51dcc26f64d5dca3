"""The commands `terramind check` and `terramind verify`; they import heavy packages only when they run."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from terramind_plugin.errors import CheckError, counted

COLORS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}
WIDTH = 120
"""Minimum width of the table in characters."""


def run_check(
    *,
    config: Path,
    samples: int = 64,
    no_step: bool = False,
    timed: bool = False,
    sheet: Path | None = None,
    strict: bool = False,
    terramesh: Path | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Find mistakes in a configuration and its data before training.

    Exit status: 0 if both are sound, 2 on an error; with --strict, 1 on a warning.

    Args:
        config: Configuration, as for terramind fit.
        samples: Number of samples whose pixels are read.
        no_step: Skip the trial of a training and a validation step with two samples and random weights.
        timed: Take several steps as configured, and measure the seconds of an epoch and the peak memory.
        sheet: PNG to write, with some samples and a histogram of each band beside the pre-training data.
        strict: Exit with 1 on a warning.
        terramesh: Metadata of TerraMesh. Test chips on ground that TerraMind was pre-trained on are reported.
        overrides: Options of TerraTorch.
    """
    fresh = "torch" not in sys.modules
    _say("loading TerraTorch")
    from terramind_plugin.check.run import check
    from terramind_plugin.samples.checks.findings import Finding, worst

    findings = check(
        config,
        list(overrides),
        samples,
        timed=timed,
        sheet=sheet,
        terramesh=terramesh,
        step=not no_step,
        fresh=fresh,
        say=_say,
    )
    if not timed:
        findings.append(Finding("run: time", "note", "neither time nor memory was measured.", "Add --timed."))
    _print_table(config, findings)
    verdict = worst(findings)
    counts = {kind: sum(f.verdict == kind for f in findings) for kind in ("error", "warning", "note")}
    print(f"{config}: {', '.join(counted(count, kind) for kind, count in counts.items())}")
    if verdict == "error":
        raise CheckError("the configuration or its data have errors, see the table.", status=2)
    if verdict == "warning" and strict:
        raise CheckError("there are warnings, see the table.", status=1)


def _print_table(config: Path, findings: Iterable[Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=str(config), show_lines=True)
    for heading in ("check", "verdict", "what was seen", "what to do"):
        table.add_column(heading, overflow="fold")  # whole paths
    for finding in findings:
        row = (finding.check, finding.verdict, finding.seen, finding.advice)
        table.add_row(*(escape(text) for text in row), style=COLORS[finding.verdict])
    Console(width=max(Console().width, WIDTH)).print(table)


def _say(text: str) -> None:
    """Print the name of the part that begins; the table comes at the end."""
    print(f"terramind check: {text}", file=sys.stderr, flush=True)


def run_verify(
    *, model: list[str] | None = None, data: Path | None = None, tokenizers: list[str] | None = None
) -> None:
    """Compare published weights with TerraTorch's own loading of them.

    Features, token ids, decoded images and one generated land cover map are compared. Exit status: 0 if all agree,
    1 if not, 2 if weights are missing.

    Args:
        model: Registry names of published models (default: terramind_v1_base).
        data: Folder with a folder of GeoTIFFs for each modality, e.g. S2L2A/ (default: random numbers).
        tokenizers: Modalities whose tokenizers are compared, e.g. S2L2A,LULC,coords; about 1 GB each (default: all).
    """
    from rich.console import Console
    from rich.table import Table

    from terramind_plugin.check.verify import verify

    errors = Console(stderr=True)
    names = model or ["terramind_v1_base"]
    results = verify(names, data, tokenizers, lambda text: errors.print(f"Comparing {text}"))
    table = Table("model", "what", "input", "difference", "tolerance", "verdict")
    for one in results:
        numbers = (f"{one.difference:.1e}", f"{one.tolerance:.0e}")
        verdict, color = ("same", COLORS["ok"]) if one.same else ("differs", COLORS["error"])
        table.add_row(one.model, one.what, one.data, *numbers, verdict, style=color)
    Console(width=max(Console().width, WIDTH)).print(table)
    print("Difference: the largest one as a share of the largest value, or the share of ids that differ.")
    if not all(one.same for one in results):
        raise CheckError("results differ between TerraTorch's loader and this package's, see the table.", status=1)
