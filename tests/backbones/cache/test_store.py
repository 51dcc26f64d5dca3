"""The store: what is put comes back, from several processes, and never anything else."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import resource
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terramind_plugin.backbones.cache.store import Store
from terramind_plugin.errors import ConfigError
from terramind_plugin.system import parallel

BIG = 10**9


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "a" / "cache.sqlite3", BIG)
    yield store
    store.close()


@settings(max_examples=40, deadline=None)
@given(values=st.dictionaries(st.binary(min_size=1, max_size=64), st.binary(max_size=5000), max_size=8))
def test_what_is_put_comes_back(tmp_path_factory, values):
    store = Store(tmp_path_factory.mktemp("store") / "cache.sqlite3", BIG)
    assert store.put(values) == values
    assert store.get([*values, b"unknown" * 9]) == [*values.values(), None]
    again = pickle.loads(pickle.dumps(store))
    store.close()
    assert again.get(list(values)) == list(values.values())
    assert again.size() == sum(map(len, values.values()))
    again.close()


def test_the_first_value_stays(store):
    assert store.put({b"a": b"1"}) == {b"a": b"1"}
    assert store.put({b"a": b"2", b"b": b"3"}) == {b"a": b"1", b"b": b"3"}
    assert copy.deepcopy(store).get([b"a"]) == [b"1"]


def test_what_was_not_used_for_longest_goes_first(tmp_path, monkeypatch):
    store = Store(tmp_path / "cache.sqlite3", 10_000)
    now = time.time()
    for number in range(30):
        monkeypatch.setattr(time, "time", lambda number=number: now + 4000 * number)
        store.put({bytes([number]): bytes(1000)})
        assert store.get([b"\0"]) == [bytes(1000)]  # used all the time
        assert store.size() <= 10_000 + 1000
    left = [number for number in range(30) if store.get([bytes([number])])[0] is not None]
    assert left[0] == 0
    assert left[1:] == list(range(left[1], 30))
    store.close()


def _fill(path, start, count):
    store = Store(path, BIG)
    for number in range(start, start + count):
        store.put({f"{number}".encode(): f"{number} by {start}".encode() * 50})
    store.close()


def test_two_processes_fill_one_file(tmp_path):
    path = tmp_path / "cache.sqlite3"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_fill, args=(path, start, 60)) for start in (0, 30)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    store = Store(path, BIG)
    values = store.get([f"{number}".encode() for number in range(90)])
    for number, value in enumerate(values):
        assert value in [f"{number} by {start}".encode() * 50 for start in (0, 30) if start <= number < start + 60]
    store.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_opens_the_file_itself(store):
    store.put({b"a": b"1"})
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, store.get([b"a"])[0] or b"nothing")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"1"
    assert store.get([b"a"]) == [b"1"]


FILLER = """
import sys
from pathlib import Path
from terramind_plugin.backbones.cache.store import Store

store = Store(Path(sys.argv[1]), 10**9)
for number in range(10**6):
    store.put({str(number).encode(): str(number).encode() * 2000})
    print(number, flush=True)
"""


def test_killed_while_it_fills(tmp_path):
    path = tmp_path / "cache.sqlite3"
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", FILLER, path], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            written = [int(process.stdout.readline()) for _ in range(20)]
            time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        store = Store(path, BIG)
        for number, value in enumerate(store.get([str(number).encode() for number in range(len(written) + 500)])):
            assert value is None or value == str(number).encode() * 2000
            assert value is not None or number not in written
        assert not store.full
        store.close()


@pytest.mark.parametrize("part", range(12))
def test_flipped_bytes(tmp_path, part):
    """Wherever in the file: what comes back is right or nothing, and the store goes on."""
    path = tmp_path / "cache.sqlite3"
    values = {os.urandom(32): os.urandom(3000) for _ in range(20)}
    store = Store(path, BIG)
    store.put(values)
    store.close()  # the log is merged into the file
    data = bytearray(path.read_bytes())
    for offset in range(part, len(data), 12 * 97):
        data[offset] ^= 0xFF
    path.write_bytes(data)
    store = Store(path, BIG)
    for value, expected in zip(store.get(list(values)), values.values(), strict=True):
        assert value in (None, expected)
    assert store.put(values) == values
    assert store.get(list(values)) == list(values.values())
    store.close()


def test_many_threads_read(tmp_path, monkeypatch):
    """Entries large enough that threads check them; one is damaged, one is asked for twice."""
    path = tmp_path / "cache.sqlite3"
    values = {os.urandom(32): os.urandom(300_000) for _ in range(6)}
    store = Store(path, BIG)
    store.put(values)
    keys = list(values)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE entries SET value = ? WHERE key = ?", (bytes(300_000), keys[2]))
    connection.close()
    monkeypatch.setattr(parallel, "HASH_THREADS", 3)
    expected = [None if key == keys[2] else values[key] for key in [*keys, keys[0]]]
    assert store.get([*keys, keys[0]]) == expected
    assert store.put(values) == values
    child = os.fork() if hasattr(os, "fork") else None
    if child == 0:  # threads do not survive a fork
        os._exit(int(store.get(keys) != list(values.values())))
    if child is not None:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.close()


def test_a_file_of_something_else_is_put_aside(tmp_path, caplog):
    path = tmp_path / "cache.sqlite3"
    path.write_text("my thesis\n" * 1000)
    store = Store(path, BIG)
    assert store.get([b"a"]) == [None]
    assert store.put({b"a": b"1"}) == {b"a": b"1"}
    assert (tmp_path / "cache.sqlite3.damaged").read_text().startswith("my thesis")
    assert "is damaged" in caplog.text
    store.close()


def test_a_cache_of_another_format_is_put_aside(tmp_path, caplog):
    path = tmp_path / "cache.sqlite3"
    store = Store(path, BIG)
    store.put({b"a": b"1"})
    store.close()
    _execute(path, "PRAGMA user_version = 99")
    assert store.get([b"a"]) == [None]
    assert store.put({b"a": b"2"}) == {b"a": b"2"}
    assert "its format is 99, not 2" in caplog.text
    assert (tmp_path / "cache.sqlite3.damaged").is_file()
    store.close()


@pytest.mark.parametrize(
    "statements",
    [
        "CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('mine')",
        "CREATE TABLE entries (title TEXT)",
        "CREATE TABLE notes (text TEXT); PRAGMA user_version = 2",
        "PRAGMA user_version = 99",
        "CREATE TABLE notes (text TEXT); PRAGMA application_id = 1196444487; PRAGMA journal_mode = WAL",
    ],
)
def test_an_sqlite_file_of_another_program_is_refused_untouched(tmp_path, statements):
    path = tmp_path / "cache.sqlite3"
    _execute(path, statements)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"cache\.sqlite3 is an SQLite file of another program"):
        Store(path, BIG).put({b"a": b"1"})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [0, 7])
def test_a_cache_without_the_mark_of_the_program_is_known_by_its_table(tmp_path, number):
    path = tmp_path / "cache.sqlite3"
    store = Store(path, BIG)
    store.put({b"a": b"1"})
    store.close()
    _execute(path, f"PRAGMA application_id = {number}")
    assert store.get([b"a"]) == [b"1"]
    store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA application_id").fetchone()[0] not in (0, 7)
    connection.close()


def _execute(path, statements):
    with sqlite3.connect(path) as connection:
        connection.executescript(statements)
    connection.close()


LIMITED = """
import resource, sys, signal
from pathlib import Path
from terramind_plugin.backbones.cache.store import Store

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
store = Store(Path(sys.argv[1]), 10**9)
for number in range(100):
    key, value = str(number).encode(), bytes([number]) * 5000
    assert store.put({key: value}) == {key: value}
found = store.get([str(number).encode() for number in range(100)])
assert all(value in (None, bytes([number]) * 5000) for number, value in enumerate(found))
print(store.full, sum(value is not None for value in found))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="this system limits no files")
def test_a_full_disk(tmp_path):
    """A limit of the file's size stands in for a disk that is full."""
    command = [sys.executable, "-c", LIMITED, tmp_path / "cache.sqlite3"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    full, known = result.stdout.split()
    assert full == "True"
    assert 0 < int(known) < 100
    assert result.stderr.count("continues without storing more") == 1


def test_a_folder_that_cannot_be_written(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    store = Store(blocked / "cache.sqlite3", BIG)
    assert store.get([b"a"]) == [None]
    assert store.put({b"a": b"1"}) == {b"a": b"1"}
    assert store.full


def test_no_size(tmp_path):
    with pytest.raises(ConfigError, match="size above 0"):
        Store(tmp_path / "cache.sqlite3", 0)
