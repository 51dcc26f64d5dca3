"""Work that threads or processes share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import TypeVar

from terramind_plugin.system.process import serve

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def usable() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


HASH_SIZE = 2**19
"""Size in bytes from which threads hash faster than one; hashing these bytes takes about a third of a millisecond."""
HASH_THREADS = min(8, usable())
"""Threads that hash: one for each usable processor, at most as many as saturate the memory."""
READ_THREADS = 4
"""Threads that read files."""
READ_PROCESSES = 8
"""Maximum number of processes that read files: more would wait for the disk."""
MANY_FILES = 1500
"""Number of files from which starting processes, about a second, pays off: opening a file holds Python's lock."""
CHUNK = 64
"""Maximum number of files that a worker reads in one go."""


def map_in_threads(function: Callable[[Item], Answer], items: Sequence[Item], size: int) -> list[Answer]:
    """Return the answers of a function that hashes, computed in threads where that is faster.

    Args:
        function: Spends its time outside Python's lock, as hashing does.
        items: Arguments of the calls.
        size: Bytes of all items.
    """
    if HASH_THREADS < 2 or len(items) < 2 or size < HASH_SIZE:
        return [function(item) for item in items]
    return list(_threads(os.getpid(), HASH_THREADS).map(function, items))


@cache
def _threads(process: int, count: int) -> ThreadPoolExecutor:
    """Return the threads of a process, which do not survive a fork.

    They stay alive: a thread that has used GDAL releases PROJ's database while it ends, after Python has joined it.
    A process that is forked at that moment, such as a worker of a data loader, waits forever for the database's lock.
    """
    return ThreadPoolExecutor(count, thread_name_prefix=f"terramind-{process}")


def map_chunks(
    function: Callable[[Sequence[Item]], list[Answer]], items: Sequence[Item], *, threads: bool = True
) -> list[Answer]:
    """Return the answers of a function that reads files, in their order; threads or processes share the work.

    Args:
        function: Function of a module that takes some of the items and returns an answer for each.
        items: One for each file.
        threads: Whether several threads of one process may read such files.
    """
    length = max(1, min(CHUNK, len(items) // READ_THREADS))
    chunks = [items[first : first + length] for first in range(0, len(items), length)]
    cores = usable()
    if not threads and (len(items) < MANY_FILES or cores < 2):
        answers = [function(chunk) for chunk in chunks]
    elif len(items) < MANY_FILES or cores < 2:
        answers = list(_threads(os.getpid(), READ_THREADS).map(function, chunks))
    else:
        with make_processes(min(cores, READ_PROCESSES)) as pool:
            answers = list(pool.map(function, chunks))
    return [answer for part in answers for answer in part]


def make_processes(count: int) -> ProcessPoolExecutor:
    """Return processes that end with this one and leave Ctrl-C to it.

    They are spawned: forked children of a process with threads may hang.
    """
    return ProcessPoolExecutor(count, get_context("spawn"), initializer=serve, initargs=(os.getpid(),))
