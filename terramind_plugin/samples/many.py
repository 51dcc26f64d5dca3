"""Reading many small files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

import rasterio

from terramind_plugin.parallel import usable

Job = TypeVar("Job")
Made = TypeVar("Made")
OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_NUM_THREADS": "1"}
TOGETHER = 64
"""Files that are read in one go: for small ones, setting GDAL up takes as long as reading."""
THREADS = 4
MANY = 1500
"""Files from which on it is worth a second to start processes. Opening a file holds Python's lock."""
MOST = 8
"""Processes at most: more would wait for the disk."""


def map_files(read: Callable[[Job], Made], jobs: Sequence[Job]) -> list[Made]:
    """Return what becomes of jobs that each read a file, in their order; threads or processes share them.

    Args:
        read: What to do with a job: a function of a module, as it may run in another process. It has GDAL set up.
        jobs: Any number.
    """
    count = max(1, min(TOGETHER, len(jobs) // THREADS))
    parts = [jobs[first : first + count] for first in range(0, len(jobs), count)]
    with _pool(len(jobs)) as pool:
        return [made for part in pool.map(partial(_read_some, read), parts) for made in part]


def _pool(jobs: int) -> Executor:
    cores = usable()
    if jobs < MANY or cores < 2:
        # Reading pixels does not hold it.
        return ThreadPoolExecutor(THREADS)
    # Not forked: this process may have threads of PyTorch, and a large heap to walk through.
    return ProcessPoolExecutor(min(cores, MOST), mp_context=get_context("spawn"))


def _read_some(read: Callable[[Job], Made], jobs: Sequence[Job]) -> list[Made]:
    with rasterio.Env(**OPTIONS):
        return [read(job) for job in jobs]
