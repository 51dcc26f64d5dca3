"""What is finished of a scene, so that an interrupted run can go on."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.files import write_text
from terramind_plugin.geo.large import Layer

RECORD = "run.json"
RAW = "{}.raw"
FINISHED = "rows-{}.txt"


class Partial:
    """A folder with raw rows of each layer, the record of the run, and a list of finished rows for each process.

    Rows are listed after they are on the disk, so a run that is killed at any moment goes on with what is listed. When
    the files of the scene are complete the folder goes away.

    Args:
        folder: Where; its parent must exist.
        layers: Files that are to come.
        shape: Height and width of the scene in pixels.
    """

    def __init__(self, folder: Path, layers: Sequence[Layer], shape: tuple[int, int]) -> None:
        self.folder = folder
        self.layers = tuple(layers)
        self.height, self.width = shape
        self._lock: IO[str] | None = None
        # Never added to by another process: a line that was cut off stays the last one of its list.
        self._list = FINISHED.format(uuid4().hex[:12])

    def start(self, record: Mapping[str, Any], *, anew: bool = False) -> dict[str, Any]:
        """Begin, or go on with what another run has left, and return its record.

        Args:
            record: What decides on the results, and 'date', which does not.
            anew: Do not go on.

        Raises:
            ConfigError: The other run had another record, or is still going on.
            DataError: There is no room for the results.
        """
        known = None if anew else self._read_record()
        if known is not None:
            _compare(known, record, self.folder)
            self._hold()
            return known
        try:
            if self.folder.exists():
                self._hold()
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True)
            self._hold()
            for layer in self.layers:
                with open(self.folder / RAW.format(layer.ending), "wb") as file:
                    # All room at once: better to hear of a full disk now than in some hours.
                    os.posix_fallocate(file.fileno(), 0, self.height * self.width * layer.bytes_per_pixel)
            write_text(self.folder / RECORD, json.dumps(dict(record), indent=2) + "\n")
        except OSError as error:
            needed = sum(layer.bytes_per_pixel for layer in self.layers) * self.height * self.width / 2**30
            raise DataError(
                f"Cannot keep results in {self.folder}: {error.strerror}. They need {needed:.2f} GiB while the command "
                "runs. Make room, or give another folder with --out."
            ) from error
        return dict(record)

    def _read_record(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return None

    def _hold(self) -> None:
        """Keep other runs away until this process ends, however it ends."""
        self.release()
        self._lock = open(self.folder / "lock", "w")  # noqa: SIM115  held on purpose
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return  # a file system without locks
            self.release()
            raise ConfigError(
                f"Another run is working on {self.folder}. Wait for it, or give another folder with --out."
            ) from None

    def finished(self) -> list[tuple[int, int]]:
        """Return first and last-plus-one of all rows that are finished."""
        found = []
        for path in sorted(self.folder.glob(FINISHED.format("*"))):
            # A line without its end was being written when the run was killed.
            for line in path.read_text().split("\n")[:-1]:
                first, last = map(int, line.split())
                found.append((first, last))
        return found

    def write(self, first: int, arrays: Sequence[NDArray]) -> None:
        """Keep finished rows.

        Args:
            first: Number of the first one.
            arrays: For each layer [bands, rows, width].

        Raises:
            DataError: They cannot be written.
        """
        count = arrays[0].shape[1]
        try:
            for layer, array in zip(self.layers, arrays, strict=True):
                values = np.ascontiguousarray(array, dtype=layer.dtype)
                with open(self.folder / RAW.format(layer.ending), "r+b") as file:
                    for band, plane in enumerate(values):
                        file.seek(self._offset(layer, band, first))
                        file.write(plane.data)
                    file.flush()
                    os.fdatasync(file.fileno())
            with open(self.folder / self._list, "a") as listed:
                listed.write(f"{first} {first + count}\n")
                listed.flush()
                os.fdatasync(listed.fileno())
        except OSError as error:
            raise DataError(
                f"Rows {first} to {first + count - 1} cannot be written to {self.folder}: {error.strerror}. "
                "Run the same command again when it is possible; what is finished is kept."
            ) from error

    def read(self, layer: Layer, first: int, last: int) -> NDArray:
        """Return finished rows of a layer, [bands, rows, width]."""
        planes = []
        with open(self.folder / RAW.format(layer.ending), "rb") as file:
            for band in range(len(layer.descriptions)):
                file.seek(self._offset(layer, band, first))
                planes.append(np.fromfile(file, layer.dtype, (last - first) * self.width))
        return np.stack(planes).reshape(len(planes), last - first, self.width)

    def _offset(self, layer: Layer, band: int, row: int) -> int:
        return (band * self.height + row) * self.width * np.dtype(layer.dtype).itemsize

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Let other runs go on with it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _compare(known: Mapping[str, Any], record: Mapping[str, Any], folder: Path) -> None:
    """Raise if an unfinished run had other settings.

    Raises:
        ConfigError: The message says which.
    """
    differing = [
        f"{key}: {known.get(key)} there, {record.get(key)} now"
        for key in dict.fromkeys([*known, *record])
        if key != "date" and known.get(key) != record.get(key)
    ]
    if differing:
        raise ConfigError(
            f"{folder} holds an unfinished run with other settings ({'; '.join(differing)}). Finish it with the "
            "settings it has, start anew with --restart, or give another folder with --out."
        )
