"""Caches: times of TiM and of frozen backbones when all samples have been seen before."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from bench.cases import Case
from bench.compare import Pair, Row, Side, Work, compare, in_precision
from bench.measure import say
from bench.models import BATCH, MODALITIES, SemanticSegmentationTask, build_task, make_round
from bench.timing import Clock
from terramind_plugin.backbones.cache.cache import Cache, LookUps
from terramind_plugin.data.cache_log import find_caches

ONE_MORE = {**MODALITIES, "DEM": 1}
"""Modalities with as many tokens as TiM with one generated modality."""
WORKS = {"forward": "evaluation", "training step": "training step"}
PRECISIONS = ("float32", "bf16")
MOST = 0.02
"""Aimed maximum share of a step for looking up entries."""


def chosen(precisions: Sequence[str]) -> list[str]:
    """Return the chosen ones of `PRECISIONS`."""
    return [name for name in PRECISIONS if name in precisions]


@contextmanager
def thinking_tasks(size: str) -> Iterator[dict[str, tuple[SemanticSegmentationTask, dict[str, int]]]]:
    """Give the tasks to compare by name, each with its modalities."""
    with tempfile.TemporaryDirectory() as folder:
        cache = {"backbone_tim_cache": folder}
        yield {
            "TerraTorch, TiM": (build_task("reference", f"{size}_tim"), MODALITIES),
            "ours, one more modality": (build_task("own necks", size, modalities=ONE_MORE), ONE_MORE),
            "ours, TiM": (build_task("own necks", f"{size}_tim"), MODALITIES),
            "ours, TiM, warm cache": (build_task("own necks", f"{size}_tim", more=cache), MODALITIES),
        }


def measure_thinking_cache(
    size: str, precisions: Sequence[str], rounds: int, clock: Clock
) -> tuple[list[Row], list[str]]:
    """Return times of TiM with a warm cache, and the share of looking up entries."""
    say(f"cache of generated tokens, {size}: build")
    torch.manual_seed(0)
    rows, shares = [], []
    with thinking_tasks(size) as tasks:
        for work, name in WORKS.items():
            sides = {}
            for precision in chosen(precisions):
                for who, (task, given) in tasks.items():
                    case = Case(size, work, precision)
                    sides[Side(who, precision)] = in_precision(make_round(task, case, given), precision, autocast=False)
            cache = fill(sides, tasks["ours, TiM, warm cache"][0])
            measured = compare(size, f"TiM {name}", sides, _thinking_pairs(precisions), rounds, clock)
            shares += describe_shares(cache, measured)
            rows += measured
    return rows, shares


def _thinking_pairs(precisions: Sequence[str]) -> list[Pair]:
    warm = "ours, TiM, warm cache"
    pairs = []
    for precision in chosen(precisions):
        pairs.append(Pair(Side("ours, one more modality", precision), Side(warm, precision), 1 / 1.05))
        pairs.append(Pair(Side("ours, TiM", precision), Side(warm, precision)))
        pairs.append(Pair(Side("TerraTorch, TiM", precision), Side(warm, precision)))
    return pairs


def measure_frozen_cache(
    size: str, precisions: Sequence[str], rounds: int, clock: Clock
) -> tuple[list[Row], list[str]]:
    """Return times of a training step with a frozen backbone and a warm cache of its features."""
    say(f"cache of features, {size}: build")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        cache = {"backbone_feature_cache": folder}
        tasks = {
            "TerraTorch, frozen": build_task("reference", size, freeze=True),
            "ours, frozen": build_task("own necks", size, freeze=True),
            "ours, frozen, warm cache": build_task("own necks", size, freeze=True, more=cache),
        }
        sides = {
            Side(who, precision): in_precision(
                make_round(task, Case(size, "training step", precision)), precision, autocast=False
            )
            for precision in chosen(precisions)
            for who, task in tasks.items()
        }
        pairs = []
        for precision in chosen(precisions):
            warm = Side("ours, frozen, warm cache", precision)
            pairs.append(Pair(Side("TerraTorch, frozen", precision), warm, 1 / 0.45))
            pairs.append(Pair(Side("ours, frozen", precision), warm))
        cache = fill(sides, tasks["ours, frozen, warm cache"])
        rows = compare(size, "frozen training step", sides, pairs, rounds, clock)
    return rows, describe_shares(cache, rows)


def fill(sides: Mapping[Side, Work], task: nn.Module) -> Cache:
    """Do all work once, so that the cache of a task is warm, and return that cache with its counts at zero."""
    for work in sides.values():
        work()
    (cache,) = find_caches(task)
    cache.training, cache.evaluation = LookUps(), LookUps()
    return cache


def describe_shares(cache: Cache, rows: Sequence[Row]) -> list[str]:
    """Return the share of a round that looking up entries takes, in each precision."""
    counts = cache.training if cache.training.looked_up else cache.evaluation
    each = counts.look_up_seconds / (counts.looked_up / BATCH)
    lines = []
    for precision, row in {row.ours.precision: row for row in rows}.items():
        share = each / row.our_seconds
        verdict = "met" if share < MOST else "**missed**"
        lines.append(
            f"{row.size} {row.work}, {precision}: {each * 1e3:.1f} ms of {row.our_seconds * 1e3:.0f} ms "
            f"({share:.1%}, {verdict})"
        )
    return lines
