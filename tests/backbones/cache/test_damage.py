"""One changed byte anywhere in the file: nothing wrong comes back, and the run goes on."""

from __future__ import annotations

import os
import random
import sqlite3

import pytest

from terramind_plugin.backbones.cache.store import Store

PAGE = 4096
HEADER = 100
"""Bytes of SQLite's header, the numbers of the format and of the program among them."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Return values and the bytes of a file that holds them."""
    path = tmp_path_factory.mktemp("filled") / "cache.sqlite3"
    values = {os.urandom(32): os.urandom(size) for size in (10, 200, 700, 3000, 9000) * 3}
    store = Store(path, 10**9)
    store.put(values)
    store.close()
    return values, path.read_bytes()


def _offsets(size, draw):
    """Return places of a byte: anywhere, in the schema, and in the headers of pages, where it does most harm."""
    pages = range(0, size, PAGE)
    return [
        *range(HEADER),
        *(draw.randrange(size) for _ in range(40)),
        *(draw.randrange(PAGE - 400, PAGE) for _ in range(50)),
        *(draw.randrange(PAGE) for _ in range(30)),
        *(draw.choice(pages) + draw.randrange(120) for _ in range(80)),
    ]


@pytest.mark.parametrize("seed", range(2))
def test_one_changed_byte(tmp_path, filled, seed):
    values, clean = filled
    draw, going_on = random.Random(seed), 0
    offsets = _offsets(len(clean), draw)
    for number, offset in enumerate(offsets):
        path = tmp_path / str(number) / "cache.sqlite3"
        path.parent.mkdir()
        changed = bytearray(clean)
        changed[offset] ^= draw.choice((0xFF, 1, 0x80))
        path.write_bytes(changed)
        store = Store(path, 10**9)
        for value, expected in zip(store.get(list(values)), values.values(), strict=True):
            assert value in (None, expected), offset
        assert store.put(values) == values, offset
        store.get(list(values))
        store.put(values)
        going_on += store.get(list(values)) == list(values.values())
        store.close()
    assert going_on > 0.95 * len(offsets)


@pytest.mark.parametrize("column", ["value", "used", "checksum"])
@pytest.mark.parametrize("wrong", [None, "text", 1.5, b"bytes"])
def test_values_of_another_kind(tmp_path, filled, column, wrong):
    values, clean = filled
    path = tmp_path / "cache.sqlite3"
    path.write_bytes(clean)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = replace(sql, ' NOT NULL', '') WHERE type = 'table'")
    connection.close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE entries SET {column} = ?", (wrong,))
    connection.close()
    store = Store(path, 10**9)
    assert store.get(list(values)) == [None] * len(values)
    assert store.put(values) == values
    assert store.get(list(values)) == list(values.values())
    store.close()
