"""Files of scenes that stay open between blocks, with repeated attempts, signatures and GDAL's settings."""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import rasterio

from terramind_plugin.errors import DataError
from terramind_plugin.raster.complete import GDAL_ERRORS, reason_of
from terramind_plugin.raster.paths import is_remote
from terramind_plugin.sources.credentials import sign
from terramind_plugin.sources.scenes import Scene

Answer = TypeVar("Answer")

ATTEMPTS = 3
"""Number of attempts to read a file of a scene."""
PAUSE = 0.5
"""Seconds before the second attempt; each further pause is twice as long."""
KEPT_OPEN = 64
"""Maximum number of open files; they stay open because neighbouring blocks need the same headers and file blocks."""
LIFETIME = 20 * 60.0
"""Seconds after which an open file is opened again: signatures are valid for about 45 minutes."""


class SceneError(DataError):
    """Error of a scene that cannot be read; `scene` is its key and `reason` says why."""

    def __init__(self, scene: str, reason: str) -> None:
        super().__init__(f"{scene}: {reason}")
        self.scene = scene
        self.reason = reason

    def __reduce__(self) -> Any:
        return SceneError, (self.scene, self.reason)


class _Open(threading.local):
    """Open files of a thread, because GDAL's datasets belong to one thread."""

    def __init__(self) -> None:
        self.files: OrderedDict[str, tuple[Any, float]] = OrderedDict()
        self.attempts: dict[str, int] = {}


_open = _Open()


def with_dataset(scene: Scene, band: str, read: Callable[[Any], Answer]) -> Answer:
    """Return what a function reads from an open file of a scene.

    After an error the file is opened again, with a new signature, and read again.

    Args:
        scene: The scene.
        band: Name of the file among the scene's assets.
        read: Function of an open dataset of rasterio.

    Raises:
        SceneError: Every attempt has failed.
    """
    address = scene.assets[band]
    for attempt in range(ATTEMPTS):
        try:
            with _settings(scene, address):
                return read(_get(address))
        except (*GDAL_ERRORS, DataError) as error:
            close_dataset(address)
            _open.attempts[address] = _open.attempts.get(address, 0) + 1
            reason = f"{band} ({address.split('?')[0]}) cannot be read: {reason_of(error)}"
            if not is_remote(address):
                break  # a second attempt does not help with a local file
            if attempt + 1 < ATTEMPTS:
                time.sleep(PAUSE * 2**attempt)
    raise SceneError(scene.key, reason)


@contextmanager
def _settings(scene: Scene, address: str) -> Iterator[None]:
    options = json.loads(scene.gdal) if is_remote(address) else {}
    if not options:
        yield
        return
    with rasterio.Env(**options):
        yield


def _get(address: str) -> Any:
    kept = _open.files.get(address)
    if kept is not None and time.monotonic() - kept[1] < LIFETIME:
        _open.files.move_to_end(address)
        return kept[0]
    close_dataset(address)
    target = sign(address)
    failed = _open.attempts.get(address, 0)
    if failed and target.startswith(("http://", "https://")):
        # GDAL remembers addresses that failed. A fragment, which is not sent, makes a new address. rasterio would drop
        # the fragment of a plain URL.
        target = f"/vsicurl/{target}#{failed}"
    dataset = rasterio.open(target)
    _open.files[address] = dataset, time.monotonic()
    while len(_open.files) > KEPT_OPEN:
        _, (oldest, _) = _open.files.popitem(last=False)
        oldest.close()
    return dataset


def close_dataset(address: str) -> None:
    """Close a file of this thread, if it is open."""
    kept = _open.files.pop(address, None)
    if kept is not None:
        kept[0].close()


def close_datasets() -> None:
    """Close all files of this thread."""
    for address in list(_open.files):
        close_dataset(address)
    _open.attempts.clear()
