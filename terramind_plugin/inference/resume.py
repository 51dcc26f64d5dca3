"""Finished rows of a scene on disk, so that an interrupted run can be resumed."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import stat
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.raster.writer import Layer
from terramind_plugin.system.files import flush_to_disk, reserve, write_text
from terramind_plugin.system.process import locked

logger = logging.getLogger("terramind_plugin")

RECORD = "run.json"
RAW = "{}.raw"
FINISHED = "rows-{}.txt"
LOCK = "lock"
NOT_DECISIVE = ("written", "made_by", "terramind_plugin_version")
"""Entries of a record that may differ when a run is resumed, because the results do not depend on them."""
OWNER = "terramind_plugin"
"""Value of 'made_by' in a record, which shows that the folder belongs to this program and may be deleted."""
_LIST = re.compile(r"rows-[0-9a-f]{12}\.txt")
_LINE = re.compile(r"(\d{1,9}) (\d{1,9}) ([0-9a-f]{8})")
"""A line of a list: first row, row after the last one, and checksum of the rows' values in all layers."""
_TEMPORARY = re.compile(rf"\.{re.escape(RECORD)}\..*\.tmp")
_CHECKED = 32 * 2**20
"""Approximate number of bytes read at once for a checksum."""


class Partial:
    """A folder with the raw rows of each layer, the record of the run, and a list of finished rows for each process.

    Rows are listed only when they are on the disk, so a run that was killed at any moment can be resumed with the
    listed rows. The lists hold checksums: damaged or wrongly listed rows are computed again. The folder is removed when
    the files of the scene are complete.

    Args:
        folder: Path of the folder; it is created if it does not exist.
        layers: Files that will hold the rows.
        shape: Height and width of the scene in pixels.
    """

    def __init__(self, folder: Path, layers: Sequence[Layer], shape: tuple[int, int]) -> None:
        self.folder = folder
        self.layers = tuple(layers)
        self.height, self.width = shape
        self._held = ExitStack()
        # No other process writes to this list, so that only its last line can be incomplete.
        self._list = FINISHED.format(uuid4().hex[:12])

    def start(self, record: Mapping[str, Any], *, anew: bool = False) -> dict[str, Any]:
        """Start a run or resume the one in the folder, and return its record.

        Args:
            record: Everything that determines the results, and 'written', which does not.
            anew: Whether to remove the rows of an earlier run.

        Raises:
            ConfigError: The earlier run had other settings or is still running, or the folder holds other files.
            DataError: There is not enough space for the results.
        """
        self._look()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._hold()
            found = None if anew else self._look()
            if found is not None:
                _compare(found, record, self.folder)
                if self._raws_are_whole():
                    self._keep_right_rows()
                    return {key: found.get(key, value) for key, value in record.items()}
            if not anew and any(path.name != LOCK for path in self.folder.iterdir()):
                logger.warning(
                    "%s: the unfinished run in it is incomplete or damaged, so it is started again.", self.folder
                )
            self._clear()
            self._reserve()
            write_text(self.folder / RECORD, json.dumps({**record, "made_by": OWNER}, indent=2) + "\n")
        except ConfigError:
            self.release()
            raise
        except DataError:
            self.remove()
            raise
        except OSError as error:
            self.remove()
            raise DataError(
                f"Cannot keep results in {self.folder}: {error.strerror}. They need {_gib(self._needed)} while the "
                "command runs. Free some space, or give another folder with --out."
            ) from error
        return dict(record)

    @property
    def _needed(self) -> int:
        """Return the size of all layers in bytes."""
        return sum(map(self._size, self.layers))

    def _size(self, layer: Layer) -> int:
        return self.height * self.width * layer.bytes_per_pixel

    def _raw(self, layer: Layer) -> Path:
        return self.folder / RAW.format(layer.ending)

    def _look(self) -> dict[str, Any] | None:
        """Return the record in the folder, or None if there is no readable record.

        Raises:
            ConfigError: The folder does not belong to this program, so nothing in it may be changed.
        """
        if not os.path.lexists(self.folder):
            return None
        if self.folder.is_symlink() or not self.folder.is_dir():
            raise ConfigError(
                f"{self.folder} is not a folder, and a folder of this name is needed for unfinished results. Move it "
                "away, or give another folder with --out."
            )
        record = self._read_record()
        raws = {RAW.format(layer.ending) for layer in self.layers}
        for path in self.folder.iterdir():
            known = path.name in (RECORD, LOCK, *raws) or _LIST.fullmatch(path.name) or _TEMPORARY.fullmatch(path.name)
            if (not known and not _is_ours(record)) or (known and stat.S_ISDIR(path.lstat().st_mode)):
                raise ConfigError(
                    f"{self.folder} holds {path.name}, which is not part of an unfinished run. Move it away, or give "
                    "another folder with --out."
                )
        return record

    def _read_record(self) -> dict[str, Any] | None:
        path = self.folder / RECORD
        if not _is_plain_file(path):
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict) or not isinstance(record.get("written", ""), str):
            return None
        return record

    def _hold(self) -> None:
        """Lock the folder against other runs until this process ends, however it ends.

        Raises:
            ConfigError: Another run is working on the folder, or its lock is not a plain file.
        """
        self.release()
        path = self.folder / LOCK
        if os.path.lexists(path) and not _is_plain_file(path):
            raise ConfigError(f"{path} is not a plain file. Remove it, or give another folder with --out.")
        busy = f"Another run is working on {self.folder}. Wait for it, or give another folder with --out."
        self._held.enter_context(locked(path, busy))

    def _raws_are_whole(self) -> bool:
        """Return whether the raw files of all layers have their full size."""
        return all(
            _is_plain_file(self._raw(layer)) and self._raw(layer).stat().st_size == self._size(layer)
            for layer in self.layers
        )

    def _reserve(self) -> None:
        """Reserve the space of all layers, so that a full disk shows now and not hours later.

        Raises:
            DataError: There is not enough space.
        """
        free = shutil.disk_usage(self.folder).free
        if self._needed > free:
            raise DataError(
                f"Cannot keep results in {self.folder}: they need {_gib(self._needed)} while the command runs, and "
                f"{_gib(free)} are free. Free some space, or give another folder with --out."
            )
        for layer in self.layers:
            with open(self._raw(layer), "xb") as file:
                reserve(file.fileno(), self._size(layer))

    def _keep_right_rows(self) -> None:
        """Remove the rows with a wrong checksum from the lists."""
        lists = self._lists()
        lines = [line for path in lists for line in _lines(path)]
        right: dict[tuple[int, int], str] = {}
        for line in lines:
            found = _LINE.fullmatch(line)
            if found is not None:
                first, last = int(found[1]), int(found[2])
                if first < last <= self.height and self._checksum(first, last) == found[3]:
                    right[first, last] = line
        if len(right) == len(lines):
            return
        logger.warning(
            "%s: %d of %d entries about finished rows are damaged; these rows are computed again.",
            self.folder, len(lines) - len(right), len(lines),
        )  # fmt: skip
        write_text(self.folder / FINISHED.format(uuid4().hex[:12]), "".join(f"{line}\n" for line in right.values()))
        for path in lists:
            path.unlink()

    def _checksum(self, first: int, last: int) -> str:
        """Return the checksum of some rows on the disk."""
        rows = max(1, _CHECKED // (self.width * 8))
        value = 0
        for layer in self.layers:
            for band in range(len(layer.descriptions)):
                for top in range(first, last, rows):
                    value = zlib.crc32(self._read_band(layer, band, top, min(top + rows, last)).data, value)
        return f"{value:08x}"

    def _lists(self) -> list[Path]:
        return [path for path in sorted(self.folder.glob(FINISHED.format("*"))) if _LIST.fullmatch(path.name)]

    def finished(self) -> list[tuple[int, int]]:
        """Return the first row of each finished row block and the row after its last one."""
        lines = (_LINE.fullmatch(line) for path in self._lists() for line in _lines(path))
        return [(int(line[1]), int(line[2])) for line in lines if line is not None]

    def write(self, first: int, arrays: Sequence[NDArray[Any]]) -> None:
        """Write finished rows.

        Args:
            first: Number of the first row.
            arrays: Values of each layer, [bands, rows, width].

        Raises:
            DataError: The rows cannot be written.
        """
        # Without layers there is one row block: results without pixels belong to a scene of one window.
        count, checksum = arrays[0].shape[1] if arrays else self.height, 0
        try:
            for layer, array in zip(self.layers, arrays, strict=True):
                values = np.ascontiguousarray(array, dtype=layer.dtype)
                with open(self._raw(layer), "r+b") as file:
                    for band, plane in enumerate(values):
                        file.seek(self._offset(layer, band, first))
                        file.write(plane.data)
                        checksum = zlib.crc32(plane.data, checksum)
                    file.flush()
                    flush_to_disk(file.fileno())
            with open(self.folder / self._list, "a") as listed:
                listed.write(f"{first} {first + count} {checksum:08x}\n")
                listed.flush()
                flush_to_disk(listed.fileno())
        except OSError as error:
            raise DataError(
                f"Rows {first} to {first + count - 1} cannot be written to {self.folder}: {error.strerror}. "
                "Run the same command again when it is possible: finished parts are kept."
            ) from error

    def read(self, layer: Layer, first: int, last: int) -> NDArray[Any]:
        """Return finished rows of a layer, [bands, rows, width]."""
        bands = len(layer.descriptions)
        if (first, last) == (0, self.height):  # all bands at once: layers of small scenes may have hundreds of bands
            values = np.fromfile(self._raw(layer), layer.dtype)
            if values.size == bands * self.height * self.width:
                return values.reshape(bands, self.height, self.width)
        return np.stack([self._read_band(layer, band, first, last) for band in range(bands)])

    def _read_band(self, layer: Layer, band: int, first: int, last: int) -> NDArray[Any]:
        values = np.fromfile(
            self._raw(layer), layer.dtype, (last - first) * self.width, offset=self._offset(layer, band, first)
        )
        if values.size != (last - first) * self.width:
            raise DataError(
                f"{self._raw(layer)} was shortened while the command ran. Run the same command again, alone."
            )
        return values.reshape(last - first, self.width)

    def _offset(self, layer: Layer, band: int, row: int) -> int:
        return (band * self.height + row) * self.width * np.dtype(layer.dtype).itemsize

    def _clear(self) -> None:
        """Delete the files of a run except its lock; other files are kept."""
        if not self.folder.is_dir():
            return
        raws = {RAW.format(layer.ending) for layer in self.layers}
        ours = _is_ours(self._read_record())
        # The record is deleted last, because it shows that the other files belong to a run.
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == RECORD):
            made = path.name == RECORD or path.name in raws or _LIST.fullmatch(path.name)
            # Raw files of layers of an earlier run, and lists with a wrong name.
            other = ours and _is_plain_file(path) and (path.suffix == ".raw" or path.match(FINISHED.format("*")))
            if made or other or _TEMPORARY.fullmatch(path.name):
                path.unlink()

    def remove(self) -> None:
        """Delete the folder, unless it holds other files."""
        with suppress(OSError, ConfigError):
            self._look()
            self._clear()
            (self.folder / LOCK).unlink(missing_ok=True)
            self.release()
            self.folder.rmdir()
        self.release()

    def discard(self) -> None:
        """Delete the folder of a run that was killed at its very end, unless another run is working on it."""
        if os.path.lexists(self.folder):
            with suppress(OSError, ConfigError):
                self._look()
                self._hold()
                self.remove()

    def release(self) -> None:
        """Let other runs use the folder."""
        self._held.close()


class FinishedRows(Protocol):
    """Rows of a scene that are all finished."""

    height: int
    width: int

    def read(self, layer: Layer, first: int, last: int) -> NDArray[Any]:
        """Return rows of a layer, [bands, rows, width]."""
        ...

    def remove(self) -> None:
        """Delete the rows."""
        ...


class Finished:
    """Finished rows of a small scene in memory.

    Args:
        layers: Files that will hold the rows.
        arrays: Values of each layer, [bands, height, width].
    """

    def __init__(self, layers: Sequence[Layer], arrays: Sequence[NDArray[Any]]) -> None:
        self._arrays = {layer.ending: array for layer, array in zip(layers, arrays, strict=True)}
        self.height, self.width = arrays[0].shape[1:]

    def read(self, layer: Layer, first: int, last: int) -> NDArray[Any]:
        """Return rows of a layer, [bands, rows, width]."""
        return self._arrays[layer.ending][:, first:last]

    def remove(self) -> None:
        """Delete the rows."""
        self._arrays.clear()


def _is_ours(record: Mapping[str, Any] | None) -> bool:
    """Return whether a record was written by `Partial`."""
    return record is not None and record.get("made_by") == OWNER


def _is_plain_file(path: Path) -> bool:
    """Return whether a path is a regular file, not a link, folder, pipe or device."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _lines(path: Path) -> list[str]:
    """Return the complete lines of a list. An incomplete line was being written when the run was killed."""
    text = path.read_bytes().decode("ascii", errors="replace") if _is_plain_file(path) else "damaged\n"
    return text.split("\n")[:-1]


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _compare(known: Mapping[str, Any], record: Mapping[str, Any], folder: Path) -> None:
    """Raise an error if an unfinished run had other settings.

    Raises:
        ConfigError: Settings differ; the message lists them.
    """
    differing = [
        f"{key}: {known.get(key)} there, {record.get(key)} now"
        for key in dict.fromkeys([*known, *record])
        if key not in NOT_DECISIVE and known.get(key) != record.get(key)
    ]
    if differing:
        raise ConfigError(
            f"{folder} holds an unfinished run with other settings ({'; '.join(differing)}). Finish it with "
            "its own settings, start again with --restart, or give another folder with --out."
        )
