"""The rasters of a folder, grouped by folder and suffix, and the choice of a group for each modality."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from terramind_plugin.configure.names import claim, ending, is_label, split_names, split_of, words
from terramind_plugin.errors import ConfigError, DataError, counted
from terramind_plugin.samples.checks.findings import some

MOST_FILES = 2_000_000
"""Maximum number of files that are listed."""
ORDERED = (("before", "after"), ("pre", "post"), ("first", "second"))
"""Words in names of folders that stand for dates, in the order of time."""
SHARED_FOLDER = ""
"""Key of a folder that all splits share."""


@dataclass
class Group:
    """Rasters whose names consist of an id and a common suffix, in one folder or in one for each split."""

    place: str
    """Path below the data folder, without the part that names a split."""
    suffix: str
    folders: dict[str, Path] = field(default_factory=dict)
    """Folder by split; `SHARED_FOLDER` where splits share it."""
    files: dict[tuple[str, str], Path] = field(default_factory=dict)
    """File by split, or `SHARED_FOLDER`, and sample id."""

    def __str__(self) -> str:
        return f"{self.place}/*{self.suffix}" if self.place != "." else f"*{self.suffix}"

    @property
    def claims(self) -> frozenset[str]:
        """Return the modalities that the suffix may mean, or else the deepest folder whose name has a meaning."""
        parts = [self.suffix.partition(".")[0] or self.suffix, *reversed(Path(self.place).parts)]
        return next((found for part in parts if (found := claim(part))), frozenset())

    @property
    def parts(self) -> set[str]:
        """Return the splits that have folders of their own."""
        return {part for part in self.folders if part != SHARED_FOLDER}

    @property
    def ids(self) -> set[str]:
        """Return all sample ids."""
        return {one for _, one in self.files}

    def find(self, part: str, one: str) -> Path | None:
        """Return the file of a sample, or None if there is none."""
        return self.files.get((part, one)) or self.files.get((SHARED_FOLDER, one))

    def root(self, part: str) -> Path | None:
        """Return the folder of a split, or None if there is none."""
        return self.folders.get(part) or self.folders.get(SHARED_FOLDER)

    @property
    def labels(self) -> bool:
        """Return whether the suffix or the folder says that these are labels."""
        parts = [self.suffix.removesuffix(ending(self.suffix)), *Path(self.place).parts]
        return any(is_label(part) for part in parts)


def list_rasters(data: Path) -> dict[Path, list[str]]:
    """Return the names of the rasters in each folder below `data`; hidden folders are left out.

    Raises:
        ConfigError: There is no such folder.
        DataError: There is no raster.
    """
    if not data.is_dir():
        raise ConfigError(f"--data {data}: {'a file' if data.exists() else 'no such folder'}. Give a folder of chips.")
    found: dict[Path, list[str]] = {}
    count = others = 0
    for root, folders, names in os.walk(data, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        rasters = sorted(name for name in names if ending(name) and not name.startswith("."))
        others += len(names) - len(rasters)
        if rasters:
            found[Path(root)] = rasters
        count += len(names)
        if count > MOST_FILES:
            raise DataError(f"{data} holds more than {MOST_FILES} files. Give the folder of one data set.")
    if not found:
        held = f"{counted(others, 'file')} of other kinds" if others else "no file"
        raise DataError(
            f"{data} holds no raster: {held}. Expected GeoTIFFs (.tif), NetCDF (.nc) or .zarr.zip files, in a folder "
            "for each modality and one for the labels."
        )
    return found


def group_rasters(data: Path, known: Collection[str] = (), *, nested: bool = False) -> list[Group]:
    """Return the groups of rasters below a folder.

    Args:
        data: The folder.
        known: Sample ids from lists.
        nested: Whether folders whose names have no known meaning are part of the ids, e.g. Forest/Forest_12.
    """
    listed = list_rasters(data)
    roots = {folder: _root(data, folder, listed) if nested else folder for folder in listed}
    names: dict[Path, list[str]] = defaultdict(list)
    for folder, own in listed.items():
        names[roots[folder]] += [(folder / name).relative_to(roots[folder]).as_posix() for name in own]
    split = {folder: split_names(own, known) for folder, own in names.items() if len(own) > 1 or known}
    others = {one for suffixes in split.values() for ids in suffixes.values() for one in ids}
    split |= {folder: split_names(own, others) for folder, own in names.items() if folder not in split}
    groups: dict[tuple[str, str], Group] = {}
    for folder in sorted(split):
        place, part = _without_split(folder.relative_to(data))
        for suffix, files in split[folder].items():
            group = groups.setdefault((place, suffix), Group(place, suffix))
            group.folders[part] = folder
            for one, name in files.items():
                group.files[part, one] = folder / name
    return list(groups.values())


def _root(data: Path, folder: Path, listed: Mapping[Path, object]) -> Path:
    """Return the folder whose subfolders are classes; `folder` itself if its name has a meaning."""
    name = folder.name
    if folder == data or claim(name) or is_label(name) or split_of(name) is not None:
        return folder
    siblings = [one for one in listed if one.parent == folder.parent]
    return folder.parent if len(siblings) > 1 else folder


def _without_split(place: Path) -> tuple[str, str]:
    """Return a path without the part that names a split, and the split."""
    for part in place.parts:
        split = split_of(part)
        if split is not None:
            rest = [one for one in place.parts if one != part]
            return (Path(*rest).as_posix() if rest else "."), split
    return place.as_posix(), SHARED_FOLDER


def split_by_ids(groups: Sequence[Group], ids: Collection[str]) -> list[Group]:
    """Divide groups that hold several modalities of the samples with these ids by suffix; return all groups.

    Names such as a1_S1_00.tif and a1_S2_00.tif end in numbers, so their suffixes can only be told once ids are known.
    """
    found: list[Group] = []
    for group in groups:
        parts: dict[str, Group] = {}
        for (split, _), path in group.files.items():
            root = group.folders[split]
            for suffix, names in split_names([path.relative_to(root).as_posix()], ids).items():
                part = parts.setdefault(suffix, Group(group.place, suffix))
                part.folders[split] = root
                part.files |= {(split, one): path for one in names}
        mixed = len({part.claims for part in parts.values()}) > 1
        whole = mixed and all(part.claims and part.ids <= set(ids) for part in parts.values())
        found += parts.values() if whole else [group]
    return found


def choose_named(groups: Sequence[Group], data: Path, text: str, what: str) -> list[Group]:
    """Return the group that a user has named as FOLDER or FOLDER/*SUFFIX.

    A suffix may contain a further `*`: it then names a group for each date, in the order of time.

    Args:
        groups: All groups.
        data: Folder of the data; names are relative to it or to the working folder.
        text: What the user has named.
        what: Option and name, for messages.

    Raises:
        ConfigError: There is no such group, or more than one.
    """
    folder, star, suffix = text.partition("*")
    wanted = {Path(os.path.normpath(base / folder)).absolute() for base in (data, Path())}
    found = [
        group
        for group in groups
        if (wanted & {Path(os.path.normpath(one)).absolute() for one in group.folders.values()}
            or group.place == Path(folder).as_posix())
        and (not star or fnmatchcase(group.suffix, suffix))
    ]  # fmt: skip
    dated = _dated(found) if "*" in suffix else []
    if len(found) == 1 or dated:
        return dated or found
    if found:
        raise ConfigError(_several(what, found, f"{what}={found[0]}" if "=" not in what else f"{what}"))
    raise ConfigError(f"{what}: no rasters in '{text}'. {data} has {_shown(groups)}.")


def _several(what: str, found: Sequence[Group], example: str) -> str:
    same = len({group.place for group in found}) == 1
    thing = "several suffixes" if same else "several folders"
    return f"{what}: {thing} fit: {_shown(found)}. Name one, with its suffix if needed: {example}."


def _shown(groups: Iterable[Group]) -> str:
    return some([f"'{group}' ({counted(len(group.files), 'file')})" for group in groups], 6)


def choose_images(groups: Sequence[Group], name: str, source: str, fits: Mapping[int, bool]) -> list[Group]:
    """Return the group of a modality, or several in the order of time if their names say that they are dates.

    Args:
        groups: Groups that are neither labels nor taken by another modality.
        name: Name of the input, for messages.
        source: Name of the known modality; '' for a new one.
        fits: Whether the bands of a group are those of the modality, by the position of the group.

    Raises:
        DataError: No group fits, or several do.
    """
    ranks: dict[int, list[Group]] = defaultdict(list)
    for position, group in enumerate(groups):
        claims = group.claims
        if source in claims:
            ranks[3 if len(claims) == 1 else 2].append(group)
        elif not claims and fits.get(position):
            ranks[1].append(group)
    unnamed = [group for group in groups if not group.claims]
    if not ranks and len(unnamed) == 1:  # a series, or bands that the user has named
        ranks[0] = unnamed
    if not ranks:
        raise DataError(
            f"No folder of {name}: found {_shown(groups) or 'labels alone'}. Name its folder: "
            f"--modalities {name}=FOLDER."
        )
    found = ranks[max(ranks)]
    if len(found) > 1:
        dated = _dated(found)
        found = dated or found
        if not dated:
            raise DataError(_several(name, found, f"--modalities {name}={found[0]}"))
    return found


def _dated(groups: Sequence[Group]) -> list[Group]:
    """Return groups of dates in the order of time, by folder or suffix; empty if the names do not say the order."""
    suffixes = {group.suffix for group in groups}
    if any(len(group.files) != len(groups[0].files) for group in groups):
        return []
    if len(suffixes) > 1:
        same = len({group.place for group in groups}) == len({re.sub(r"\d+", "", one) for one in suffixes}) == 1
        return sorted(groups, key=lambda group: [*map(int, re.findall(r"\d+", group.suffix))]) if same else []
    parts = [set(words(group.place)) for group in groups]
    for order in ORDERED:
        places = [next((index for index, word in enumerate(order) if word in own), None) for own in parts]
        if sorted(index for index in places if index is not None) == list(range(len(groups))):
            return [group for _, group in sorted(zip(places, groups, strict=True), key=lambda pair: pair[0] or 0)]
    numbers = [_number(group.place) for group in groups]
    if all(number is not None for number in numbers) and len(set(numbers)) == len(groups):
        return [group for _, group in sorted(zip(numbers, groups, strict=True), key=lambda pair: pair[0] or 0)]
    return []


def _number(place: str) -> int | None:
    """Return the number at the end of a folder's name that means a date or time: t1, date_2, 2021-06-01."""
    name = Path(place).name
    digits = "".join(char for char in name if char.isdigit())
    letters = set(words(name)) | {
        char for char in name.lower() if char.isalpha() and len(name.rstrip("0123456789")) == 1
    }
    dated = len(digits) in (4, 6, 8) and not letters
    return int(digits) if digits and (dated or letters & {"t", "date", "time", "day", "month"}) else None


def choose_labels(groups: Sequence[Group], data: Path) -> Group:
    """Return the group of label rasters.

    Raises:
        DataError: There is none, or more than one.
    """
    found = [group for group in groups if group.labels]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(_several("labels", found, f"--labels {found[0]}"))
    raise DataError(
        f"{data} has no folder of labels, such as label/ or masks/: found {_shown(groups)}. Name it: --labels FOLDER."
    )
