"""Tables, files and progress bars of the commands of evaluation; no heavy import."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.system.files import write_text

RANDOM = "terramind: the weights are random, so the results say nothing but that it runs."


def weights_of(model: str, pretrained: bool, ckpt_path: Path | None) -> str:
    """Return the origin of a model's weights, and print a warning if they are random.

    Args:
        model: Registry name.
        pretrained: Whether the published weights, or those that ship with this package, are loaded.
        ckpt_path: File with weights to load instead.
    """
    if ckpt_path is not None:
        return ckpt_path.name
    if not pretrained:
        print(RANDOM, file=sys.stderr)
        return "random"
    return "trained on simulated worlds" if VARIANTS[model].hub_repo is None else "pre-trained"


def show(rows: Sequence[Sequence[str]], title: str) -> None:
    """Print a table whose head is its first row."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    Console(width=max(Console().width, 110)).print(table)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose head is its first row."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [rows[0], rule, *rows[1:]])


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, which appears when it is complete."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


@contextmanager
def progress(text: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a progress bar, and yield the function that advances it by a number of steps."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:  # stdout is for other programs
        task = bar.add_task(text, total=total)
        yield lambda count: bar.advance(task, count)
