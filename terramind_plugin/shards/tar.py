"""Index of a tar shard, so that each sample can be read alone."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import DataError, one_line
from terramind_plugin.shards.stores import ShardStore
from terramind_plugin.system.files import ZARR_ZIP, write_bytes

BLOCK = 512
"""Size of a tar header in bytes; data is padded to a multiple of it."""
READAHEAD = 4096
"""Number of bytes read for a header; after a tiny member they include the next header."""
PLAIN = (b"0", b"\0")
"""Type flags of ordinary files."""
FOLDER = b"5"


@dataclass(frozen=True)
class TarIndex:
    """Positions of the samples in a shard, in their order."""

    path: str
    keys: list[str]
    """Names of the members up to the first dot, as in webdataset."""
    starts: NDArray[np.int64]
    """Offset of each member's content in bytes."""
    sizes: NDArray[np.int64]
    damage: str = ""
    """Reason why the rest of the shard cannot be read; empty if it is complete."""


def index_tar(store: ShardStore, path: str, size: int) -> TarIndex:
    """Return the positions of the zarr.zip members of a tar; only headers are read.

    Args:
        store: Store of the file.
        path: Path of the tar in the store.
        size: Size of the tar in bytes.

    Raises:
        OSError: The file cannot be read.
        DataError: The store cannot be read.
    """
    found: list[tuple[str, int, int]] = []
    damage = "" if size else "it is empty (0 bytes)"
    others: list[str] = []
    position = 0
    while not damage:
        header = store.read(path, position, BLOCK)
        if len(header) < BLOCK:
            damage = f"it ends after {size} bytes without the empty block that closes a tar"
        elif not any(header):
            break
        elif (parsed := _parse(header)) is None:
            return _index_slowly(store, path, size)
        else:
            name, length, kind = parsed
            start = position + BLOCK
            position = start + -(-length // BLOCK) * BLOCK
            if kind in PLAIN and name.endswith(ZARR_ZIP):
                if start + length > size:
                    damage = f"it ends after {size} bytes, inside {name}"
                else:
                    found.append((name, start, length))
            elif kind != FOLDER:
                others.append(name)
    return _make(path, found, others, damage)


def _parse(header: bytes) -> tuple[str, int, bytes] | None:
    """Return the name, size and type in a plain header; None for a header that needs tarfile."""
    kind = header[156:157]
    try:
        length, checksum = int(header[124:136].strip(b" \0") or b"0", 8), int(header[148:156].strip(b" \0"), 8)
    except ValueError:
        return None
    if kind not in (*PLAIN, FOLDER) or sum(header) - sum(header[148:156]) + 8 * 32 != checksum:
        return None
    name = header[:100].rstrip(b"\0")
    prefix = header[345:500].rstrip(b"\0") if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" * bool(prefix) + name).decode("utf-8", "surrogateescape"), length, kind


def _index_slowly(store: ShardStore, path: str, size: int) -> TarIndex:
    """Return the index made with tarfile, which handles long names, extended headers and damage."""
    found, others, damage = [], [], ""
    try:
        with tarfile.open(fileobj=io.BufferedReader(_RangeFile(store, path, size), READAHEAD), mode="r:") as tar:
            for member in tar:
                if member.isfile() and member.name.endswith(ZARR_ZIP):
                    if member.offset_data + member.size > size:
                        damage = f"it ends after {size} bytes, inside {member.name}"
                        break
                    found.append((member.name, member.offset_data, member.size))
                elif not member.isdir():
                    others.append(member.name)
            end = store.read(path, tar.offset, BLOCK)
            if not damage and (len(end) < BLOCK or any(end)):
                damage = f"its header at byte {tar.offset} is damaged"
    except tarfile.TarError as error:
        damage = f"it is not a readable tar file: {one_line(error)}"
    return _make(path, found, others, damage)


def _make(path: str, found: list[tuple[str, int, int]], others: list[str], damage: str) -> TarIndex:
    if not found and not damage:
        shown = f"; it holds {', '.join(others[:3])}" if others else ""
        damage = f"it holds no member that ends in {ZARR_ZIP}{shown}"
    if found and damage:
        damage += f", after key {key_of_member(found[-1][0])}"
    keys = [key_of_member(name) for name, _, _ in found]
    starts, sizes = (np.array([row[column] for row in found], np.int64) for column in (1, 2))
    return TarIndex(path, keys, starts, sizes, damage)


def key_of_member(member: str) -> str:
    """Return the key of a member: its name up to the first dot, without a folder."""
    return member.rpartition("/")[2].partition(".")[0]


class _RangeFile(io.RawIOBase):
    """A file of a store as a seekable stream."""

    def __init__(self, store: ShardStore, path: str, size: int) -> None:
        self.store, self.path, self.end, self.position = store, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.end}[whence]
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = max(min(len(buffer), self.end - self.position), 0)
        content = self.store.read(self.path, self.position, length) if length else b""
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


class IndexCache:
    """Indices of shards kept on disk, because one request per sample is slow on a remote store.

    Args:
        folder: Folder of the files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()

    def _file(self, store: ShardStore, path: str, size: int, identity: str) -> Path:
        text = "\n".join((store.root, path, str(size), identity))
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"

    def index(self, store: ShardStore, path: str, size: int, identity: str) -> TarIndex:
        """Return the index of a tar, from the folder if possible.

        Args:
            store: Store of the file.
            path: Path of the tar in the store.
            size: Size of the tar in bytes.
            identity: Text that changes with the file.
        """
        file = self._file(store, path, size, identity)
        try:
            with np.load(file, allow_pickle=False) as kept:
                return TarIndex(path, [str(key) for key in kept["keys"]], kept["starts"], kept["sizes"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            index = index_tar(store, path, size)
        if not index.damage:
            content = io.BytesIO()
            np.savez(content, keys=np.array(index.keys), starts=index.starts, sizes=index.sizes)
            write_bytes(file, content.getvalue())
        return index


def check_index(store: ShardStore, index: TarIndex) -> None:
    """Raise a DataError if a shard is damaged."""
    if index.damage:
        raise DataError(f"{store.shown(index.path)}: {index.damage}. Download this shard again.")
