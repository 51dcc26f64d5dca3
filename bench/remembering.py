"""Memos: what thinking and frozen backbones cost when everything has been seen before."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from bench.cases import Case
from bench.compare import Pair, Row, Side, Work, compare, in_precision
from bench.measure import say
from bench.models import BATCH, MODALITIES, SemanticSegmentationTask, build_task, make_round
from bench.timing import Clock
from terramind_plugin.memo.log import find_memos
from terramind_plugin.memo.memo import Memo, Statistics

ONE_MORE = {**MODALITIES, "DEM": 1}
"""As many tokens as the thought adds."""
WORKS = {"forward": "evaluation", "training step": "training step"}
PRECISIONS = ("float32", "bf16")


@contextmanager
def thinking_tasks(size: str) -> Iterator[dict[str, tuple[SemanticSegmentationTask, dict[str, int]]]]:
    """Give the tasks to compare by name, each with what it is given."""
    with tempfile.TemporaryDirectory() as folder:
        memo = {"backbone_tim_memo": folder}
        yield {
            "TerraTorch, TiM": (build_task("reference", f"{size}_tim"), MODALITIES),
            "ours, one more modality": (build_task("own necks", size, modalities=ONE_MORE), ONE_MORE),
            "ours, TiM": (build_task("own necks", f"{size}_tim"), MODALITIES),
            "ours, TiM, warm memo": (build_task("own necks", f"{size}_tim", more=memo), MODALITIES),
        }


def measure_thinking_memo(size: str, rounds: int, clock: Clock) -> tuple[list[Row], list[str]]:
    """Return times of TiM with a warm memo, and what looking up takes of it."""
    say(f"memo of thoughts, {size}: build")
    torch.manual_seed(0)
    rows, shares = [], []
    with thinking_tasks(size) as tasks:
        for work, name in WORKS.items():
            sides = {}
            for precision in PRECISIONS:
                for who, (task, given) in tasks.items():
                    case = Case(size, work, precision)
                    sides[Side(who, precision)] = in_precision(make_round(task, case, given), precision, autocast=False)
            memo = fill(sides, tasks["ours, TiM, warm memo"][0])
            rows += compare(size, f"TiM {name}", sides, _thinking_pairs(), rounds, clock)
            shares.append(describe_share(f"TiM {name}", memo, rows[-1].our_seconds))
    return rows, shares


def _thinking_pairs() -> list[Pair]:
    warm = "ours, TiM, warm memo"
    pairs = []
    for precision in PRECISIONS:
        pairs.append(Pair(Side("ours, one more modality", precision), Side(warm, precision), 1 / 1.05))
        pairs.append(Pair(Side("ours, TiM", precision), Side(warm, precision)))
        pairs.append(Pair(Side("TerraTorch, TiM", precision), Side(warm, precision)))
    return pairs


def measure_frozen_memo(size: str, rounds: int, clock: Clock) -> tuple[list[Row], list[str]]:
    """Return times of a training step with a frozen backbone and a warm memo of its features."""
    say(f"memo of features, {size}: build")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        memo = {"backbone_feature_memo": folder}
        tasks = {
            "TerraTorch, frozen": build_task("reference", size, freeze=True),
            "ours, frozen": build_task("own necks", size, freeze=True),
            "ours, frozen, warm memo": build_task("own necks", size, freeze=True, more=memo),
        }
        sides = {
            Side(who, precision): in_precision(
                make_round(task, Case(size, "training step", precision)), precision, autocast=False
            )
            for precision in PRECISIONS
            for who, task in tasks.items()
        }
        pairs = []
        for precision in PRECISIONS:
            warm = Side("ours, frozen, warm memo", precision)
            pairs.append(Pair(Side("TerraTorch, frozen", precision), warm, 1 / 0.45))
            pairs.append(Pair(Side("ours, frozen", precision), warm))
        memo = fill(sides, tasks["ours, frozen, warm memo"])
        rows = compare(size, "frozen training step", sides, pairs, rounds, clock)
    return rows, [describe_share("frozen training step", memo, rows[-1].our_seconds)]


def fill(sides: Mapping[Side, Work], task: nn.Module) -> Memo:
    """Do all work once, so that the memo of a task is warm, and return that memo with its counts at zero."""
    for work in sides.values():
        work()
    (memo,) = find_memos(task)
    memo.training, memo.evaluation = Statistics(), Statistics()
    return memo


def describe_share(work: str, memo: Memo, seconds: float) -> str:
    """Return what looking up takes of a round in bf16, the faster precision."""
    counts = memo.training if memo.training.looked_up else memo.evaluation
    each = counts.look_up_seconds / (counts.looked_up / BATCH)
    return f"{work}: {each * 1e3:.1f} ms of {seconds * 1e3:.0f} ms ({each / seconds:.1%})"
