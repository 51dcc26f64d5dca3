"""The words of `terramind check`; heavy imports wait until it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from terramind_plugin.errors import CheckError

COLORS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}
WIDTH = 120
"""Characters that the table needs."""


def add_commands(commands: Any) -> None:
    """Add the command to the subparsers of `terramind`."""
    text = "find mistakes in a configuration and its data before training"
    parser = commands.add_parser(
        "check",
        help=text,
        description=f"{text.capitalize()}. Options of terramind fit, such as --data.init_args.batch_size=4, hold. "
        "Exit status: 0 if sound, 2 on an error, with --strict 1 on a warning.",
    )
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="YAML", help="as for terramind fit")
    parser.add_argument(
        "--samples", type=int, default=64, metavar="N", help="samples to read pixels of (default: %(default)s)"
    )
    parser.add_argument(
        "--no_step",
        action="store_true",
        help="leave out the training and validation step that is tried with two samples and random weights",
    )
    parser.add_argument(
        "--timed", action="store_true", help="try several steps as they are configured: seconds an epoch, peak memory"
    )
    parser.add_argument(
        "--sheet", type=Path, metavar="PNG", help="draw samples, and each band beside the pre-training data"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 on a warning")
    parser.set_defaults(run=_check, words=[])


def _check(options: argparse.Namespace) -> None:
    fresh = "torch" not in sys.modules
    _say("loading TerraTorch")
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from terramind_plugin.check.run import check
    from terramind_plugin.contract.findings import Finding, worst

    findings = check(
        options.config,
        options.words,
        options.samples,
        timed=options.timed,
        sheet=options.sheet,
        step=not options.no_step,
        fresh=fresh,
        say=_say,
    )
    if not options.timed:
        findings.append(Finding("run: time", "note", "seconds an epoch and memory were not measured.", "Add --timed."))
    table = Table(title=str(options.config), show_lines=True)
    for heading in ("check", "verdict", "what was seen", "what to do"):
        table.add_column(heading, overflow="fold")  # whole paths
    for finding in findings:
        row = (finding.check, finding.verdict, finding.seen, finding.advice)
        table.add_row(*(escape(text) for text in row), style=COLORS[finding.verdict])
    Console(width=max(Console().width, WIDTH)).print(table)
    verdict = worst(findings)
    counts = {kind: sum(f.verdict == kind for f in findings) for kind in ("error", "warning", "note")}
    texts = [f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items()]
    print(f"{options.config}: {', '.join(texts)}")
    if verdict == "error":
        raise CheckError("the configuration or its data are not sound, see the table.", status=2)
    if verdict == "warning" and options.strict:
        raise CheckError("there are warnings, see the table.", status=1)


def _say(text: str) -> None:
    """Print what begins; the table comes at the end."""
    print(f"terramind check: {text}", file=sys.stderr, flush=True)
