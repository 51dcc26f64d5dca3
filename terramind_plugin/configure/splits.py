"""Lists of the samples for training, validation and test, found or drawn."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from terramind_plugin.configure.names import ending, split_of
from terramind_plugin.errors import ConfigError, DataError, counted
from terramind_plugin.samples.checks.findings import some
from terramind_plugin.samples.checks.headers import Header
from terramind_plugin.samples.checks.locations import footprint_of
from terramind_plugin.samples.layout import SplitFile
from terramind_plugin.sources.splits import SHARES, assign_splits, merge_groups
from terramind_plugin.system.files import TABLES

SPLIT_NAMES = ("train", "val", "test")
FEWEST = 3
"""Minimum number of samples: one for each split."""


def find_lists(data: Path, given: Path | None) -> dict[str, Path]:
    """Return the list of each split below a folder, by split; empty if there is none.

    Args:
        data: Folder of the data.
        given: Folder of the lists; None to search `data`.

    Raises:
        ConfigError: There is no list in `given`.
        DataError: A split has several lists.
    """
    root = data if given is None else given
    if given is not None and not given.is_dir():
        raise ConfigError(f"--splits {given}: no such folder. Give a folder with lists such as train.txt.")
    found: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*")):
        split = split_of(path.stem) if path.suffix in (".txt", *TABLES) and path.is_file() else None
        if split is not None and not path.name.startswith("."):
            found.setdefault(split, []).append(path)
    if given is not None and not found:
        raise ConfigError(f"--splits {given}: the folder has no list such as train.txt, val.txt or test.txt.")
    for split, paths in found.items():
        if len(paths) > 1:
            raise DataError(
                f"Several lists of {split}: {some(paths)}. Name the folder of the right ones: --splits DIR."
            )
    return {split: paths[0] for split, paths in found.items()}


def read_lists(lists: Mapping[str, Path]) -> dict[str, list[str]]:
    """Return the ids of each list.

    Raises:
        DataError: A list cannot be read.
    """
    read = {split: SplitFile.read(path) for split, path in lists.items()}
    broken = next((content.problem for content in read.values() if content.problem), None)
    if broken:
        raise DataError(f"Split list {broken}. Write it as UTF-8 text with one sample id in each line.")
    return {split: list(dict.fromkeys(content.ids)) for split, content in read.items()}


def match_ids(text: str, known: Collection[str], suffixes: Collection[str]) -> str | None:
    """Return the sample id of a line, which holds an id or the name or path of a file; None if no sample matches."""
    for name in (text, text.replace("\\", "/").rpartition("/")[2]):
        for suffix in ("", ending(name), *suffixes):
            if (not suffix or name.endswith(suffix)) and name.removesuffix(suffix) in known:
                return name.removesuffix(suffix)
    return None


def draw_splits(
    ids: Sequence[str], headers: Mapping[str, Header], classes: Mapping[str, frozenset[int]] | None
) -> dict[str, list[str]]:
    """Return about 70 % of the samples for training, 15 % for validation and 15 % for test.

    The same ids always give the same splits. Chips that overlap on the ground are in the same split.

    Args:
        ids: Sample ids.
        headers: Header of an image by sample id.
        classes: Classes of each sample, so that training and validation have all classes if possible; None if unknown.

    Raises:
        DataError: There are too few samples.
    """
    if len(ids) < FEWEST:
        raise DataError(
            f"{counted(len(ids), 'sample')} with images and labels: at least {FEWEST} are needed, one each for "
            "training, validation and test."
        )
    groups = _ground(ids, headers)
    found = assign_splits(groups, None if classes is None else [classes.get(one, frozenset()) for one in ids])
    splits: dict[str, list[str]] = {split: [] for split in SPLIT_NAMES}
    for one, group in zip(ids, groups, strict=True):
        splits[found[group]].append(one)
    if not all(splits.values()):  # all chips overlap, or the groups differ too much in size
        order = sorted(ids)
        held = max(1, round(SHARES["val"] * len(order)))
        splits = {"train": order[: -2 * held], "val": order[-2 * held : -held], "test": order[-held:]}
    return splits


def _ground(ids: Sequence[str], headers: Mapping[str, Header]) -> list[str]:
    """Return a group for each sample; chips that overlap on the ground have the same group."""
    from shapely import box

    placed = [one for one in ids if one in headers and headers[one].placed]
    systems = {headers[one].crs for one in placed}
    if len(placed) < len(ids) or not placed:
        return list(ids)
    groups = dict(zip(ids, ids, strict=True))
    for system in systems:
        own = [one for one in placed if headers[one].crs == system]
        groups |= dict(
            zip(own, merge_groups(own, np.array([box(*footprint_of(headers[one]).bounds) for one in own])), strict=True)
        )
    return [groups[one] for one in ids]
