"""Output of a finished run: labels, split lists, a table, a configuration, and a report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from terramind_plugin.errors import DataError, counted
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.complete import is_complete
from terramind_plugin.sources.block import chip_path
from terramind_plugin.sources.choice import ChipRecord
from terramind_plugin.sources.grids import (
    Place,
)
from terramind_plugin.sources.labels import (
    Burnable,
    burn,
    classes_of,
    find_near,
    read_class_names,
    read_label,
    read_vectors,
    write_label,
)
from terramind_plugin.sources.plan import (
    SourcePlan,
    write_rows_as_parquet,
)
from terramind_plugin.sources.recipe import write_recipe
from terramind_plugin.sources.request import ChipRequest, is_vector
from terramind_plugin.sources.splits import SHARES
from terramind_plugin.system.files import write_lines

SHOWN_SCENES = 5
"""Maximum number of failures that are listed with their reason."""


def complete_folder(request: ChipRequest, plan: SourcePlan, records: Sequence[ChipRecord]) -> None:
    """Write labels, split lists, chips.parquet and, if there are labels, the configuration."""
    out = request.out
    places = {chip.place.id: chip.place for chip in plan.chips}
    written = [record for record in records if record.status == "written"]
    rows = [asdict(record) | {"scenes": json.dumps(record.scenes)} for record in records]
    write_rows_as_parquet(out / "chips.parquet", rows)
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
    if request.labels is not None and is_vector(request.labels):
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
    if request.labels is None:  # leave out land cover classes that validation lacks: their scores would be empty
        found = (set(seen["train"]) & set(seen["val"])) - {0}
    ids = {value: number for number, value in enumerate(sorted(found))}
    for record in written:
        path = out / "label" / f"{record.id}.tif"
        if not (path.is_file() and is_complete(path) and _same_label(path, values_of(record)[0], ids)):
            write_label(path, places[record.place], values_of(record)[0], ids)
    file = next((place.label for place in places.values() if place.label), None)
    named = {} if file is None else read_class_names(file)
    return [_class_name(request, vectors, value, named) for value in ids]


def _same_label(path: Path, values: Any, ids: Mapping[int, int]) -> bool:
    import rasterio

    with rasterio.open(path) as file:
        there = file.read(1)
    wanted = np.full(values.shape, -1)
    for value, number in ids.items():
        wanted[values == value] = number
    return bool(np.array_equal(there, wanted))


def _class_name(request: ChipRequest, vectors: Burnable | None, value: int, named: Mapping[int, str]) -> str:
    """Return the name of a class; `named` are names in the tags of label rasters."""
    if request.labels is None:
        return MODALITIES["LULC"].class_names[value]
    if vectors is not None and value < len(vectors.class_names):
        return vectors.class_names[value]
    if vectors is not None and value == vectors.background:
        return "background"
    return named.get(value, f"class {value}")


def summarise_chips(request: ChipRequest, records: Iterable[ChipRecord]) -> list[str]:
    """Return sentences on the numbers of chips that were written and left out."""
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
    """Raise a DataError that lists the scenes that could not be read, if there are any."""
    failed = [record for record in records if record.status == "failed"]
    if not failed:
        return
    scenes = Counter(record.failed_scene or record.place for record in failed)
    shown = []
    for scene, count in scenes.most_common(SHOWN_SCENES):
        reason = next(one.reason for one in failed if scene in (one.failed_scene, one.place))
        shown.append(f"{scene} ({counted(count, 'chip')}): {reason}")
    more = len(scenes) - len(shown)
    raise DataError(
        f"{counted(len(failed), 'chip', 'is/are')} not written because {counted(len(scenes), 'scene')} cannot be read: "
        + "; ".join(shown)
        + (f"; and {more} more" if more > 0 else "")
        + ". Run the same command again to try again, or leave scenes out with --skip_scenes ID and another --out."
    )
