"""Stores of shards: folders, HTTP servers, and data sets on the Hugging Face hub."""

from __future__ import annotations

import hashlib
import logging
import os
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from terramind_plugin.errors import ConfigError, DataError, one_line
from terramind_plugin.system.files import completing

logger = logging.getLogger("terramind_plugin")

HUB_PREFIXES = ("hub:", "hf://datasets/")
"""Prefixes of a data set on the hub, followed by ORG/NAME or ORG/NAME@REVISION."""
OPEN_FILES = 64
"""Maximum number of local files kept open."""
TRIES = 4
"""Maximum number of attempts of a remote read."""
PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long."""
Answer = TypeVar("Answer")


class Entry(NamedTuple):
    """A file or folder of a store."""

    name: str
    size: int | None
    """Size in bytes; None if unknown."""
    identity: str
    """Text that changes when the content changes, as far as the store reports it."""


class _OpenFile:
    """File open for reading until the last reference is gone, because a closed file's descriptor may be reused."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):  # missing if opening failed
            os.close(self.number)


class LocalStore:
    """A folder on this machine. Several threads may read from it.

    Args:
        root: Path of the folder.
        revision: Commit of the data set, if it is known.
        create: Whether to create the folder.

    Raises:
        DataError: There is no such folder.
    """

    remote = False

    def __init__(self, root: str | Path, revision: str | None = None, *, create: bool = False) -> None:
        self.root = str(root)
        self.revision = revision
        self._open: OrderedDict[str, _OpenFile] = OrderedDict()
        if create:
            Path(root).mkdir(parents=True, exist_ok=True)
        if not os.path.isdir(self.root):
            raise DataError(f"There is no folder {self.root}. Give the folder that holds train/ and val/.")

    def list(self, folder: str) -> list[Entry]:
        """Return the content of a folder, sorted by name; an empty list if there is no such folder."""
        path = os.path.join(self.root, folder)
        if not os.path.isdir(path):
            return []
        with os.scandir(path) as entries:
            return sorted(Entry(entry.name, (stat := entry.stat()).st_size, str(stat.st_mtime_ns)) for entry in entries)

    def size(self, path: str) -> int:
        """Return the size of a file in bytes.

        Raises:
            OSError: There is no such file.
        """
        return os.stat(os.path.join(self.root, path)).st_size

    def read(self, path: str, start: int, length: int) -> bytes:
        """Return bytes of a file; fewer than `length` at its end.

        Args:
            path: Path below the root.
            start: Number of the first byte.
            length: Number of bytes.

        Raises:
            OSError: The file cannot be read.
        """
        file = self._open.pop(path, None) or _OpenFile(os.path.join(self.root, path))
        self._open[path] = file
        with suppress(KeyError):  # another thread has removed it
            while len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        parts = [os.pread(file.number, length, start)]
        while parts[-1] and sum(map(len, parts)) < length:  # Linux reads at most 2 GiB in one call
            done = sum(map(len, parts))
            parts.append(os.pread(file.number, length - done, start + done))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def shown(self, path: str) -> str:
        """Return the full name of a file for messages."""
        return os.path.join(self.root, path)

    def close(self) -> None:
        """Close open files; they are opened again when needed."""
        self._open.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


class RemoteStore:
    """A folder of an HTTP server, or a data set on the hub, through fsspec.

    Args:
        protocol: 'http' or 'hf'.
        root: Path in the form that the file system expects.
        revision: Commit of the data set, for the hub.
        cache_dir: Folder for copies of files, needed if a server sends whole files only.
    """

    remote = True

    def __init__(self, protocol: str, root: str, revision: str | None = None, cache_dir: Path | None = None) -> None:
        self.protocol = protocol
        self.root = root.rstrip("/")
        self.revision = revision
        self.copies = LocalStore(cache_dir, create=True) if cache_dir is not None else None
        self._sends_parts: bool | None = None

    @property
    def _files(self) -> Any:
        """Return the file system of this process; fsspec makes a new one after a fork."""
        if self.protocol == "hf":
            from huggingface_hub import HfFileSystem

            return HfFileSystem()
        try:
            import fsspec

            return fsspec.filesystem(self.protocol)
        except ImportError as error:
            raise ConfigError(
                f"Reading from a server needs {error.name or 'fsspec'}: pip install 'terramind-plugin[shards]'."
            ) from error

    def list(self, folder: str) -> list[Entry]:
        """Return the content of a folder, sorted by name; an empty list if it does not exist or cannot be listed.

        Raises:
            DataError: The server cannot be reached.
        """
        path = f"{self.root}/{folder}".rstrip("/")
        try:
            found = self._try(
                lambda: self._files.ls(path + ("/" if self.protocol == "http" else ""), detail=True), path
            )
        except FileNotFoundError:
            return []
        entries = {
            name: Entry(name, entry.get("size"), str(entry.get("blob_id") or entry.get("ETag") or ""))
            for entry in found
            if (name := str(entry["name"]).rstrip("/").rpartition("/")[2])
        }
        return [entries[name] for name in sorted(entries)]

    def size(self, path: str) -> int:
        """Return the size of a file in bytes.

        Raises:
            OSError: There is no such file.
            DataError: The server cannot be reached, or does not report the size.
        """
        size = self._try(lambda: self._files.info(f"{self.root}/{path}"), path).get("size")
        if size is None:
            raise DataError(f"{self.shown(path)}: the server does not report its size. Download it first.")
        return int(size)

    def read(self, path: str, start: int, length: int) -> bytes:
        """Return bytes of a file; fewer than `length` at its end.

        Args:
            path: Path below the root.
            start: Number of the first byte.
            length: Number of bytes.

        Raises:
            OSError: There is no such file.
            DataError: The server cannot be reached.
        """
        whole = f"{self.root}/{path}"
        if self._sends_parts is None:
            self._sends_parts = self.protocol == "hf" or self._try(lambda: sends_parts(whole), path)
            if not self._sends_parts:
                logger.warning("%s sends whole files only: each shard is copied to %s once.", self.root, self._folder)
        if self._sends_parts:
            return self._try(lambda: self._read(whole, start, length), path)
        name = f"{hashlib.sha256(whole.encode()).hexdigest()[:24]}-{self.size(path)}.tar"
        if not (self._folder / name).is_file():
            with completing(self._folder / name) as partial:
                self._try(lambda: self._files.get_file(whole, str(partial)), path)
        assert self.copies is not None
        return self.copies.read(name, start, length)

    @property
    def _folder(self) -> Path:
        if self.copies is None:
            raise DataError(f"{self.root} sends whole files only. Download the shards, or give cache_dir.")
        return Path(self.copies.root)

    def _read(self, path: str, start: int, length: int) -> bytes:
        if self.protocol == "http":
            content: bytes = self._files.cat_file(path, start=start, end=start + length)
            return content
        with self._files.open(path, "rb", cache_type="none") as file:  # readahead would fetch megabytes more
            file.seek(start)
            content = file.read(length)
            return content

    def _try(self, call: Callable[[], Answer], path: str) -> Answer:
        """Return the result of a call, which is repeated if the network fails."""
        for number in range(TRIES):
            try:
                return call()
            except (FileNotFoundError, ConfigError, DataError):
                raise
            except Exception as error:  # from several network libraries
                if number == TRIES - 1:
                    text = one_line(error) or type(error).__name__
                    raise DataError(
                        f"{self.shown(path)} cannot be read: {text}. Check address and network, or download it."
                    ) from error
                time.sleep(PAUSE * 2**number)
        raise AssertionError("unreachable")

    def shown(self, path: str) -> str:
        """Return the full name of a file for messages."""
        prefix = "hf://" if self.protocol == "hf" else ""
        whole = path if path.startswith(self.root) else f"{self.root}/{path}"
        return f"{prefix}{whole}"

    def close(self) -> None:
        """Do nothing, because connections belong to the file system."""


ShardStore = LocalStore | RemoteStore


def sends_parts(address: str) -> bool:
    """Return whether a server answers a request for a range of bytes with these bytes alone.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The server cannot be reached.
    """
    request = urllib.request.Request(address, headers={"Range": "bytes=0-0"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status) == 206
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise FileNotFoundError(address) from error
        if error.code == 416:  # an empty file has no first byte
            return True
        raise


def open_store(root: str | Path, revision: str | None = None, cache_dir: Path | None = None) -> ShardStore:
    """Return the store of a root.

    Args:
        root: A folder, the URL of a folder, 'hub:ORG/NAME', 'hub:ORG/NAME@REVISION', or the same after
            'hf://datasets/'.
        revision: Branch, tag or commit on the hub (default: the newest commit). The store's `revision` is the commit.
        cache_dir: Folder for copies of files, needed if a server sends whole files only.

    Raises:
        ConfigError: The root has another form, or a revision is given for a store without revisions.
        DataError: The data set does not exist.
    """
    text = str(root)
    prefix = next((prefix for prefix in HUB_PREFIXES if text.startswith(prefix)), None)
    if prefix is not None:
        name, _, tag = text.removeprefix(prefix).strip("/").partition("@")
        if name.count("/") != 1 or (tag and revision):
            raise ConfigError(f"{root} names no data set: write hub:ORG/NAME or hub:ORG/NAME@REVISION.")
        return _open_hub(name, tag or revision)
    if revision is not None:
        raise ConfigError(f"revision is for data sets on the hub, got {revision} with {root}. Leave it out.")
    if text.startswith(("http:/", "https:/")):
        scheme, _, rest = text.partition(":")
        return RemoteStore(
            "http", f"{scheme}://{rest.lstrip('/')}", cache_dir=cache_dir
        )  # a pathlib path has lost one slash
    if "://" in text:
        raise ConfigError(f"{root} cannot be opened. Give a folder, http(s)://..., or hub:ORG/NAME.")
    return LocalStore(Path(text).expanduser())


def _open_hub(name: str, revision: str | None) -> ShardStore:
    """Return the store of a data set on the hub at one commit; in offline mode its copy on this machine."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        try:
            folder = snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True)
        except Exception as error:  # several of the library
            raise DataError(
                f"The data set {name} is not on this machine, and HF_HUB_OFFLINE is set: hf download {name} "
                "--repo-type dataset, or give a folder."
            ) from error
        return LocalStore(folder, Path(folder).name)
    try:
        commit = HfApi().dataset_info(name, revision=revision).sha
    except Exception as error:  # several of the library and of the network
        at = f" at revision {revision}" if revision else ""
        raise DataError(
            f"The data set {name}{at} cannot be found on the hub: {one_line(error)[:200]}. Check name and network."
        ) from error
    return RemoteStore("hf", f"datasets/{name}@{commit}", commit)
