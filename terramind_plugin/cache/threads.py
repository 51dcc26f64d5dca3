"""Hashing the samples of a batch at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from terramind_plugin.parallel import usable

Item = TypeVar("Item")
Answer = TypeVar("Answer")

MUCH = 2**19
"""Bytes from which threads are worth it; hashing them takes about a third of a millisecond."""
THREADS = min(8, usable())
"""One for each processor that this process may use, up to a number that reads memory as fast as it goes."""


def map_in_threads(function: Callable[[Item], Answer], items: Sequence[Item], size: int) -> list[Answer]:
    """Return a function's answers, computed in threads where that is faster.

    Args:
        function: Should spend its time outside Python's lock, as hashing does.
        items: What to call it with.
        size: Bytes of all items.
    """
    if THREADS < 2 or len(items) < 2 or size < MUCH:
        return [function(item) for item in items]
    return list(_threads(os.getpid(), THREADS).map(function, items))


@cache
def _threads(process: int, count: int) -> ThreadPoolExecutor:
    """Return the threads of a process: they do not survive a fork."""
    return ThreadPoolExecutor(count, thread_name_prefix=f"memo-{process}")
