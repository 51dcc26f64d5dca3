"""Memory of this process: its peak, or that of its GPU, and what it can do without."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def restart_peak() -> int:
    """Let the peak begin here, and return the bytes that this process holds already."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return 0
    if RESET.exists():
        RESET.write_text("5")
    return read_status("VmRSS")


def peak_since(before: int) -> int:
    """Return the bytes at the peak above what `restart_peak` returned; on a GPU, those that were allocated."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else read_status("VmHWM") - before


def read_status(field: str) -> int:
    """Return a field of this process's status in bytes; 0 on systems without it.

    Args:
        field: 'VmRSS' for the resident set, 'VmHWM' for its peak.
    """
    if not STATUS.exists():
        return 0
    return next(int(x.split()[1]) * 1024 for x in STATUS.read_text().splitlines() if x.startswith(f"{field}:"))


def give_back() -> None:
    """Give the system what was freed; glibc keeps the pieces between blocks in use, and they add up. Costs some ms."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def available() -> int:
    """Return the bytes of memory that are free for this process, its control group's limit included; 0 if unknown."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return 0
    free = next(int(x.split()[1]) * 1024 for x in info.read_text().splitlines() if x.startswith("MemAvailable:"))
    group = Path("/sys/fs/cgroup")
    limit, statistics = group / "memory.max", group / "memory.stat"
    if limit.exists() and statistics.exists() and limit.read_text().strip().isdigit():
        held = dict(line.split() for line in statistics.read_text().splitlines())
        free = min(free, max(0, int(limit.read_text()) - sum(int(held.get(key, 0)) for key in ("anon", "shmem"))))
    return free
