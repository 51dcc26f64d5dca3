"""Key-value store on disk, in an SQLite file that several processes and runs may share.

A damaged entry is detected by its checksum and dropped; a damaged file is moved away and created again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from terramind_plugin.errors import ConfigError
from terramind_plugin.system.parallel import map_in_threads

logger = logging.getLogger("terramind_plugin")
Answer = TypeVar("Answer")

FORMAT = 2
"""Version of the table's layout (SQLite's user_version); a file of another version is moved away."""
APPLICATION = int.from_bytes(b"TMmo")
"""SQLite's application_id, which marks files of this program."""
TABLE = """
CREATE TABLE IF NOT EXISTS entries (
    key BLOB PRIMARY KEY, used INTEGER NOT NULL, size INTEGER NOT NULL, checksum BLOB NOT NULL, value BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS by_use ON entries (used, size);
"""
COLUMNS = ["key", "used", "size", "checksum", "value"]
PAGE = 16384
"""Page size of SQLite in bytes: with its default of 4096, features of a megabyte take several times as long."""
PATIENCE = 60.0
"""Maximum number of seconds to wait for another process that writes."""
REFRESH = 3600
"""Minimum number of seconds between two updates of an entry's time of use."""
KEPT = 0.9
"""Share of the limit to which the file shrinks when entries are dropped."""
DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_ERROR")
"""SQLite's errors for a damaged file; SQLITE_ERROR means that the table was changed."""


class _OtherFormatError(Exception):
    """Error of a file with another format number: it is damaged, or another version of this program wrote it."""


class Store:
    """Store of bytes by key. The first value stored under a key is kept.

    Args:
        path: The file; it is created with its folder when it is needed.
        limit: Maximum size of all values in bytes; the least recently used values are dropped first.
    """

    def __init__(self, path: Path, limit: int) -> None:
        if limit <= 0:
            raise ConfigError(f"{path}: a cache needs a size above 0, got {limit} bytes.")
        self.path = path
        self.limit = limit
        self.full = False
        """True if nothing more can be stored."""
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._owner = (0, 0)
        self._since_check = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "limit": self.limit}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # a copy opens the file itself

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, None for an unknown key."""
        return self._try(lambda connection: self._read(connection, keys), [None] * len(keys))

    def put(self, values: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Store values, and return the stored values of their keys, which may be earlier ones.

        If nothing can be written, the given values are returned.
        """
        if self.full:
            return dict(values)
        return self._try(lambda connection: self._write(connection, values), dict(values))

    def size(self) -> int:
        """Return the size of all values in bytes."""
        return self._try(_total, 0)

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with self._lock:
            if self._connection is not None and self._owner[0] == os.getpid():
                self._connection.close()
            self._connection = None

    def _try(self, action: Callable[[sqlite3.Connection], Answer], otherwise: Answer) -> Answer:
        """Return an action's result, or `otherwise` if the file does not allow it. A damaged file is replaced."""
        with self._lock:
            for _ in range(2):
                try:
                    return action(self._open())
                # Damaged schemas and headers raise other errors.
                except (sqlite3.DatabaseError, UnicodeDecodeError, _OtherFormatError) as error:
                    if not isinstance(error, sqlite3.DatabaseError) or _name(error).startswith(DAMAGED):
                        self._put_aside(error)
                        continue
                    self._give_up(error)
                    return otherwise
                except OSError as error:
                    self._give_up(error)
                    return otherwise
            self._give_up("it was damaged again at once")
            return otherwise

    def _open(self) -> sqlite3.Connection:
        """Return this process's connection; a connection made before a fork must not be used."""
        if self._connection is not None and self._owner[0] == os.getpid():
            return self._connection
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._refuse_others()
        connection = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        self._owner = (os.getpid(), self.path.stat().st_ino)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA page_size = {PAGE}")  # of a new file
        connection.execute("PRAGMA journal_mode = WAL")  # no effect on a file system without shared memory
        connection.execute("PRAGMA synchronous = NORMAL")
        (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found not in (0, FORMAT):
            raise _OtherFormatError(f"its format is {found}, not {FORMAT}")
        connection.executescript(TABLE)
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute(f"PRAGMA application_id = {APPLICATION}")

    def _refuse_others(self) -> None:
        """Raise a ConfigError if the file is an SQLite file of another program; it is not changed."""
        if not self.path.is_file():
            return
        self._owner = (os.getpid(), self.path.stat().st_ino)
        with open(self.path, "rb") as file:
            header = file.read(100)
        if not header.startswith(b"SQLite format 3\0") or header[68:72] == APPLICATION.to_bytes(4):
            return
        # Files of earlier versions have no application_id, and ours may be damaged, so the tables are checked.
        address = f"file:{quote(str(self.path.absolute()))}?mode=ro&immutable=1"
        with closing(sqlite3.connect(address, uri=True)) as connection:
            columns = [row[1] for row in connection.execute("PRAGMA table_info(entries)")]
            others = connection.execute("SELECT COUNT(*) FROM sqlite_schema WHERE tbl_name != 'entries'").fetchone()[0]
        if others or (columns and columns != COLUMNS) or (not columns and any(header[60:64])):
            raise ConfigError(f"{self.path} is an SQLite file of another program. Name another folder for the cache.")

    def _read(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> list[bytes | None]:
        now = int(time.time())
        query = "SELECT used, checksum, value FROM entries WHERE key = ?"
        rows: list[tuple[Any, ...]] = [
            (key, *row) for key in keys if (row := connection.execute(query, (key,)).fetchone()) is not None
        ]
        size = sum(len(value) for *_, value in rows if isinstance(value, bytes))
        found: dict[bytes, bytes] = {}
        for (key, used, _, value), whole in zip(rows, map_in_threads(_is_whole, rows, size), strict=True):
            if not whole:
                logger.warning("%s: a damaged entry was dropped.", self.path)
                connection.execute("DELETE FROM entries WHERE key = ?", (key,))
                continue
            if now - used > REFRESH and not self.full:
                connection.execute("UPDATE entries SET used = ? WHERE key = ?", (now, key))
            found[key] = value
        return [found.get(key) for key in keys]

    def _write(self, connection: sqlite3.Connection, values: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        now = int(time.time())
        rows = [(key, now, len(value), _checksum(key, value), value) for key, value in values.items()]
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?)", rows)
            self._since_check += sum(row[2] for row in rows)
            if self._since_check > self.limit * (1 - KEPT) / 2:
                self._since_check = 0
                self._drop_oldest(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        stored = self._read(connection, list(values))
        return {key: value if value is not None else values[key] for key, value in zip(values, stored, strict=True)}

    def _drop_oldest(self, connection: sqlite3.Connection) -> None:
        total = _total(connection)
        if total <= self.limit:
            return
        excess, keys = total - int(self.limit * KEPT), []
        for key, size in connection.execute("SELECT key, size FROM entries ORDER BY used, rowid"):
            if excess <= 0:
                break
            keys.append((key,))
            excess -= size
        connection.executemany("DELETE FROM entries WHERE key = ?", keys)

    def _put_aside(self, error: Exception) -> None:
        """Close a damaged file and move it away, unless another process has done so already."""
        inode = self._owner[1]
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if not self.path.exists() or self.path.stat().st_ino != inode:
            return
        aside = self.path.with_name(f"{self.path.name}.damaged")
        for ending in ("-wal", "-shm"):
            Path(f"{self.path}{ending}").unlink(missing_ok=True)
        os.replace(self.path, aside)
        logger.warning("%s is damaged (%s). It is kept as %s, and a new one is started.", self.path, error, aside.name)

    def _give_up(self, reason: object) -> None:
        """Stop storing, and log the reason once."""
        if not self.full:
            logger.warning("%s: %s. The run continues without storing more.", self.path, reason)
        self.full = True


def _name(error: sqlite3.Error) -> str:
    """Return SQLite's name of an error."""
    return getattr(error, "sqlite_errorname", "")


def _total(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT COALESCE(SUM(size), 0) FROM entries").fetchone()[0])


def _is_whole(entry: tuple[Any, ...]) -> bool:
    """Return whether the key, time of use, checksum and value of an entry are intact."""
    key, used, checksum, value = entry
    return isinstance(value, bytes) and isinstance(used, int) and bool(checksum == _checksum(key, value))


def _checksum(key: bytes, value: bytes) -> bytes:
    digest = hashlib.sha256(key)
    digest.update(value)
    return digest.digest()[:16]
