"""The words of `terramind check` and `terramind verify`; heavy imports wait until one of them runs."""

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
    """Add the commands to the subparsers of `terramind`."""
    _add_check(commands)
    _add_verify(commands)


def _add_check(commands: Any) -> None:
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
    from terramind_plugin.samples.checks.findings import Finding, worst

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


def _add_verify(commands: Any) -> None:
    text = "compare published weights with TerraTorch's own loading of them"
    parser = commands.add_parser(
        "verify",
        help=text,
        description=f"{text.capitalize()}: features, token ids, decoded images and one generated land cover map. Exit "
        "status: 0 if all are the same, 1 if not, 2 if weights are not there.",
    )
    parser.add_argument(
        "--model", nargs="+", default=["terramind_v1_base"], metavar="NAME", help="default: terramind_v1_base"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="input: a folder with a folder of GeoTIFFs for each modality, e.g. S2L2A/ (default: random numbers)",
    )
    parser.add_argument(
        "--tokenizers",
        metavar="NAMES",
        help="tokenizers to compare, e.g. S2L2A,LULC,coords; about 1 GB each (default: all)",
    )
    parser.set_defaults(run=_verify)


def _verify(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from terramind_plugin.check.verify import verify

    names = options.tokenizers
    wanted = None if names is None else [name.strip() for name in names.split(",") if name.strip()]
    errors = Console(stderr=True)
    results = verify(options.model, options.data, wanted, lambda text: errors.print(f"Comparing {text}"))
    table = Table("model", "what", "input", "difference", "tolerance", "verdict")
    for one in results:
        numbers = (f"{one.difference:.1e}", f"{one.tolerance:.0e}")
        verdict, color = ("same", COLORS["ok"]) if one.same else ("differs", COLORS["error"])
        table.add_row(one.model, one.what, one.data, *numbers, verdict, style=color)
    Console(width=max(Console().width, WIDTH)).print(table)
    print("Difference: the largest one as a share of the largest value, or the share of ids that differ.")
    if not all(one.same for one in results):
        raise CheckError("results differ between TerraTorch's loader and this package's, see the table.", status=1)
