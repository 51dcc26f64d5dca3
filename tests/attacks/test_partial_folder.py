"""A folder of an unfinished run in which something was changed: begun anew, refused, or computed again; never wrong."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.inference.resume import Partial
from terramind_plugin.raster.writer import Layer

LAYERS = (
    Layer("classes", "uint8", ("class",), "class id", 255),
    Layer("values", "float32", ("a", "b"), "dB", float("nan")),
)
SHAPE = (120, 40)
BANDS = ((0, 30), (30, 60), (60, 90), (90, 120))
RECORD = {"command": "map", "seed": 1, "date": "2026-01-01"}


def _rows(first: int, last: int) -> list[np.ndarray]:
    random = np.random.default_rng(first)
    return [
        random.integers(0, 2, (1, last - first, SHAPE[1]), np.uint8),
        random.normal(size=(2, last - first, SHAPE[1])).astype(np.float32),
    ]


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which three of four bands are finished."""
    folder = tmp_path_factory.mktemp("unfinished") / "x.partial"
    partial = Partial(folder, LAYERS, SHAPE)
    partial.start(RECORD)
    for first, last in BANDS[:3]:
        partial.write(first, _rows(first, last))
    partial.release()
    return folder


def _list(folder: Path) -> Path:
    return next(folder.glob("rows-*.txt"))


def _add(text: str | bytes) -> Callable[[Path], object]:
    content = text.encode() if isinstance(text, str) else text
    return lambda folder: _list(folder).write_bytes(_list(folder).read_bytes() + content)


def _record(content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "run.json").write_bytes(content.encode() if isinstance(content, str) else content)


def _become(name: str, kind: str) -> Callable[[Path], object]:
    """Return what puts something else in the place of a file."""

    def change(folder: Path) -> None:
        path = _list(folder) if name == "rows" else folder / name
        path.unlink()
        if kind == "folder":
            path.mkdir()
            (path / "mine.txt").write_text("mine")
        elif kind == "link":
            path.symlink_to(folder.parent / "mine.txt")
        elif kind == "broken link":
            path.symlink_to(folder.parent / "nowhere")
        else:
            os.mkfifo(path)

    return change


def _resize(name: str, change: int) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, max(0, (folder / name).stat().st_size + change))


def _flip(name: str, offset: int) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[offset] ^= 0xFF
        (folder / name).write_bytes(content)

    return change


def _written(value: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        record = json.loads((folder / "run.json").read_text())
        record["written"] = value
        (folder / "run.json").write_text(json.dumps(record))

    return change


def _swap(folder: Path) -> None:
    """Let the checksums of two bands change places."""
    lines = [line.split() for line in _list(folder).read_text().splitlines()]
    lines[0][2], lines[1][2] = lines[1][2], lines[0][2]
    _list(folder).write_text("".join(" ".join(line) + "\n" for line in lines))


CHANGES: dict[str, Callable[[Path], object]] = {
    "record: a list": _record("[1, 2]"),
    "record: a number": _record("7"),
    "record: null": _record("null"),
    "record: empty": _record(""),
    "record: cut off": _record('{"seed": 1, "da'),
    "record: not UTF-8": _record(b"\xff\xfe{}"),
    "record: zeros": _record(bytes(200)),
    "record: nested": _record("[" * 100_000),
    "record: other types": _record('{"command": ["map"], "seed": {"a": 1}, "made_by": 3}'),
    "record: the day of writing is a number": _written(5),
    "record: the day of writing is a list": _written([1]),
    "record: missing": lambda folder: (folder / "run.json").unlink(),
    **{f"{name}: {kind}": _become(name, kind)
       for name in ("run.json", "classes.raw", "values.raw", "lock", "rows")
       for kind in ("folder", "link", "broken link", "pipe")},
    "rows: words": _add("no numbers at all\n"),
    "rows: negative": _add("-30 0 00000000\n"),
    "rows: beyond the end": _add("90 150 00000000\n"),
    "rows: backwards": _add("120 90 00000000\n"),
    "rows: empty": _add("90 90 00000000\n"),
    "rows: overlapping": _add("45 75 00000000\n"),
    "rows: not there yet": _add("90 120 00000000\n"),
    "rows: no checksum": _add("90 120\n"),
    "rows: not UTF-8": _add(b"\xff\xfe\x00\n"),
    "rows: huge numbers": _add("9" * 5000 + " " + "9" * 5000 + " 00000000\n"),
    "rows: twice": lambda folder: _list(folder).write_text(2 * _list(folder).read_text()),
    "rows: zeros": lambda folder: _list(folder).write_bytes(bytes(100)),
    "rows: checksums exchanged": _swap,
    "rows: missing": lambda folder: _list(folder).unlink(),
    "raw: missing": lambda folder: (folder / "values.raw").unlink(),
    "raw: empty": _resize("classes.raw", -(10**9)),
    "raw: one byte short": _resize("values.raw", -1),
    "raw: one byte long": _resize("classes.raw", 1),
    **{f"raw: byte {offset} of {name} changed": _flip(name, offset)
       for name, offset in (("classes.raw", 0), ("classes.raw", 3599), ("values.raw", 5), ("values.raw", 20_000))},
}  # fmt: skip


SILENT = ("rows: missing", "rows: zeros")
"""Changes that a kill makes, too: what was being written is not listed, and is computed again."""


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_wrong_comes_of_it(change: str, unfinished: Path, tmp_path: Path, caplog: Any) -> None:
    folder, mine = tmp_path / "x.partial", tmp_path / "mine.txt"
    shutil.copytree(unfinished, folder)
    mine.write_text("mine")
    CHANGES[change](folder)
    partial = Partial(folder, LAYERS, SHAPE)
    try:
        partial.start({**RECORD, "date": "2026-02-02"})
    except ConfigError as error:
        assert str(folder) in str(error)  # noqa: PT017
        assert "--out" in str(error)  # noqa: PT017
    else:
        finished = partial.finished()
        assert len(caplog.records) == (change not in SILENT)
        for first, last in finished:
            assert (first, last) in BANDS
            for layer, expected in zip(LAYERS, _rows(first, last), strict=True):
                np.testing.assert_array_equal(partial.read(layer, first, last), expected)
        for first, last in set(BANDS) - set(finished):
            partial.write(first, _rows(first, last))
        assert set(partial.finished()) == set(BANDS)
        partial.remove()
        assert not folder.exists()
    assert mine.read_text() == "mine"
    if change.endswith(": folder"):
        assert (folder / change.removesuffix(": folder") / "mine.txt").exists() or list(folder.glob("rows-*/mine.txt"))


@pytest.mark.parametrize("record", [None, "{}", "[]", '{"name": "my own run"}'])
@pytest.mark.parametrize("anew", [False, True])
def test_a_folder_of_somebody_else_stays(record: str | None, anew: bool, tmp_path: Path) -> None:
    folder = tmp_path / "x.partial"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    if record is not None:
        (folder / "run.json").write_text(record)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    partial = Partial(folder, LAYERS, SHAPE)
    with pytest.raises(ConfigError, match=r"x\.partial"):
        partial.start(RECORD, anew=anew)
    partial.remove()
    partial.discard()
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


@pytest.mark.parametrize("kind", ["file", "link", "broken link"])
def test_a_folder_that_is_none(kind: str, tmp_path: Path) -> None:
    folder, target = tmp_path / "x.partial", tmp_path / "target"
    if kind == "file":
        folder.write_text("mine")
    else:
        if kind == "link":
            target.mkdir()
        folder.symlink_to(target)
    with pytest.raises(ConfigError, match=r"x\.partial is not a folder"):
        Partial(folder, LAYERS, SHAPE).start(RECORD)
    assert folder.is_symlink() or folder.read_text() == "mine"
    assert not target.exists() or not list(target.iterdir())


def test_more_than_the_disk_holds(tmp_path: Path) -> None:
    """The message says what is needed and what is free, and nothing stays."""
    before = shutil.disk_usage(tmp_path).free
    side = 4 * int(before**0.5)
    with pytest.raises(DataError, match=r"need \d+\.\d\d GiB while .* and \d+\.\d\d GiB are free\. Free some space"):
        Partial(tmp_path / "x.partial", LAYERS, (side, side)).start(RECORD)
    assert list(tmp_path.iterdir()) == []


def test_systems_that_reserve_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    monkeypatch.delattr(os, "fdatasync")
    partial = Partial(tmp_path / "x.partial", LAYERS, SHAPE)
    partial.start(RECORD)
    for first, last in BANDS:
        partial.write(first, _rows(first, last))
    partial.release()
    again = Partial(tmp_path / "x.partial", LAYERS, SHAPE)
    again.start(RECORD)
    assert again.finished() == list(BANDS)
    np.testing.assert_array_equal(again.read(LAYERS[1], 30, 60), _rows(30, 60)[1])
    again.remove()
