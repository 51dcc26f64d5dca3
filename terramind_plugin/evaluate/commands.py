"""The words of `terramind compare`, and the commands beside it; heavy imports wait until one of them runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from terramind_plugin.evaluate import model_commands
from terramind_plugin.evaluate.arms import ARMS, DEFAULT_ARMS
from terramind_plugin.evaluate.budgets import read_budgets
from terramind_plugin.files import write_figure, write_text

WIDTH = 110
"""Characters that the table needs."""


def add_commands(commands: Any) -> None:
    """Add all commands of this folder to the subparsers of `terramind`."""
    _add_compare(commands)
    model_commands.add_commands(commands)


def _add_compare(commands: Any) -> None:
    text = "fine-tune in several ways under the same budget"
    parser = commands.add_parser(
        "compare",
        help=text,
        description=f"{text.capitalize()}; print and plot what each gives and costs. Options of terramind fit, such as "
        "--trainer.max_epochs=3 or --trainer.max_time=00:00:10:00, hold for all runs.",
        epilog="Arms: " + "; ".join(f"{name}: {meaning}" for name, meaning in ARMS.items()) + ".",
    )
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="YAML", help="as for terramind fit")
    parser.add_argument(
        "--arms", default=",".join(DEFAULT_ARMS), metavar="NAMES", help="comma-separated (default: all but oracle)"
    )
    parser.add_argument(
        "--labels",
        default="all",
        metavar="NUMBERS",
        help="training samples with labels, e.g. 8,32,all; the same for all arms of a seed, with as many steps as all "
        "samples take (default: %(default)s)",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each arm (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--metric", default="test/mIoU", metavar="NAME", help="of the test; more is better (default: %(default)s)"
    )
    parser.set_defaults(run=_compare, words=[])


def _compare(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from terramind_plugin.evaluate.compare import Comparison, Run, compare
    from terramind_plugin.evaluate.report import draw, markdown, summarise, table

    arms = [name.strip() for name in options.arms.split(",") if name.strip()]
    labels = read_budgets(options.labels)
    total = len(arms) * options.seeds * len(labels)
    started, console = 0, Console(width=max(Console().width, WIDTH))

    def announce(run: Run, known: bool) -> None:
        nonlocal started
        started += 1
        note = " (done before)" if known else ""
        console.print(f"{started}/{total} {run}{note}", highlight=False)

    plan = Comparison(options.config, arms, options.seeds, options.out, options.words, labels)
    results = compare(plan, announce)
    summaries = summarise(results, options.metric)
    head, *rows = table(summaries, options.metric)
    shown = Table(*head, title=f"{options.config.name}, {options.seeds} seeds")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    write_text(options.out / "table.md", markdown([head, *rows]))
    title = f"{options.config.name}: mean and standard deviation of {options.seeds} seeds"
    write_figure(options.out / "figure.png", draw(summaries, options.metric, title))
    for name in ("table.md", "figure.png", "runs"):
        print(options.out / name)
