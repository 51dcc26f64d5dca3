"""Files that have their name only when they are complete."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from terramind_plugin.errors import DataError, one_line


@contextmanager
def completing(path: Path) -> Iterator[Path]:
    """Give a path to write to; what is there when the block ends gets its name, what an error leaves is removed.

    Args:
        path: Name of the file; an existing one is replaced. Its folder must exist.
    """
    # In the same folder, since a rename is atomic only within one file system.
    partial = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, and the folders that lead to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with completing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text of lines, likewise."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_rows(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV, likewise; its first row is the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with completing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def write_figure(path: Path, figure: Any) -> None:
    """Write a Matplotlib figure as PNG, likewise.

    Raises:
        DataError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with completing(path) as partial:
            figure.savefig(partial, format="png", dpi=110)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {one_line(error)}. Make room, or choose another place.") from error
