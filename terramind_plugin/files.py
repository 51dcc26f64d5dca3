"""Files that have their name only when they are complete."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from terramind_plugin.errors import ConfigError, DataError, one_line

MOST_ENTRIES = 100_000
"""Values of a YAML file: far more than a configuration has, and few enough to be copied."""
SOFTWARE = "terramind_plugin"
"""What pictures say they were drawn with."""


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


def check_aliases(path: Path) -> None:
    """Refuse a YAML file that is small on the disk and huge once its aliases are written out.

    Args:
        path: The file; what is no YAML passes, for whoever reads it says more.

    Raises:
        ConfigError: It is too large, or nested too deeply.
    """
    with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
        _compose(yaml.SafeLoader(path.read_text(encoding="utf-8")), path)


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        ConfigError: The file cannot be read, is no YAML, or is too large once its aliases are written out.
    """
    if not path.is_file():
        raise ConfigError(f"There is no configuration {path}.")
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = _compose(loader, path)
        return None if node is None else loader.construct_document(node)
    except ConfigError:
        raise
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: bytes, impossible dates
        raise ConfigError(f"{path} is no YAML that can be read: {one_line(error)}") from error


def _compose(loader: yaml.SafeLoader, path: Path) -> yaml.Node | None:
    try:
        node = loader.get_single_node()
        entries = 0 if node is None else _count_entries(node, {})
    except RecursionError:
        raise ConfigError(f"{path} is nested too deeply. Write fewer brackets or levels.") from None
    if entries > MOST_ENTRIES:
        raise ConfigError(
            f"{path} holds more than {MOST_ENTRIES} entries once its aliases (*name) are written out, or one that "
            "contains itself. Write fewer aliases."
        )
    return node


def _count_entries(node: yaml.Node, known: dict[int, float]) -> float:
    """Return how many values a node holds, each as often as it is referred to; infinity if it contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = node.value
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_count_entries(part, known) for part in parts)
    return known[id(node)]


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


def check_picture(path: Path | None) -> None:
    """Raise unless a picture can be written to a path: what `write_figure` has written is replaced, nothing else.

    Args:
        path: File to write; None for none.

    Raises:
        ConfigError: There is another file.
    """
    if path is None or not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(4096)  # the texts of a PNG come before its pixels
    if not start.startswith(b"\x89PNG") or b"tEXtSoftware\0" + SOFTWARE.encode() not in start:
        raise ConfigError(
            f"{path} is no picture that terramind has drawn, so it is not replaced. Give another name, ending in .png, "
            "or delete the file first."
        )


def write_figure(path: Path, figure: Any) -> None:
    """Write a Matplotlib figure as PNG, likewise.

    Raises:
        DataError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with completing(path) as partial:
            figure.savefig(partial, format="png", dpi=110, metadata={"Software": SOFTWARE})
    except OSError as error:
        raise DataError(f"{path} cannot be written: {one_line(error)}. Make room, or choose another place.") from error
