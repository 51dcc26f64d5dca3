"""Survey of a folder: which files are images and labels of which sample, their content, and the splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from terramind_plugin.configure.folders import (
    SHARED_FOLDER,
    Group,
    choose_images,
    choose_labels,
    choose_named,
    group_rasters,
    split_by_ids,
)
from terramind_plugin.configure.images import ImageSet, check_same_size, describe_bands, fits_modality, settle_values
from terramind_plugin.configure.labels import (
    OF_PIXELS,
    LabelSet,
    describe_class_folders,
    describe_masks,
    describe_table,
    find_table,
    read_label_table,
)
from terramind_plugin.configure.names import split_names
from terramind_plugin.configure.splits import SPLIT_NAMES, draw_splits, find_lists, match_ids, read_lists
from terramind_plugin.errors import ConfigError, DataError, counted
from terramind_plugin.model.modalities import is_position, resolve
from terramind_plugin.samples.checks.findings import some
from terramind_plugin.samples.checks.headers import Header, read_header, read_headers
from terramind_plugin.samples.checks.labels import Mask, read_labels
from terramind_plugin.samples.checks.sample import read_sample
from terramind_plugin.samples.dates import date_key, modality_of
from terramind_plugin.samples.layout import LABEL, SplitFile
from terramind_plugin.samples.plan import DataPlan, Split

SAMPLES = 64
"""Number of samples whose pixels are read, as in `terramind check`."""
HELD = 6
"""Every sixth training sample is used for validation if there is no list of validation samples."""
Key = tuple[str, str]
"""Split of the folder, or `SHARED_FOLDER`, and sample id."""


@dataclass(frozen=True)
class Request:
    """Options of the user."""

    data: Path
    task: str
    modalities: Sequence[str]
    """Names of modalities; NAME=FOLDER and NAME=FOLDER/*SUFFIX also say where the files are."""
    labels: Path | None = None
    splits: Path | None = None
    bands: Mapping[str, Sequence[str]] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    columns: Sequence[str] = ()


@dataclass
class Survey:
    """Content of a folder, in the terms of a configuration."""

    images: list[ImageSet]
    groups: dict[str, list[Group]]
    """Files of each modality, one group for each date with files of its own."""
    labels: LabelSet
    label_group: Group | None
    """Label rasters; None if labels are a table."""
    positions: str | None
    """Name of the input for the position of a chip; None without one."""
    splits: dict[str, list[Key]]
    """Samples of training, validation and test; test may be empty."""
    lists: dict[str, Path]
    """Lists of the user that can be used unchanged; empty if new ones are needed."""
    missing: bool
    """True if some samples lack a modality."""
    notes: list[str] = field(default_factory=list)


def look(request: Request) -> Survey:
    """Survey a folder.

    Raises:
        ConfigError: An option is wrong.
        DataError: The files do not suffice for a configuration; the message says what to do.
    """
    entries = _read_entries(request.modalities)
    positions = next((name for name in entries if is_position(name)), None)
    names = [name for name in entries if name != positions]
    if not names:
        raise ConfigError("--modalities needs an image modality beside coords, e.g. S2L2A,coords.")
    for name in request.bands:
        if name not in names:
            raise ConfigError(f"--bands names {name}, but --modalities has {', '.join(names)}.")
    lists = find_lists(request.data, request.splits)
    listed = read_lists(lists)
    path = _table_path(request)
    table = None if path is None else read_label_table(path)
    known = {one for ids in listed.values() for one in ids} | (set() if table is None else set(table.index))
    nested = request.task not in OF_PIXELS and (table is None or any("/" in one for one in known))
    groups = group_rasters(request.data, known, nested=nested)
    label_group = _find_labels(request, groups, known) if request.task in OF_PIXELS else None
    if label_group is not None:
        groups = split_by_ids(groups, label_group.ids)
    chosen = _choose_groups(request.data, entries, names, [group for group in groups if group is not label_group])
    if label_group is not None:
        chosen = {name: _by_date(own, label_group) for name, own in chosen.items()}
    samples = _pair(chosen, label_group, None if table is None else set(table.index))
    images, headers, masks = _read_images(request, chosen, label_group, samples)
    labels = _read_labels(request, path, table, label_group, masks, samples)
    survey = Survey(images, chosen, labels, label_group, positions, {}, {}, False)
    if path is not None and table is not None:
        samples = {key: files for key, files in samples.items() if key[1] in labels.rows}
    _settle_splits(survey, samples, listed, lists, headers, masks)
    every = {key for keys in survey.splits.values() for key in keys}
    survey.missing = any(name not in map(modality_of, samples[key]) for key in every for name in chosen)
    if survey.missing:
        counts = Counter(name for key in every for name in samples[key] if name in chosen)
        shown = ", ".join(f"{counts[name]} have {name}" for name in chosen)
        survey.notes.append(f"of {counted(len(every), 'sample')} {shown}: missing modalities are allowed")
    return survey


def _read_entries(entries: Sequence[str]) -> dict[str, str]:
    """Return the user's text for the files of each modality; '' if there is none.

    Raises:
        ConfigError: A modality is unknown or named twice.
    """
    found: dict[str, str] = {}
    for entry in entries:
        given, _, place = entry.partition("=")
        name = resolve(given).name if not is_position(given) else given
        if name in found:
            raise ConfigError(f"--modalities names {name} twice.")
        found[name] = place
    return found


def _table_path(request: Request) -> Path | None:
    """Return the table of labels for a task of whole images, or None if there is none."""
    if request.task in OF_PIXELS:
        return None
    if request.labels is not None:
        if not request.labels.is_file():
            raise ConfigError(f"--labels {request.labels}: no such file. {request.task} takes a CSV or Parquet table.")
        return request.labels
    found = find_table(request.data)
    if found is None and request.task != "classification":
        raise DataError(
            f"{request.data} has no table of labels for {request.task}: expected a CSV with ids in the first column "
            "and the labels beside them. Name it: --labels FILE."
        )
    return found


def _find_labels(request: Request, groups: list[Group], known: set[str]) -> Group:
    if request.labels is None:
        return choose_labels(groups, request.data)
    folder = Path(str(request.labels).partition("*")[0])
    data = request.data.resolve()
    inside = [base for base in (folder, request.data / folder) if base.exists() and base.resolve().is_relative_to(data)]
    if inside or not folder.is_dir():
        return choose_named(groups, request.data, str(request.labels), "--labels")[0]
    found = group_rasters(folder, known | {one for group in groups for one in group.ids})
    return choose_named(found, folder, str(request.labels), "--labels")[0]


def _choose_groups(
    data: Path, entries: Mapping[str, str], names: Sequence[str], groups: Sequence[Group]
) -> dict[str, list[Group]]:
    """Return the files of each modality, chosen by the user's text, else by names, else by bands."""
    free = list(groups)
    chosen: dict[str, list[Group]] = {}
    for name in names:
        if entries[name]:
            chosen[name] = choose_named(free, data, entries[name], f"--modalities {name}={entries[name]}")
            free = [group for group in free if group not in chosen[name]]
    for name in names:
        if name in chosen:
            continue
        images = [group for group in free if not group.labels]
        modality = resolve(name)
        fits = {}
        for place, group in enumerate(images):
            if not group.claims:
                header = read_header(next(iter(group.files.values())), name)
                fits[place] = not header.problem and fits_modality(modality, header)
        chosen[name] = choose_images(images, name, modality.name, fits)
        free = [group for group in free if group not in chosen[name]]
    return {name: chosen[name] for name in names}


def _by_date(groups: list[Group], labels: Group) -> list[Group]:
    """Return a group for each date if the files of one folder are several dates of each labelled sample."""
    if len(groups) > 1 or groups[0].ids & labels.ids:
        return groups
    found: dict[str, Group] = {}
    for part, folder in groups[0].folders.items():
        names = {path.relative_to(folder).as_posix(): path for key, path in groups[0].files.items() if key[0] == part}
        for suffix, ids in split_names(names, labels.ids).items():
            group = found.setdefault(suffix, Group(groups[0].place, suffix))
            group.folders[part] = folder
            group.files |= {(part, one): names[name] for one, name in ids.items()}
    dated = [found[suffix] for suffix in sorted(found)]
    return dated if all(group.ids & labels.ids for group in dated) else groups


def _pair(chosen: Mapping[str, list[Group]], labels: Group | None, rows: set[str] | None) -> dict[Key, dict[str, Path]]:
    """Return the files of each sample with an image and a label, by modality or label.

    Raises:
        DataError: There is none.
    """
    everything = [group for own in chosen.values() for group in own] + ([labels] if labels is not None else [])
    parts = sorted(set().union(*(group.parts for group in everything))) or [SHARED_FOLDER]
    keys = {
        (part, one)
        for part in parts
        for group in everything
        for own, one in group.files
        if own in (part, SHARED_FOLDER)
    }
    samples: dict[Key, dict[str, Path]] = {}
    for key in sorted(keys):
        found: dict[str, Path] = {}
        for name, groups in chosen.items():
            files = [group.find(*key) for group in groups]
            whole = [file for file in files if file is not None]
            if len(whole) == len(files):
                found |= {date_key(name, number): file for number, file in enumerate(whole, start=1)}
        label = labels.find(*key) if labels is not None else None
        if not found or (labels is not None and label is None) or (rows is not None and key[1] not in rows):
            continue
        samples[key] = found | ({LABEL: label} if label is not None else {})
    if not samples:
        raise DataError(_unpaired(chosen, labels, rows))
    return samples


def _unpaired(chosen: Mapping[str, list[Group]], labels: Group | None, rows: set[str] | None) -> str:
    parts = [f"{name} has ids such as {min(groups[0].ids)!r}" for name, groups in chosen.items()]
    if labels is not None:
        parts.append(f"labels such as {min(labels.ids)!r}")
    if rows:
        parts.append(f"the table of labels such as {min(rows)!r}")
    return (
        f"No image has a label: {', '.join(parts)}. The files of a sample must begin with the same id, e.g. "
        "chip_1_S2.tif and chip_1_label.tif."
    )


def _plan(images: Sequence[ImageSet], samples: Mapping[Key, Mapping[str, Path]], task: str) -> DataPlan:
    """Return the plan by which the checks read files."""
    plans = []
    for image in images:
        keys = sorted({key for files in samples.values() for key in files if modality_of(key) == image.name})
        plans += [replace(image.plan, name=key) for key in keys]
    split = Split("train", None, SplitFile(), {"/".join(filter(None, key)): dict(f) for key, f in samples.items()})
    return DataPlan(
        images=plans, splits=[split], roots={}, own=True, task=task, num_classes=None, class_names=(),
        no_data_replace=None, no_label_replace=None, reduce_zero_label=False, missing_allowed=True, batch_size=1,
        drop_last=False, transformed=(),
    )  # fmt: skip


def _read_images(
    request: Request,
    chosen: Mapping[str, list[Group]],
    labels: Group | None,
    samples: Mapping[Key, Mapping[str, Path]],
) -> tuple[list[ImageSet], dict[Path, Header], dict[Path, Mask]]:
    """Return the content of each modality's files, all headers, and the values of labels."""
    headers = read_headers(_plan([ImageSet(name, resolve(name)) for name in chosen], samples, request.task))
    _check_pairs(samples, headers)
    images = []
    for name, groups in chosen.items():
        own = [headers[path] for files in samples.values() for key, path in files.items() if modality_of(key) == name]
        given = request.bands.get(name, ())
        images.append(describe_bands(name, resolve(name), own, given, listed=len(groups)))
    plan = _plan(images, samples, request.task)
    read = read_sample(plan, SAMPLES)
    if read.problems:
        path, problem = read.problems[0]
        raise DataError(f"{counted(len(read.problems), 'file')} cannot be read, e.g. {path}: {problem}. Replace them.")
    for image in images:
        summaries = [one for key, own in read.images.items() if modality_of(key) == image.name for one in own]
        settle_values(image, summaries)
    masks = {mask.path: mask for mask in read_labels(plan)} if labels is not None else {}
    return images, headers, masks


def _read_labels(
    request: Request,
    path: Path | None,
    table: Any,
    group: Group | None,
    masks: Mapping[Path, Mask],
    samples: Mapping[Key, object],
) -> LabelSet:
    ids = [one for _, one in samples]
    if group is not None:
        return describe_masks(list(masks.values()), request.task, request.class_names)
    if path is not None:
        return describe_table(path, request.task, request.class_names, request.columns, ids, table)
    return describe_class_folders(ids, request.class_names)


def _check_pairs(samples: Mapping[Key, Mapping[str, Path]], headers: Mapping[Path, Header]) -> None:
    """Raise a DataError if the files of a sample differ in height or width."""
    shapes: dict[str, dict[str, tuple[int, int]]] = {}
    for (part, one), files in samples.items():
        for key, path in files.items():
            if path in headers and not headers[path].problem:
                shapes.setdefault(key, {})["/".join(filter(None, (part, one)))] = headers[path].shape
    first, *others = shapes
    for other in others:
        check_same_size(other, shapes[other], first, shapes[first])


def _settle_splits(
    survey: Survey,
    samples: Mapping[Key, Mapping[str, Path]],
    listed: Mapping[str, Sequence[str]],
    lists: Mapping[str, Path],
    headers: Mapping[Path, Header],
    masks: Mapping[Path, Mask],
) -> None:
    """Set splits and lists of a survey: from the user's lists, from folders, or drawn."""
    by_id: dict[str, list[Key]] = {}
    for key in samples:
        by_id.setdefault(key[1], []).append(key)
    suffixes = {group.suffix for groups in survey.groups.values() for group in groups}
    splits: dict[str, list[Key]] = {}
    exact = True
    for split, ids in listed.items():
        matched = [(text, match_ids(text, by_id, suffixes)) for text in ids]
        exact = exact and all(text == one for text, one in matched)
        found = [key for _, one in matched if one is not None for key in by_id[one] if key[0] in (SHARED_FOLDER, split)]
        splits[split] = list(dict.fromkeys(found))
        if len(found) < len(ids):
            lost = [text for text, one in matched if one is None]
            survey.notes.append(
                f"{lists[split]} names {len(ids)} ids, {len(found)} of them with images and labels; the others, e.g. "
                f"{some(lost, 2)}, are left out"
            )
    if not splits:
        for part in sorted({part for part, _ in samples} - {SHARED_FOLDER}):
            splits[part] = [key for key in samples if key[0] == part]
        exact = False
    if splits.get("train") and not splits.get("val"):
        train = splits["train"]
        splits["val"] = train[HELD - 1 :: HELD] or train[-1:]
        splits["train"] = [key for key in train if key not in set(splits["val"])]
        survey.notes.append("no samples for validation: every sixth training sample is taken")
        exact = False
    if not (splits.get("train") and splits.get("val")):
        if splits:
            survey.notes.append("the lists leave no sample for training or validation, so the splits are drawn")
        splits = _draw(samples, headers, masks)
        exact = False
        shown = ", ".join(f"{len(keys)} {split}" for split, keys in splits.items())
        survey.notes.append(f"splits drawn: {shown}; chips that overlap on the ground are in one split")
    _check_disjoint(splits, lists)
    survey.splits = {split: splits.get(split, []) for split in SPLIT_NAMES}
    survey.lists = dict(lists) if exact else {}


def _draw(
    samples: Mapping[Key, Mapping[str, Path]], headers: Mapping[Path, Header], masks: Mapping[Path, Mask]
) -> dict[str, list[Key]]:
    names = {"/".join(filter(None, key)): key for key in samples}
    first = {name: next(iter(samples[key].values())) for name, key in names.items()}
    classes = None
    if masks:
        known = {
            path: frozenset(int(v) for v in mask.counts if v == v and 0 <= v < 256) for path, mask in masks.items()
        }
        classes = {name: known.get(samples[key][LABEL], frozenset()) for name, key in names.items()}
    drawn = draw_splits(list(names), {name: headers[path] for name, path in first.items()}, classes)
    return {split: [names[name] for name in own] for split, own in drawn.items()}


def _check_disjoint(splits: Mapping[str, Sequence[Key]], lists: Mapping[str, Path]) -> None:
    seen: dict[Key, str] = {}
    for split, keys in splits.items():
        for key in keys:
            if key in seen:
                where = (
                    f"{lists[seen[key]]} and {lists[split]}" if split in lists and seen[key] in lists else "the lists"
                )
                raise DataError(f"{key[1]} is in {seen[key]} and {split}: remove it from one of {where}.")
            seen[key] = split
