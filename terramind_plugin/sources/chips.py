"""Chips for training from satellite catalogues: plan, read, write, split lists and a configuration."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from terramind_plugin.errors import ConfigError, DataError, counted, one_line
from terramind_plugin.files import write_lines, write_text
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.complete import is_complete
from terramind_plugin.sources import engine
from terramind_plugin.sources.area import read_area, read_points
from terramind_plugin.sources.block import (
    DONE,
    BlockTask,
    ChipRecord,
    ChipSettings,
    chip_ids,
    chip_path,
    make_block,
    read_record,
)
from terramind_plugin.sources.grids import (
    LARGEST,
    MESH,
    SMALLEST,
    Place,
    make_majortom_grid,
    make_point_grid,
    make_utm_grid,
    outlines,
)
from terramind_plugin.sources.labels import (
    Burnable,
    burn,
    classes_of,
    find_near,
    make_label_grid,
    read_label,
    read_vectors,
    write_label,
)
from terramind_plugin.sources.plan import (
    NUMERICS,
    Plan,
    SourceRequest,
    hash_chip,
    make_plan,
    read_plan,
    write_plan,
    write_rows_as_parquet,
)
from terramind_plugin.sources.recipe import find_model, write_recipe
from terramind_plugin.sources.splits import SHARES, assign_splits, find_leaks, merge_groups
from terramind_plugin.sources.volume import Volume, estimate

PARAMETERS = "chips.json"
"""File that records what the chips in a folder were made with."""
DEFAULT_SIZE = 256
FEWEST = 3
"""Smallest number of groups of chips that three splits need."""
SHOWN = 5
"""Maximum number of failures that are listed with their reason."""


@dataclass(frozen=True)
class ChipRequest:
    """What chips are asked for."""

    source: SourceRequest
    out: Path
    aoi: Path | None = None
    labels: Path | None = None
    label_field: str | None = None
    points: Path | None = None
    grid: str | None = None
    size: int | None = None
    max_cloud: float = 0.1
    per_place: int = 1
    model: str = "terramind_sim_nano"

    def describe(self) -> dict[str, Any]:
        """Return what decides on the plan, as JSON holds it."""
        files = {"aoi": self.aoi, "labels": self.labels, "points": self.points}
        return {
            "version": NUMERICS,
            "modalities": list(self.source.modalities),
            "date": str(self.source.dates),
            "stac": dict(self.source.sources),
            "catalogue": dict(self.source.catalogues),
            "collection": dict(self.source.collections),
            "skip_scenes": sorted(self.source.skipped),
            **{name: None if path is None else _fingerprint(path) for name, path in files.items()},
            "label_field": self.label_field,
            "grid": self.grid,
            "size": self.size,
            "max_cloud": self.max_cloud,
            "per_place": self.per_place,
        }


def _fingerprint(path: Path) -> str:
    """Return a hash of a file, or of the names and sizes of the files in a folder."""
    if path.is_dir():
        text = "".join(f"{one.name}:{one.stat().st_size};" for one in sorted(path.iterdir()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError:
        return "missing"


@dataclass
class Labels:
    """Labels of the places of a plan."""

    vectors: Burnable | None = None
    near: list[list[int]] = field(default_factory=list)
    """Geometries near each place."""
    classes: list[frozenset[int]] = field(default_factory=list)
    """Classes of each place's label."""

    def values(self, place: Place, near: Sequence[int]) -> Any:
        """Return the label [height, width] of a place."""
        return burn(place, self.vectors, near) if self.vectors is not None else read_label(place)[0]


def check_request(request: ChipRequest) -> None:
    """Raise a ConfigError if options do not go together or a number is not possible."""
    find_model(request.model)
    if not 0 <= request.max_cloud <= 1:
        raise ConfigError(f"--max_cloud is a share from 0 to 1, got {request.max_cloud:g}.")
    if request.per_place < 1:
        raise ConfigError(f"--per_place must be at least 1, got {request.per_place}.")
    if request.size is not None and not SMALLEST <= request.size <= LARGEST:
        raise ConfigError(f"--size must be from {SMALLEST} to {LARGEST} pixels, got {request.size}.")
    folder = request.labels is not None and not _is_vector(request.labels)
    if request.grid == "labels" and not folder:
        raise ConfigError("--grid labels needs a folder of label rasters: --labels DIR.")
    if folder and request.grid not in (None, "labels"):
        raise ConfigError(f"A folder of label rasters has its own grid: leave out --grid {request.grid}.")
    if folder and request.points is not None:
        raise ConfigError("A folder of label rasters says where the chips lie: leave out --points.")
    if request.aoi is None and request.points is None and request.labels is None:
        raise ConfigError("Where? Give --aoi AREA.geojson, --points POINTS.geojson, or --labels.")
    if request.points is not None and request.grid == "majortom":
        raise ConfigError(
            "--points makes chips around points, --grid majortom has places of its own: give one of them."
        )


def _is_vector(path: Path) -> bool:
    return path.suffix.lower() in (".geojson", ".json")


def find_places(request: ChipRequest) -> tuple[list[Place], Labels | None, list[str]]:
    """Return the places of the chips, their labels, and notes on what was left out.

    Raises:
        ConfigError: A file is wrong, or there is no place.
    """
    from shapely import intersects, union_all

    area = None if request.aoi is None else read_area(request.aoi)
    vectors = None
    if request.labels is not None and _is_vector(request.labels):
        vectors = read_vectors(request.labels, request.label_field)
    notes: list[str] = []
    if request.labels is not None and vectors is None:
        places = make_label_grid(request.labels, request.size)
    elif request.points is not None:
        places = make_point_grid(read_points(request.points), request.size or DEFAULT_SIZE)
    else:
        ground = area
        if ground is None:
            assert vectors is not None
            ground = union_all(list(vectors.shapes))
        if request.grid == "majortom":
            places = make_majortom_grid(ground, request.size or MESH)
        else:
            places = make_utm_grid(ground, request.size or DEFAULT_SIZE)
    if area is not None and (request.points is not None or (request.labels is not None and vectors is None)):
        inside = intersects(area, outlines(places))
        outside = int((~inside).sum())
        if outside:
            notes.append(
                f"{counted(outside, 'chip', 'lies/lie')} outside of {request.aoi} and {_be(outside)} left out."
            )
        places = [place for place, here in zip(places, inside, strict=True) if here]
    if not places:
        raise ConfigError("No chip lies in the area.")
    labels = _label(places, vectors) if request.labels is not None else None
    if labels is None:
        return places, None, notes
    kept = [index for index, own in enumerate(labels.classes) if own]
    if len(kept) < len(places):
        empty = len(places) - len(kept)
        notes.append(f"{counted(empty, 'chip', 'has/have')} no labelled pixel and {_be(empty)} left out.")
    if not kept:
        raise ConfigError(f"No chip has a labelled pixel of {request.labels}.")
    labels.near = [labels.near[index] for index in kept] if labels.near else []
    labels.classes = [labels.classes[index] for index in kept]
    return [places[index] for index in kept], labels, notes


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def _label(places: Sequence[Place], vectors: Burnable | None) -> Labels:
    labels = Labels(vectors)
    if vectors is not None:
        labels.near = find_near(places, vectors)
        labels.classes = [
            classes_of(burn(place, vectors, near), None) for place, near in zip(places, labels.near, strict=True)
        ]
    else:
        labels.classes = [classes_of(*read_label(place)) for place in places]
    return labels


def plan_chips(request: ChipRequest, say: Callable[[str], None] = lambda text: None) -> Plan:
    """Return the plan of chips, and write it into the folder; a plan of the same request that is there is taken.

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
            say(f"taking the plan in {request.out}")
            return read_plan(request.out)
    elif request.out.exists() and (not request.out.is_dir() or any(request.out.iterdir())):
        raise ConfigError(
            f"{request.out} already holds something that terramind chips has not made. Choose another folder: --out."
        )
    places, labels, notes = find_places(request)
    splits, leaks = _split(request, places, labels)
    plan = make_plan(request.source, places, splits, say=say)
    dropped = {places[index].id for index in leaks}
    kept = [chip for chip in plan.chips if chip.place.id not in dropped]
    if len(kept) < len(plan.chips):
        gone = len(plan.chips) - len(kept)
        notes.append(f"{counted(gone, 'chip', 'shares/share')} ground with another split and {_be(gone)} left out.")
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


def _split(request: ChipRequest, places: Sequence[Place], labels: Labels | None) -> tuple[list[str], set[int]]:
    """Return the split of each place, and those that share ground with another split."""
    shapes = outlines(places)
    groups = [place.group for place in places]
    free = request.points is not None or any(place.label for place in places)
    if free:  # no place is left out, so those on the same ground go together
        groups = merge_groups(groups, shapes)
    if len(set(groups)) < 2 * FEWEST:
        groups = [place.id for place in places] if not free else merge_groups([one.id for one in places], shapes)
    found = assign_splits(groups, labels.classes if labels is not None else None)
    splits = [found[group] for group in groups]
    return splits, set() if free else find_leaks(splits, shapes)


def make_tasks(request: ChipRequest, plan: Plan) -> list[BlockTask]:
    """Return the blocks of a plan in the order in which they are read."""
    settings = ChipSettings(
        str(request.out.resolve()),
        request.source.modalities,
        request.source.dates.middle,
        request.max_cloud,
        request.per_place,
    )
    decisive = {"max_cloud": request.max_cloud, "per_place": request.per_place, "modalities": settings.modalities,
                "wanted": settings.wanted.isoformat()}  # fmt: skip
    return [
        BlockTask(
            name,
            tuple(chips),
            tuple(hash_chip(chip, plan.scenes, decisive) for chip in chips),
            {key: plan.scenes[key] for chip in chips for key in chip.scenes},
            settings,
        )
        for name, chips in plan.blocks().items()
    ]


def estimate_volume(request: ChipRequest, plan: Plan) -> Volume:
    """Return what the plan reads, about."""
    return estimate(make_tasks(request, plan))


def write_chips(
    request: ChipRequest,
    plan: Plan,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    on_block: Callable[[int, int], None] = lambda done, total: None,
) -> list[ChipRecord]:
    """Write the chips of a plan, split lists and a configuration, and return what became of each chip.

    Chips that are finished are not read again.

    Args:
        request: What is asked for.
        plan: Its plan.
        workers: Number of processes.
        scheduler: Address of a dask scheduler.
        on_block: Called after each block with the number of finished blocks and of all blocks.

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
    _complete(request, plan, found)
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


def _complete(request: ChipRequest, plan: Plan, records: Sequence[ChipRecord]) -> None:
    """Write labels, split lists, chips.parquet and, where there are labels, the configuration."""
    out = request.out
    places = {chip.place.id: chip.place for chip in plan.chips}
    written = [record for record in records if record.status == "written"]
    rows = [asdict(record) | {"scenes": json.dumps(record.scenes)} for record in records]
    write_rows_as_parquet(out / "chips.parquet", rows, {})
    class_names = _write_labels(request, places, written)
    for split in SHARES:
        write_lines(out / "splits" / f"{split}.txt", sorted(one.id for one in written if one.split == split))
    modalities = [name for name in request.source.modalities if MODALITIES[name].patch_key is not None]
    recipe = out / "config.yaml"
    if class_names and modalities and all(any(one.split == split for one in written) for split in SHARES):
        sizes = sorted({side for place in places.values() for side in (place.height, place.width)})
        write_recipe(recipe, out, modalities, class_names, sizes, request.model)
    else:
        recipe.unlink(missing_ok=True)


def _write_labels(request: ChipRequest, places: Mapping[str, Place], written: Sequence[ChipRecord]) -> list[str]:
    """Write the labels with consecutive class ids, and return the names of the classes; none without labels."""
    vectors = None
    out = request.out
    if request.labels is None and "LULC" not in request.source.modalities:
        return []
    if request.labels is not None and _is_vector(request.labels):
        vectors = read_vectors(request.labels, request.label_field)
    own = {name: places[name] for name in dict.fromkeys(record.place for record in written)}
    near = find_near(list(own.values()), vectors) if vectors is not None and own else [[]] * len(own)
    positions = dict(zip(own, near, strict=True))

    def values_of(record: ChipRecord) -> tuple[Any, float | None]:
        place = places[record.place]
        if vectors is not None:
            return burn(place, vectors, positions[record.place]), None
        if place.label:
            return read_label(place)
        return read_label(replace(place, label=str(chip_path(out, "LULC", record.id)), label_row=0, label_column=0))

    seen: dict[str, Counter[int]] = {split: Counter() for split in SHARES}
    for record in written:
        values, nodata = values_of(record)
        seen[record.split].update(classes_of(values, nodata))
    found = set().union(*seen.values())
    if request.labels is None:  # of land cover, classes that validation lacks are no label: their score would be empty
        found = (set(seen["train"]) & set(seen["val"])) - {0}
    ids = {value: number for number, value in enumerate(sorted(found))}
    for record in written:
        path = out / "label" / f"{record.id}.tif"
        if not (path.is_file() and is_complete(path) and _same_label(path, values_of(record)[0], ids)):
            write_label(path, places[record.place], values_of(record)[0], ids)
    return [_class_name(request, vectors, value) for value in ids]


def _same_label(path: Path, values: Any, ids: Mapping[int, int]) -> bool:
    import rasterio

    with rasterio.open(path) as file:
        there = file.read(1)
    wanted = np.full(values.shape, -1)
    for value, number in ids.items():
        wanted[values == value] = number
    return bool(np.array_equal(there, wanted))


def _class_name(request: ChipRequest, vectors: Burnable | None, value: int) -> str:
    if request.labels is None:
        return MODALITIES["LULC"].class_names[value]
    if vectors is not None and value < len(vectors.class_names):
        return vectors.class_names[value]
    if vectors is not None and value == vectors.background:
        return "background"
    return f"class {value}"


def summarise(request: ChipRequest, records: Iterable[ChipRecord]) -> list[str]:
    """Return what became of the chips, one sentence each."""
    all_of_them = list(records)
    by_status = Counter(record.status for record in all_of_them)
    written = [record for record in all_of_them if record.status == "written"]
    sizes = ", ".join(f"{sum(one.split == split for one in written)} {split}" for split in SHARES)
    lines = [f"{counted(by_status['written'], 'chip')} ({sizes}) in {request.out}"]
    for status, text in (("cloudy", "no date that is clear enough"), ("uncovered", "too little data of a modality")):
        if by_status[status]:
            example = next(record for record in all_of_them if record.status == status)
            lines.append(
                f"{counted(by_status[status], 'chip', 'has/have')} {text}, e.g. {example.id}: {example.reason}."
            )
    return lines


def report_failures(records: Iterable[ChipRecord]) -> None:
    """Raise a DataError that lists the scenes which could not be read, if there are any."""
    failed = [record for record in records if record.status == "failed"]
    if not failed:
        return
    scenes = Counter(record.failed_scene or record.place for record in failed)
    shown = []
    for scene, count in scenes.most_common(SHOWN):
        reason = next(one.reason for one in failed if scene in (one.failed_scene, one.place))
        shown.append(f"{scene} ({counted(count, 'chip')}): {reason}")
    more = len(scenes) - len(shown)
    raise DataError(
        f"{counted(len(failed), 'chip', 'is/are')} not written, since {counted(len(scenes), 'scene')} cannot be read: "
        + "; ".join(shown)
        + (f"; and {more} more" if more > 0 else "")
        + ". Run the same command again to go on, or leave scenes out with --skip_scenes ID and another --out."
    )
