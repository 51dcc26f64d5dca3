"""Files that get their name only when they are complete; YAML of limited size; tables; pictures of this program."""

from __future__ import annotations

import csv
import errno
import functools
import hashlib
import io
import json
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from terramind_plugin.errors import ConfigError, DataError, one_line

MOST_ENTRIES = 100_000
"""Maximum number of values of a YAML file: far more than a configuration has, few enough to be copied."""
ZARR_ZIP = ".zarr.zip"
"""Ending of zipped zarr groups: samples of TerraMesh, chips of ImpactMesh."""
TABLES = (".csv", ".parquet")
"""Endings of split files, labels and points that are tables."""
SOFTWARE = "terramind_plugin"
"""Name of this program in the metadata of its pictures."""

_TEMPORARY = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-[0-9a-f]{6}\.tmp")
"""Name of an unfinished file: the final name, where and by which process it is written, a random number."""
_LONGEST = 180
"""Maximum number of bytes that a temporary name takes from the final name: file systems allow 255 in all."""
_FOREIGN_AGE = 24 * 3600
"""Seconds without a change after which an unfinished file of another machine counts as abandoned."""
_SHARE = 0.02
"""Maximum share of the time that is spent on looking for abandoned files in one folder."""
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_next_look: dict[Path, float] = {}


@contextmanager
def completing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. The file is renamed when the context ends, and removed after an error.

    Unfinished files in the same folder whose process has ended are removed first.

    Args:
        path: Final name of the file, in an existing folder. An existing file is replaced.

    Raises:
        OSError: The file cannot be written, e.g. because the disk is full; `filename` is `path`.
    """
    with temporary(path) as partial:
        try:
            yield partial
            os.replace(partial, path)
        except OSError as error:
            # Name the final file: errors name the temporary one, or, from write(), none.
            if error.errno is not None and error.filename in (None, str(partial)):
                error.filename, error.filename2 = str(path), None
            raise


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Yield a hidden name in the same folder as `path`. A file of that name is removed when the context ends."""
    _remove_abandoned(path.parent)
    begin = path.name.encode()[:_LONGEST].decode(errors="ignore")
    # In the same folder: a rename is atomic only within one file system.
    partial = path.with_name(f".{begin}.{_machine()}-{os.getpid()}-{uuid4().hex[:6]}.tmp")
    try:
        yield partial
    finally:
        _remove(partial)


@contextmanager
def completing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to write to. It is renamed when the context ends, and removed after an error.

    Args:
        path: Final name of the folder, in an existing folder. An existing folder is replaced.

    Raises:
        OSError: As in `completing`.
    """
    with completing(path) as partial, temporary(path) as former:
        partial.mkdir()
        yield partial
        if os.path.lexists(path):
            os.replace(path, former)  # a folder that is not empty cannot be replaced directly


def plain(value: Any) -> Any:
    """Return a value as plain numbers, texts, lists and mappings, for YAML and JSON; enum members become values."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    value = getattr(value, "value", value)
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def hash_content(content: Any) -> str:
    """Return a hash of 16 hex digits of plain values that ignores the order of keys; other objects count as text."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _remove(path: Path) -> None:
    """Remove a file, or a folder with its content, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@functools.cache
def _machine() -> str:
    """Return 8 hex digits that identify this machine since its start, or this container."""
    here = platform.node()
    with suppress(OSError):  # systems other than Linux
        here += Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(here.encode()).hexdigest()[:8]


def _remove_abandoned(folder: Path) -> None:
    """Remove unfinished files of processes that have ended; large folders are listed less often."""
    start = time.monotonic()
    if start < _next_look.get(folder, 0.0):
        return
    with suppress(OSError):  # a folder that cannot be listed may still be written to
        for name in os.listdir(folder):
            found = _TEMPORARY.fullmatch(name) if name.endswith(".tmp") else None
            if found is not None and _is_abandoned(folder / name, *found.groups()):
                _remove(folder / name)
    end = time.monotonic()
    _next_look[folder] = end + (end - start) / _SHARE


def _is_abandoned(path: Path, machine: str, process: str) -> bool:
    """Return whether the process that wrote a file has ended or, on another machine, has been inactive for a day."""
    if machine != _machine():
        return time.time() - path.stat().st_mtime > _FOREIGN_AGE
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def flush_to_disk(descriptor: int) -> None:
    """Wait until the content of an open file is on the disk, where the file system supports that.

    Raises:
        OSError: The content could not be written, e.g. because the disk is full.
    """
    try:
        getattr(os, "fdatasync", os.fsync)(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise


def reserve(descriptor: int, size: int) -> None:
    """Set the size in bytes of an open, empty file, and reserve the space if the system supports it.

    Raises:
        OSError: There is not enough space.
    """
    if size > 0 and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
            return
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
    os.ftruncate(descriptor, size)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file and create its folder; an existing file is replaced.

    A full disk is detected when the file is written or closed. Writing small files with `flush_to_disk` would take
    several times as long.

    Raises:
        OSError: The file cannot be written; `filename` is `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with completing(path) as partial, open(partial, "wb") as file:
        file.write(content)


def check_aliases(path: Path) -> None:
    """Raise a ConfigError if a YAML file is too large once its aliases are expanded, or nested too deeply.

    A file that is not valid YAML passes: its reader reports the reason.
    """
    with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):
        _compose(yaml.SafeLoader(path.read_text(encoding="utf-8")), path)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        ConfigError: The file cannot be read, is not valid YAML, or is too large once its aliases are expanded.
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
        raise ConfigError(f"{path} is not valid YAML: {one_line(error)}") from error


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
    """Return the number of values in a node with its aliases expanded; infinity if it contains itself."""
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
    """Write a text in UTF-8 as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines of text as `write_bytes` does."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def write_rows(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV, whose first row is the header, as `write_bytes` does."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())


def read_table(path: str | os.PathLike[str]) -> Any:
    """Return a CSV or Parquet file as a pandas DataFrame with the ids as its index.

    Raises:
        ValueError: The file is no table.
        OSError: The file cannot be read.
    """
    import pandas as pd

    return pd.read_parquet(path) if str(path).endswith(".parquet") else pd.read_csv(path, index_col=0)


def check_picture(path: Path | None) -> None:
    """Raise a ConfigError if a path is a file that `write_figure` has not written; None stands for no path."""
    if path is None or not path.is_file():
        return
    with path.open("rb") as file:
        start = file.read(4096)  # the texts of a PNG come before its pixels
    if not start.startswith(b"\x89PNG") or b"tEXtSoftware\0" + SOFTWARE.encode() not in start:
        raise ConfigError(
            f"{path} is not a picture that terramind has drawn, so it is not replaced. Give another name, ending in "
            ".png, or delete the file first."
        )


def write_figure(path: Path, figure: Any) -> None:
    """Write a Matplotlib figure as PNG and create its folder.

    Raises:
        DataError: The picture cannot be written.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, metadata={"Software": SOFTWARE})
    try:
        write_bytes(path, picture.getbuffer())
    except OSError as error:
        raise DataError(f"{path} cannot be written: {one_line(error)}. Make room, or choose another place.") from error


def is_whole_picture(path: Path) -> bool:
    """Return whether a file is a complete picture with the right checksums."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.verify()
    except (OSError, SyntaxError):  # SyntaxError: a wrong checksum
        return False
    return True
