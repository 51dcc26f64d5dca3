"""Interleaved times on a device."""

from __future__ import annotations

import gc
import random
import statistics
import sys
import time
from collections.abc import Collection, Mapping

from bench.gpu.models import failures
from bench.gpu.setting import DEFAULT, GRAPHS, Measurement, Setting, Work, first_line

LEAST, MOST, QUICK = 3, 25, 2
"""Rounds of a case: at least, at most, and in a quick run."""
WARM_UP = 3
"""Calls before the first round: they compile, capture graphs, and choose algorithms."""
LONG = 0.5
"""Seconds of a call from which the second one ends the warm-up."""
ROUND = 0.03
"""Seconds of one side in a round, at least: shorter work is repeated, as steps follow each other in training."""
CASE = 4.0
"""Seconds of the rounds of a case, about."""


def compare(
    setting: Setting,
    case: str,
    works: Mapping[str, Work],
    reference: str | None,
    *,
    seconds: float = CASE,
    compiled: Collection[str] | None = None,
) -> dict[str, float]:
    """Measure several sides in turn, in random order within a round, and return their medians in seconds.

    A side that fails is recorded with its error, and the others go on.

    Args:
        setting: Where results go.
        case: Name of the comparison.
        works: What each side does, by its name.
        reference: Side that ratios are to; None for no ratios.
        seconds: Time for the rounds, about.
        compiled: Sides that are compiled, of which the result says where something runs without; None for those that
            are called so.
    """
    print(f"  {case}", file=sys.stderr, flush=True)
    if compiled is None:
        compiled = [name for name in works if name.endswith((GRAPHS, DEFAULT))]
    if setting.compile_only:
        for name in compiled:
            time_once(setting, works[name])
        return {}
    counts, begins = {}, {}
    for name, work in works.items():
        try:
            begins[name], counts[name] = _warm_up(setting, work)
        except Exception as error:  # recorded: one side that fails must not end the others
            setting.add(Measurement(case, name, None, "ms", remark=first_line(error)))
    times = _rounds(setting, {name: works[name] for name in counts}, counts, seconds)
    medians = {}
    for name, own in times.items():
        medians[name] = statistics.median(own)
        ratio, spread = None, None
        if reference in times:
            ratios = [theirs / ours for theirs, ours in zip(times[reference], own, strict=True)]
            ratio, spread = statistics.median(ratios), (min(ratios), max(ratios))
        remarks = [f"first call {begins[name]:.1f} s"] if begins[name] > 2 else []
        remarks += [failures()] if name in compiled else []
        remark = "; ".join(filter(None, remarks))
        setting.add(Measurement(case, name, 1e3 * medians[name], "ms", ratio, spread, len(own), remark))
    return medians


def _warm_up(setting: Setting, work: Work) -> tuple[float, int]:
    """Return the seconds of the first call, and how often the work is repeated in a round."""
    seconds = [time_once(setting, work)]
    while not setting.quick and len(seconds) < WARM_UP:
        seconds.append(time_once(setting, work))
        if seconds[-1] > LONG:
            break
    return seconds[0], 1 if setting.quick else max(1, round(ROUND / seconds[-1]))


def time_once(setting: Setting, work: Work, count: int = 1) -> float:
    """Return the seconds of one call, of which `count` follow each other."""
    setting.synchronise()
    began = time.perf_counter()
    for _ in range(count):
        setting.begin_step()
        work()
    setting.synchronise()
    return (time.perf_counter() - began) / count


def _rounds(
    setting: Setting, works: Mapping[str, Work], counts: Mapping[str, int], seconds: float
) -> dict[str, list[float]]:
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in works}
    ends = time.monotonic() + seconds
    gc.collect()
    gc.disable()
    try:
        for number in range(QUICK if setting.quick else MOST):
            if number >= LEAST and time.monotonic() > ends:
                break
            names = list(works)
            order.shuffle(names)
            for name in names:
                times[name].append(time_once(setting, works[name], counts[name]))
    finally:
        gc.enable()
    return times
