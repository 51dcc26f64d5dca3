"""Interleaved timing."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

ALLOCATOR_BLOCK = 31 * 2**20
"""Bytes; the C library's limit is 32 MiB."""

Clock = Callable[[], float]
"""Seconds, of any beginning."""

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Timing:
    """Seconds of each round, one implementation's."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """Return the median of the rounds."""
        return statistics.median(self.seconds)

    def ratio_to(self, reference: Timing) -> tuple[float, float, float]:
        """Return median, least and greatest of the reference's time divided by this one's, round by round."""
        ratios = [theirs / ours for theirs, ours in zip(reference.seconds, self.seconds, strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


def settle_allocator() -> None:
    """Bring the C library's allocator into the state it has in a long run.

    It returns large blocks to the system until it has once freed a large block, and pays for every page when it gets
    them again. What ran before a measurement would then decide its result.
    """
    torch.empty(ALLOCATOR_BLOCK, dtype=torch.uint8)


def time_rounds(
    works: Mapping[str, Callable[[], Any]], repeats: int, clock: Clock, *, warm_up: int = 2, seed: int = 0
) -> dict[str, Timing]:
    """Return the times of several functions, called in turn and in random order within a round.

    Args:
        works: Functions by name.
        repeats: Number of rounds.
        clock: What to read.
        warm_up: Rounds before, which do not count.
        seed: Of the order.
    """
    settle_allocator()
    order = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(-warm_up, repeats):
        names = list(works)
        order.shuffle(names)
        for name in names:
            gc.collect()
            gc.disable()
            start = clock()
            works[name]()
            elapsed = clock() - start
            gc.enable()
            if number >= 0:
                seconds[name].append(elapsed)
    return {name: Timing(times) for name, times in seconds.items()}
