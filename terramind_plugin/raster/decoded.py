"""Cache of decoded chips on disk: each raster of a data set in its own type, mapped into memory when it is read again.

A file holds a header in JSON, the values [bands, H, W] and the mask, if the raster has one. Files get their final names
only when they are complete, so that processes and runs may share a folder. When a process maps a file for the first
time, it checks the size and a checksum.
"""

from __future__ import annotations

import json
import logging
import os
import time
import zlib
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from terramind_plugin.errors import one_line
from terramind_plugin.raster.images import DecodedImage
from terramind_plugin.system.files import completing, hash_content

logger = logging.getLogger("terramind_plugin")

MAGIC = b"TMchip1\n"
"""First bytes of a file; the number is raised when the format changes."""
FIXED = 24
"""Number of bytes before the header: the first bytes, the header's length and its checksum."""
PAGE = 4096
"""Values begin at a multiple of this number of bytes."""
CHIP_FILE = ".chip"
MAPPED = 2048
"""Maximum number of files that a process keeps mapped; Linux allows 65530 mappings."""
UNUSED = 24 * 3600
"""Seconds after which an unused file may be deleted to make room."""
REFRESH = 3600
"""Minimum number of seconds between two updates of a file's time of last use."""
RECOUNT = 0.05
"""Share of the limit after which the folder is measured again, because other processes write to it as well."""


class _DamagedError(ValueError):
    """Error of a file that differs from what was written."""


class DecodedChips:
    """Cache of decoded rasters in a folder.

    Args:
        folder: The folder; it is created when it is needed.
        limit: Maximum size of all files in bytes. When it is reached, files that were not used for a day are deleted;
            if there are none, further rasters are not stored.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._mapped: OrderedDict[str, DecodedImage] = OrderedDict()
        self._full = False
        self._named_damage = False
        self._used = -1
        self._written = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # a copy maps files itself

    def get(self, path: str, settings: Any) -> tuple[DecodedImage | None, str]:
        """Return the decoded copy of a file (None if there is none) and the key under which to store it.

        Args:
            path: The file; its size and time of change are part of the key.
            settings: Plain values that decide what is read from the file.

        Raises:
            OSError: There is no such file.
        """
        stat = os.stat(path)
        key = hash_content([os.path.abspath(path), stat.st_size, stat.st_mtime_ns, settings])
        image = self._mapped.get(key)
        if image is not None:
            self._mapped.move_to_end(key)
            return image, key
        place = self._place(key)
        try:
            image = _map(place)
        except FileNotFoundError:
            return None, key
        except (OSError, _DamagedError) as error:
            self._drop(place, error)
            return None, key
        with suppress(OSError):  # a file of another user keeps its time of use
            if time.time() - place.stat().st_mtime > REFRESH:
                os.utime(place)
        self._keep(key, image)
        return image, key

    def decode(self, name: str, path: str, key: str) -> DecodedImage:
        """Return the content of a raster, and store it.

        Args:
            name: Name by which GDAL opens it.
            path: The file; its name is stored for people who look into the folder.
            key: Key from `get`.

        Raises:
            DataError: The raster holds complex numbers.
            RasterioError: The raster cannot be read.
        """
        with rasterio.open(name) as raster:
            image = DecodedImage.of(raster)
        self._store(key, os.path.abspath(path), image)
        return image

    def measure(self) -> int:
        """Return the size of all files in bytes."""
        return sum(size for _, size, _ in self._list())

    def _place(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}{CHIP_FILE}"

    def _keep(self, key: str, image: DecodedImage) -> None:
        self._mapped[key] = image
        if len(self._mapped) > MAPPED:
            self._mapped.popitem(last=False)

    def _drop(self, place: Path, error: Exception) -> None:
        """Remove a damaged file, with a warning for the first one."""
        if not self._named_damage:
            self._named_damage = True
            logger.warning(
                "%s is damaged (%s); its chip is decoded and stored again, and so are others, silently. If this "
                "happens again, the disk of the cache may be failing.",
                place,
                one_line(error),
            )
        with suppress(OSError):  # the folder may be read-only
            place.unlink()

    def _store(self, key: str, source: str, image: DecodedImage) -> None:
        if self._full:
            return
        parts = _encode(source, image)
        size = sum(len(part) for part in parts)
        try:
            if not self._make_room(size):
                self._full = True
                logger.warning(
                    "cache: %s is full: cache_gib is %.3g. Further chips are decoded again in each epoch. Set a larger "
                    "cache_gib to keep them.",
                    self.folder,
                    self.limit / 2**30,
                )
                return
            place = self._place(key)
            place.parent.mkdir(parents=True, exist_ok=True)
            with completing(place) as partial, open(partial, "wb") as file:
                for part in parts:
                    file.write(part)
        except OSError as error:
            self._full = True
            logger.warning(
                "cache: nothing more can be stored in %s: %s. The run continues. Free space or set another folder.",
                self.folder,
                error.strerror or one_line(error),
            )
            return
        self._used += size
        self._written += size

    def _make_room(self, size: int) -> bool:
        """Return whether the limit allows `size` more bytes, after deleting files unused for long if necessary."""
        if self._used < 0 or self._written > self.limit * RECOUNT:
            self._used, self._written = self.measure(), 0
        if self._used + size <= self.limit:
            return True
        now = time.time()
        for used, freed, path in sorted(self._list()):
            if now - used < UNUSED or self._used + size <= self.limit:
                break
            path.unlink(missing_ok=True)
            self._used -= freed
        return self._used + size <= self.limit

    def _list(self) -> list[tuple[float, int, Path]]:
        """Return the time of last use, the size and the path of each file."""
        found = []
        for path in self.folder.glob(f"??/*{CHIP_FILE}"):
            with suppress(FileNotFoundError):  # another process has deleted it
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        return found


def _encode(source: str, image: DecodedImage) -> list[bytes | memoryview]:
    """Return the parts of a file."""
    arrays = [np.ascontiguousarray(image.values)] + ([] if image.mask is None else [np.ascontiguousarray(image.mask)])
    content = b"".join(array.tobytes() for array in arrays)
    content += bytes(-len(content) % 8)
    header = json.dumps(
        {
            "source": source,
            "dtype": image.values.dtype.name,
            "shape": image.values.shape,
            "masked": image.mask is not None,
            "nodatavals": image.nodatavals,
            "dtypes": image.dtypes,
            "descriptions": image.descriptions,
            "whole": image.whole,
            "bytes": len(content),
            "sum": _sum(np.frombuffer(content, np.uint64)),
        }
    ).encode()
    begin = MAGIC + len(header).to_bytes(8, "little") + zlib.crc32(header).to_bytes(8, "little") + header
    return [begin + bytes(-len(begin) % PAGE), memoryview(content)]


def _sum(words: NDArray[np.uint64]) -> int:
    return int(np.add.reduce(words, dtype=np.uint64))


def _map(path: Path) -> DecodedImage:
    """Return the image of a file, mapped into memory.

    Raises:
        OSError: The file cannot be read.
        _DamagedError: The file is damaged.
    """
    with open(path, "rb") as file:
        begin = file.read(PAGE)
        length = int.from_bytes(begin[8:16], "little")
        if begin[:8] != MAGIC or not 0 < length < 2**24:
            raise _DamagedError("its first bytes are wrong")
        begin += file.read(max(0, FIXED + length - len(begin)))
    text = begin[FIXED : FIXED + length]
    if zlib.crc32(text) != int.from_bytes(begin[16:FIXED], "little"):
        raise _DamagedError("its header does not match its checksum")
    header = json.loads(text)
    start = -(-(FIXED + length) // PAGE) * PAGE
    expected = start + header["bytes"]
    if path.stat().st_size != expected:
        raise _DamagedError(f"it has {path.stat().st_size} bytes, expected {expected}")
    content = np.memmap(path, np.uint8, "r", start, (header["bytes"],)).view(np.ndarray)
    if _sum(content.view(np.uint64)) != header["sum"]:
        raise _DamagedError("its content does not match its checksum")
    shape, dtype = tuple(header["shape"]), np.dtype(header["dtype"])
    size = int(np.prod(shape)) * dtype.itemsize
    mask = content[size : size + int(np.prod(shape))].view(np.bool_).reshape(shape) if header["masked"] else None
    return DecodedImage(
        content[:size].view(dtype).reshape(shape),
        mask,
        tuple(header["nodatavals"]),
        tuple(header["dtypes"]),
        tuple(header["descriptions"]),
        header["whole"],
    )
