"""Zarr groups (version 2 of the format) in zip files, read with zipfile and numcodecs.

Source: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import ConfigError, DataError, one_line

CONSOLIDATED = ".zmetadata"
"""Member with the metadata of all arrays of a group."""
MOST_BYTES = 2**31
"""Maximum size of an array in bytes: a header that asks for more is damaged."""


class ArrayHeader(NamedTuple):
    """Metadata of one array on disk."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    order: str
    """'C' or 'F': order of the numbers in a chunk."""
    separator: str
    """Text between the numbers in a chunk's name."""
    compressor: Mapping[str, Any] | None
    filters: tuple[Mapping[str, Any], ...]
    fill: Any
    """Value of chunks that are not stored; None for 0."""


class ZarrGroup:
    """Arrays of a zipped Zarr group.

    Args:
        content: Bytes of the zip file, or its path.
        name: Name of the file for messages.

    Raises:
        DataError: The file is not a zip file, or it holds no Zarr group of version 2.
        OSError: The file cannot be read.
    """

    def __init__(self, content: bytes | memoryview | Path, name: str) -> None:
        self.name = name
        try:
            self._zip = zipfile.ZipFile(content if isinstance(content, Path) else BytesIO(content))
            self._metadata = self._read_metadata()
        except DataError:
            raise
        except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, TypeError, EOFError, RuntimeError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: object) -> DataError:
        return DataError(f"{self.name} is not a readable Zarr group: {one_line(error)}. Download it again.")

    def _read_metadata(self) -> dict[str, Any]:
        """Return the JSON documents of the group by their path, e.g. 'bands/.zarray'."""
        members = self._zip.NameToInfo
        if CONSOLIDATED in members:
            found: Any = json.loads(self._zip.read(CONSOLIDATED))["metadata"]
            if not isinstance(found, dict):
                raise ValueError(f"{CONSOLIDATED} holds no metadata")
            return found
        if "zarr.json" in members:
            raise DataError(
                f"{self.name} has version 3 of the Zarr format, expected version 2. Write it with zarr_format=2."
            )
        if ".zgroup" not in members:
            raise KeyError("it has no .zgroup")
        ends = (".zarray", ".zattrs")
        return {name: json.loads(self._zip.read(name)) for name in members if name.rpartition("/")[2] in ends}

    def __contains__(self, array: str) -> bool:
        """Return whether the group has an array of that name."""
        return f"{array}/.zarray" in self._metadata

    @property
    def arrays(self) -> list[str]:
        """Return the names of the arrays."""
        return [name.removesuffix("/.zarray") for name in self._metadata if name.endswith("/.zarray")]

    def attributes(self, array: str = "") -> dict[str, Any]:
        """Return the attributes of an array, or of the group."""
        found: dict[str, Any] = self._metadata.get(f"{array}/.zattrs" if array else ".zattrs") or {}
        return found

    def header(self, array: str) -> ArrayHeader:
        """Return the header of an array.

        Raises:
            DataError: There is no such array, or its header is damaged.
        """
        if array not in self:
            raise DataError(f"{self.name} has no array '{array}'. It has: {', '.join(self.arrays) or 'none'}.")
        document = self._metadata[f"{array}/.zarray"]
        try:
            header = ArrayHeader(
                tuple(map(int, document["shape"])),
                tuple(map(int, document["chunks"])),
                np.dtype(document["dtype"]),
                document.get("order", "C"),
                document.get("dimension_separator", "."),
                document.get("compressor"),
                tuple(document.get("filters") or ()),
                document.get("fill_value"),
            )
            fits = len(header.shape) == len(header.chunks) and min((1, *header.shape, *header.chunks)) >= 0
            if not fits or not all(header.chunks) or header.dtype.hasobject:
                raise ValueError(f"shape {header.shape}, chunks {header.chunks}, type {header.dtype}")
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(f"header of '{array}': {one_line(error)}") from error
        if math.prod(header.shape) * header.dtype.itemsize > MOST_BYTES:
            raise self._damaged(f"'{array}' of shape {list(header.shape)} takes more than {MOST_BYTES} bytes")
        return header

    def read(self, array: str) -> NDArray[Any]:
        """Return the numbers of an array in their own type and shape; they may be read-only.

        Raises:
            DataError: There is no such array, or it cannot be decoded.
            ConfigError: numcodecs is not installed.
        """
        header = self.header(array)
        try:
            if header.chunks == header.shape:
                return self._chunk(array, header, (0,) * len(header.shape))
            made = np.empty(header.shape, header.dtype)
            for numbers in product(*(range(-(-n // c)) for n, c in zip(header.shape, header.chunks, strict=True))):
                starts = [number * side for number, side in zip(numbers, header.chunks, strict=True)]
                place = tuple(slice(a, a + side) for a, side in zip(starts, header.chunks, strict=True))
                inside = made[place].shape
                made[place] = self._chunk(array, header, numbers)[tuple(map(slice, inside))]
        except (zipfile.BadZipFile, zlib.error, RuntimeError, ValueError, EOFError, TypeError) as error:
            if isinstance(error, ConfigError | DataError):
                raise
            raise self._damaged(f"'{array}' cannot be decoded: {one_line(error)}") from error
        return made

    def _chunk(self, array: str, header: ArrayHeader, numbers: tuple[int, ...]) -> NDArray[Any]:
        """Return one whole chunk, even if it extends beyond the array."""
        member = f"{array}/{header.separator.join(map(str, numbers or (0,)))}"
        if member not in self._zip.NameToInfo:
            return np.full(header.chunks, 0 if header.fill is None else _number(header.fill), header.dtype)
        content: Any = self._zip.read(member)
        for settings in (header.compressor, *reversed(header.filters)):
            if settings is not None:
                content = _codec(json.dumps(settings, sort_keys=True)).decode(content)
        size = math.prod(header.chunks) * header.dtype.itemsize
        content = memoryview(content).cast("B")
        if content.nbytes != size:
            raise ValueError(f"chunk {member} holds {content.nbytes} bytes, its header says {size}")
        return np.frombuffer(content, header.dtype).reshape(header.chunks, order="F" if header.order == "F" else "C")


def _number(fill: Any) -> Any:
    """Return the fill value in a header; JSON stores values that are not finite as text."""
    return float(fill.replace("Infinity", "inf")) if isinstance(fill, str) and fill.strip("-") in _WORDS else fill


_WORDS = ("NaN", "Infinity")
_codecs: dict[str, Any] = {}


def _codec(settings: str) -> Any:
    """Return the numcodecs codec of a header's JSON."""
    if settings not in _codecs:
        try:
            import numcodecs
        except ImportError as error:
            raise ConfigError(
                "Reading zarr needs numcodecs, which is not installed: pip install 'terramind-plugin[shards]'."
            ) from error
        numcodecs.blosc.use_threads = False  # loaders use processes, and threads do not survive a fork
        _codecs[settings] = numcodecs.get_codec(json.loads(settings))
    return _codecs[settings]
