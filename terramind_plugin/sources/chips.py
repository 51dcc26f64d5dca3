"""Making training chips from satellite catalogues: plan, chips, split lists and a configuration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from terramind_plugin.errors import ConfigError, counted, one_line
from terramind_plugin.sources import engine
from terramind_plugin.sources.block import DONE, make_block, read_record
from terramind_plugin.sources.choice import BlockTask, ChipRecord, ChipSettings, chip_ids
from terramind_plugin.sources.grids import (
    GROUP,
    Place,
    outlines,
)
from terramind_plugin.sources.outcome import complete_folder
from terramind_plugin.sources.plan import (
    SourcePlan,
    hash_chip,
    hash_scene,
    plan_scenes,
    read_plan,
    write_plan,
)
from terramind_plugin.sources.request import ChipRequest, PlaceLabels, be, check_request, find_places
from terramind_plugin.sources.splits import assign_splits, find_leaks, group_places, merge_groups
from terramind_plugin.sources.volume import Volume, estimate
from terramind_plugin.system.files import write_text

PARAMETERS = "chips.json"
"""File that records the settings of the chips in a folder."""
FEWEST = 6
"""Minimum number of groups of chips. If there are fewer, smaller groups are made, so that each split gets some."""


def plan_chips(request: ChipRequest, say: Callable[[str], None] = lambda text: None) -> SourcePlan:
    """Return the plan of chips and write it to the folder. An existing plan of the same request is used again.

    Raises:
        ConfigError: The request is not possible, or the folder holds something else.
        DataError: An API does not answer.
    """
    check_request(request)
    record = request.out / PARAMETERS
    wanted = request.describe()
    if record.is_file():
        _check_folder(request.out, wanted)
        if (request.out / "plan.parquet").is_file():
            say(f"using the plan in {request.out}")
            return read_plan(request.out)
    elif request.out.exists() and (not request.out.is_dir() or any(request.out.iterdir())):
        raise ConfigError(
            f"{request.out} already holds files that terramind chips has not made. Choose another folder with --out."
        )
    places, labels, notes = find_places(request)
    splits, leaks = _split(request, places, labels)
    plan = plan_scenes(request.source, places, splits, say=say)
    dropped = {places[index].id for index in leaks}
    kept = [chip for chip in plan.chips if chip.place.id not in dropped]
    if len(kept) < len(plan.chips):
        gone = len(plan.chips) - len(kept)
        notes.append(f"{counted(gone, 'chip', 'shares/share')} ground with another split and {be(gone)} left out.")
    used = {key for chip in kept for key in chip.scenes}
    plan = replace(plan, chips=kept, scenes={key: one for key, one in plan.scenes.items() if key in used})
    plan.notes = [*notes, *plan.notes]
    request.out.mkdir(parents=True, exist_ok=True)
    write_text(record, json.dumps(wanted, indent=1) + "\n")
    write_plan(request.out, plan)
    return plan


def _check_folder(out: Path, wanted: Mapping[str, Any]) -> None:
    try:
        found = json.loads((out / PARAMETERS).read_text(encoding="utf-8"))
    except ValueError:
        found = {}
    if found == wanted:
        return
    other = sorted(key for key in wanted if found.get(key) != wanted[key])
    shown = ", ".join(f"{key} {found.get(key)}" for key in other[:3])
    raise ConfigError(
        f"{out} holds chips of another request ({shown}). Choose another folder with --out, or delete this one."
    )


def _split(request: ChipRequest, places: Sequence[Place], labels: PlaceLabels | None) -> tuple[list[str], set[int]]:
    """Return the split of each place, and the places that share ground with another split."""
    shapes = outlines(places)
    groups = [place.group for place in places]
    free = request.points is not None or any(place.label for place in places)
    if free:  # no place is left out, because places on the same ground get the same split
        groups = merge_groups(groups, shapes)
    for side in range(GROUP - 1, 0, -1):
        if len(set(groups)) >= FEWEST:
            break
        groups = group_places(places, side)
        groups = merge_groups(groups, shapes) if free else groups
    found = assign_splits(groups, labels.classes if labels is not None else None)
    splits = [found[group] for group in groups]
    return splits, set() if free else find_leaks(splits, shapes)


def make_tasks(request: ChipRequest, plan: SourcePlan) -> list[BlockTask]:
    """Return the blocks of a plan in the order of reading."""
    settings = ChipSettings(
        str(request.out.resolve()),
        request.source.modalities,
        request.source.dates.middle,
        request.max_cloud,
        request.per_place,
    )
    decisive = {"max_cloud": request.max_cloud, "per_place": request.per_place, "modalities": settings.modalities,
                "wanted": settings.wanted.isoformat()}  # fmt: skip
    hashes = {key: hash_scene(scene) for key, scene in plan.scenes.items()}
    return [
        BlockTask(
            name,
            tuple(chips),
            tuple(hash_chip(chip, hashes, decisive) for chip in chips),
            {key: plan.scenes[key] for chip in chips for key in chip.scenes},
            settings,
        )
        for name, chips in plan.blocks().items()
    ]


def estimate_volume(request: ChipRequest, plan: SourcePlan) -> Volume:
    """Return an estimate of what the plan reads."""
    return estimate(make_tasks(request, plan))


def write_chips(
    request: ChipRequest,
    plan: SourcePlan,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> list[ChipRecord]:
    """Write the chips of a plan, split lists and a configuration, and return the records of the chips.

    Finished chips are not read again.

    Args:
        request: The request.
        plan: The plan of the request.
        workers: Number of processes.
        scheduler: Address of a dask scheduler.
        on_block: Called after each block with the numbers of finished blocks and of all blocks.

    Raises:
        ConfigError: The scheduler does not answer.
        DataError: A file cannot be written.
    """
    out = request.out
    for folder in (*request.source.modalities, DONE):
        (out / folder).mkdir(parents=True, exist_ok=True)
    tasks = make_tasks(request, plan)
    records: dict[str, ChipRecord] = {}
    waiting: list[BlockTask] = []
    for task in tasks:
        known = list(_known(out, task))
        if all(record is not None for record in known):
            records |= {record.id: record for record in known if record is not None}
        else:
            waiting.append(task)
    finished = len(tasks) - len(waiting)
    on_block(finished, len(tasks))
    for task, answer in engine.run(waiting, make_block, workers=workers, scheduler=scheduler):
        finished += 1
        on_block(finished, len(tasks))
        records |= {one.id: one for one in (_failed(task, answer) if isinstance(answer, Exception) else answer)}
    found = [records[name] for chip in plan.chips for name in chip_ids(chip.place.id, request.per_place)]
    complete_folder(request, plan, found)
    return found


def _known(out: Path, task: BlockTask) -> Iterator[ChipRecord | None]:
    for chip, own in zip(task.chips, task.hashes, strict=True):
        for name in chip_ids(chip.place.id, task.settings.per_place):
            yield read_record(out, name, own)


def _failed(task: BlockTask, error: Exception) -> list[ChipRecord]:
    return [
        ChipRecord(name, chip.place.id, chip.split, "failed", reason=one_line(error))
        for chip in task.chips
        for name in chip_ids(chip.place.id, task.settings.per_place)
    ]
