"""The cache of decoded chips gives what the files say, whatever happens to it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from terramind_plugin.raster import decoded
from terramind_plugin.raster.decoded import DecodedChips
from terramind_plugin.raster.images import open_image
from tests.raster.odd import cases, write_case

LARGE = 2**40


def _write(path: Path, values: np.ndarray, **profile: Any) -> Path:
    count, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=values.dtype.name, **profile
    ) as file:
        file.write(values)
    return path


def _chip(path: Path, seed: int = 0, side: int = 16) -> Path:
    return _write(path, np.random.default_rng(seed).integers(1, 9999, (3, side, side)).astype(np.int16))


def _values(chips: DecodedChips, path: Path) -> np.ndarray:
    image, key = chips.get(str(path), None)
    return (image or chips.decode(str(path), str(path), key)).read().values


def _stored(chips: DecodedChips) -> list[Path]:
    return sorted(chips.folder.glob("??/*"))


def _direct(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def test_every_kind_of_gap_is_read_as_from_the_file(tmp_path: Path) -> None:
    chips = DecodedChips(tmp_path / "cache", LARGE)
    for number, case in enumerate(list(cases())[::3]):
        path = write_case(case, tmp_path / f"{number}.tif")
        _values(chips, path)
        again = DecodedChips(tmp_path / "cache", LARGE).get(str(path), None)[0]
        assert again is not None
        with open_image(str(path)) as image:
            assert (again.shape, again.descriptions) == (image.shape, image.descriptions)
            np.testing.assert_equal(again.nodata, image.nodata)
            window = (slice(1, image.shape[1]), slice(0, max(1, image.shape[2] - 1)))
            for part in (None, window):
                for declared in (True, False):
                    found, expected = again.read(part, declared=declared), image.read(part, declared=declared)
                    assert found.values.dtype == expected.values.dtype
                    np.testing.assert_array_equal(found.values, expected.values)
                    np.testing.assert_array_equal(found.missing, expected.missing)
                    assert found.undeclared == expected.undeclared


def test_a_changed_file_is_decoded_anew(tmp_path: Path) -> None:
    chips, path = DecodedChips(tmp_path / "cache", LARGE), _chip(tmp_path / "a.tif")
    old = _values(chips, path).copy()
    size, changed = path.stat().st_size, path.stat().st_mtime_ns
    _chip(path, seed=1)
    os.truncate(path, size)
    os.utime(path, ns=(changed + 1, changed + 1))
    assert not np.array_equal(old, _direct(path))
    np.testing.assert_array_equal(_values(chips, path), _direct(path))
    assert len(_stored(chips)) == 2
    assert chips.get(str(path), ["S1GRD"])[0] is None  # other settings of reading


@pytest.mark.parametrize("spoil", ["cut", "emptied", "value", "header", "start", "longer"])
def test_a_damaged_file_is_replaced_and_named_once(tmp_path: Path, caplog: Any, spoil: str) -> None:
    paths = [_chip(tmp_path / f"{name}.tif", seed) for seed, name in enumerate("ab")]
    chips = DecodedChips(tmp_path / "cache", LARGE)
    for path in paths:
        _values(chips, path)
    for file in _stored(chips):
        content = bytearray(file.read_bytes())
        if spoil == "cut":
            content = content[:-100]
        elif spoil == "emptied":
            content = bytearray()
        elif spoil == "longer":
            content += b"x"
        else:
            content[{"value": -7, "header": 40, "start": 3}[spoil]] ^= 4
        file.write_bytes(content)
    again = DecodedChips(tmp_path / "cache", LARGE)
    for path in paths:
        np.testing.assert_array_equal(_values(again, path), _direct(path))
    assert caplog.text.count("is damaged (") == 1
    caplog.clear()
    healed = DecodedChips(tmp_path / "cache", LARGE)
    assert all(healed.get(str(path), None)[0] is not None for path in paths)
    assert not caplog.text


def test_a_full_disk_stops_storing_with_one_line(tmp_path: Path, caplog: Any, monkeypatch: Any) -> None:
    chips = DecodedChips(tmp_path / "cache", LARGE)

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", None)

    for number in range(3):
        path = _chip(tmp_path / f"{number}.tif", number)
        if number == 1:
            monkeypatch.setattr(decoded, "completing", full)
        np.testing.assert_array_equal(_values(chips, path), _direct(path))
    assert len(_stored(chips)) == 1
    assert caplog.text.count("No space left on device") == 1
    assert f"nothing more can be stored in {chips.folder}: No space left on device. The run continues" in caplog.text


def test_the_limit_holds_and_what_nobody_uses_makes_room(tmp_path: Path, caplog: Any) -> None:
    paths = [_chip(tmp_path / f"{number}.tif", number) for number in range(5)]
    first = DecodedChips(tmp_path / "cache", LARGE)
    _values(first, paths[0])
    size = _stored(first)[0].stat().st_size
    chips = DecodedChips(tmp_path / "cache", 3 * size)
    for path in paths:
        np.testing.assert_array_equal(_values(chips, path), _direct(path))
    assert len(_stored(chips)) == 3
    assert caplog.text.count("is full: cache_gib is") == 1
    missing = next(path for path in paths if first.get(str(path), None)[0] is None)
    old = _stored(chips)[0]
    os.utime(old, (1, time.time() - 2 * decoded.UNUSED))
    later = DecodedChips(tmp_path / "cache", 3 * size)
    _values(later, missing)
    assert len(_stored(chips)) == 3
    assert DecodedChips(tmp_path / "cache", LARGE).get(str(missing), None)[0] is not None
    assert not old.exists()


def _fill(folder: Path, paths: list[Path], begin: Any) -> None:
    begin.wait()
    chips = DecodedChips(folder, LARGE)
    for _ in range(3):
        for path in paths:
            np.testing.assert_array_equal(_values(chips, path), _direct(path))


def test_processes_share_a_folder_and_a_killed_one_leaves_nothing_half_written(tmp_path: Path) -> None:
    paths = [_chip(tmp_path / f"{number}.tif", number, side=128) for number in range(12)]
    context = multiprocessing.get_context("fork")
    begin = context.Event()
    workers = [context.Process(target=_fill, args=(tmp_path / "cache", paths, begin)) for _ in range(3)]
    for worker in workers:
        worker.start()
    begin.set()
    time.sleep(0.02)
    os.kill(workers[0].pid, signal.SIGKILL)
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers[1:]] == [0, 0]
    chips = DecodedChips(tmp_path / "cache", LARGE)
    for path in paths:
        np.testing.assert_array_equal(_values(chips, path), _direct(path))
    complete = [file for file in _stored(chips) if file.suffix == decoded.CHIP_FILE]
    assert len(complete) == len(paths)
    for file in complete:
        decoded._map(file)


def test_copies_and_read_only_folders(tmp_path: Path) -> None:
    chips, path = DecodedChips(tmp_path / "cache", LARGE), _chip(tmp_path / "a.tif")
    _values(chips, path)
    other = pickle.loads(pickle.dumps(chips))
    image = other.get(str(path), None)[0]
    assert image is not None
    with pytest.raises(ValueError, match="read-only"):
        image.values[0, 0, 0] = 1
