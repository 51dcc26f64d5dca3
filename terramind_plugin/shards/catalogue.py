"""Catalogue of a data set of tar shards: the list of shards, and the position of each sample in them."""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import ConfigError, DataError, counted
from terramind_plugin.model.modalities import Modality, find_exact, resolve
from terramind_plugin.shards.stores import Entry, ShardStore
from terramind_plugin.shards.tar import IndexCache, TarIndex, check_index, index_tar

logger = logging.getLogger("terramind_plugin")

OnError = Literal["raise", "skip"]
TAR = ".tar"
INDEX_THREADS = 8
"""Number of threads that read headers of shards; most of the time they wait for the disk or the network."""
SUBSET = re.compile(r"(.*?)(?:_(?:train|val|test))?(?:_(?:shard|seasonal_data))?_\d+")
"""Pattern of a shard's name, which consists of subset and number, e.g. 'majortom_shard_000001'."""


class SamplePlace(NamedTuple):
    """Position of a sample."""

    shard: int
    """Number of the shard in the catalogue."""
    row: int
    """Number of the sample in its shard."""


class ShardCatalogue:
    """Shards and samples of one split.

    A shard consists of several tars of one name, one in each modality's folder, with the same keys in the same order.
    Shards are found by listing the folders, because published copies number them differently. A subset, e.g. ssl4eos12,
    may lack a modality, e.g. S1RTC; otherwise all shards of the subset must have it.

    Args:
        store: Store of the data set.
        split: Folder of the split, e.g. 'train' or 'val'.
        modalities: Modalities to read, in any spelling.
        on_error: 'raise' to stop at damage, 'skip' to leave out and count the affected samples.
        cache_dir: Folder in which indices of shards are kept; None to keep none.

    Raises:
        ConfigError: A modality is unknown, named twice, or a text.
        DataError: A folder or a tar is missing or damaged.
    """

    def __init__(
        self,
        store: ShardStore,
        split: str,
        modalities: Sequence[str],
        on_error: OnError = "raise",
        cache_dir: str | Path | None = None,
    ) -> None:
        if isinstance(modalities, str) or not modalities:
            raise ConfigError(f"modalities must be a list such as [S2L2A, S1RTC], got {modalities!r}.")
        self.store, self.split, self.on_error = store, split, on_error
        self.modalities: dict[str, Modality] = {}
        """Modalities by the names that the caller has given."""
        for name in modalities:
            modality = resolve(name)
            if modality.kind == "sequence":
                raise ConfigError(f"{modality.name} is not an image. Each sample has its 'center'; leave it out.")
            if modality in self.modalities.values():
                raise ConfigError(f"modalities names {modality.name} twice.")
            self.modalities[name] = modality
        self._cache = IndexCache(cache_dir) if cache_dir is not None else None
        self.skipped: Counter[str] = Counter()
        """Number of samples left out when the shards were listed, by reason."""
        self._folders = self._find_folders()
        self._entries = {
            name: {
                entry.name.removesuffix(TAR): entry
                for entry in store.list(f"{split}/{folder}")
                if entry.name.endswith(TAR)
            }
            for name, folder in self._folders.items()
        }
        self.shards = sorted({shard for entries in self._entries.values() for shard in entries})
        """Names of the shards, without the ending."""
        if not self.shards:
            shown = ", ".join(store.shown(f"{split}/{folder}") for folder in self._folders.values())
            raise DataError(f"No {TAR} file in {shown}. Download shards, or check root and split.")
        self.subsets = [subset_of(shard) for shard in self.shards]
        """Subset of each shard."""
        self.lacking = self._compare_folders()
        """Modalities that all shards of a subset lack, by subset."""
        self._indices: dict[tuple[str, int], TarIndex] = {}
        self._first = self._index_shards()
        self._ends = np.cumsum([len(self._first[shard].keys) for shard in range(len(self.shards))])
        self._wrong: dict[int, NDArray[np.bool_]] = {}

    def _find_folders(self) -> dict[str, str]:
        """Return the folder of each modality, by the caller's name."""
        listed = [entry.name for entry in self.store.list(self.split)]
        if not listed:
            there = ", ".join(entry.name for entry in self.store.list("")) or "nothing that can be listed"
            raise DataError(
                f"{self.store.shown(self.split)} holds no folder of a modality. Found beside it: {there}. root must be "
                "the folder that holds train/ and val/, and split one of them."
            )
        by_modality = {modality.name: name for name in listed if (modality := find_exact(name)) is not None}
        missing = [name for name, modality in self.modalities.items() if modality.name not in by_modality]
        if missing and (self.on_error == "raise" or len(missing) == len(self.modalities)):
            raise DataError(
                f"{self.store.shown(self.split)} has no folder of {', '.join(missing)}. It has: {', '.join(listed)}. "
                "Download it, or remove it from modalities."
            )
        for name in missing:
            logger.warning("%s has no folder of %s: every sample lacks it.", self.store.shown(self.split), name)
        return {
            name: by_modality[modality.name]
            for name, modality in self.modalities.items()
            if modality.name in by_modality
        }

    def _compare_folders(self) -> dict[str, list[str]]:
        """Return the modalities that each subset lacks, after checking that the others are complete."""
        lacking: dict[str, list[str]] = {}
        for subset in dict.fromkeys(self.subsets):
            shards = [shard for shard, its in zip(self.shards, self.subsets, strict=True) if its == subset]
            for name, folder in self._folders.items():
                absent = [shard for shard in shards if shard not in self._entries[name]]
                if len(absent) == len(shards):
                    lacking.setdefault(subset, []).append(name)
                elif absent:
                    text = f"{self.store.shown(f'{self.split}/{folder}/{absent[0]}{TAR}')} is missing"
                    if self.on_error == "raise":
                        others = f", and {len(absent) - 1} more of {subset}" if len(absent) > 1 else ""
                        raise DataError(f"{text}{others}; other modalities have it. Download it, or delete the others.")
                    self.skipped[f"{name}: shard missing"] += len(absent)
                    logger.warning("%s; its samples lack %s.", text, name)
        for subset, names in lacking.items():
            logger.info("%s has no %s: a missing modality of its samples.", subset, ", ".join(names))
        return lacking

    def path(self, name: str, shard: int) -> str | None:
        """Return the path of a shard's tar in the store; None if the shard lacks the modality.

        Args:
            name: The caller's name of the modality.
            shard: Number of the shard.
        """
        there = self.shards[shard] in self._entries.get(name, {})
        return f"{self.split}/{self._folders[name]}/{self.shards[shard]}{TAR}" if there else None

    def _index_shards(self) -> dict[int, TarIndex]:
        """Return an index of each shard: that of its smallest tar or, if damage is skipped, of its longest one."""
        present = [
            (name, shard) for shard in range(len(self.shards)) for name in self._folders if self.path(name, shard)
        ]
        empty = [place for place in present if self._entry(*place).size == 0]
        if empty and self.on_error == "raise":
            path = self.store.shown(str(self.path(*empty[0])))
            raise DataError(f"{path}: it is empty (0 bytes). Download this shard again.")
        if self.on_error == "skip":
            chosen = present
        else:
            smallest: dict[int, tuple[str, int]] = {}
            for place in present:
                best = smallest.setdefault(place[1], place)
                if (self._entry(*place).size or 0) < (self._entry(*best).size or 0):
                    smallest[place[1]] = place
            chosen = list(smallest.values())
        with ThreadPoolExecutor(INDEX_THREADS) as threads:
            for place, index in zip(chosen, threads.map(lambda place: self._read_index(*place), chosen), strict=True):
                self._indices[place] = index
        found: dict[int, TarIndex] = {}
        for (_, shard), index in self._indices.items():
            if shard not in found or len(index.keys) > len(found[shard].keys):
                found[shard] = index
            if index.damage and self.on_error == "skip":
                logger.warning("%s: %s", self.store.shown(index.path), index.damage)
        return found

    def _entry(self, name: str, shard: int) -> Entry:
        return self._entries[name][self.shards[shard]]

    def _read_index(self, name: str, shard: int) -> TarIndex:
        path, entry = self.path(name, shard), self._entry(name, shard)
        assert path is not None
        try:
            size = self.store.size(path) if entry.size is None else entry.size
            if self._cache is None:
                index = index_tar(self.store, path, size)
            else:
                index = self._cache.index(self.store, path, size, entry.identity)
        except OSError as error:
            raise DataError(f"{self.store.shown(path)} cannot be read: {error}. Download this shard again.") from error
        if self.on_error == "raise":
            check_index(self.store, index)
        return index

    def index(self, name: str, shard: int) -> TarIndex:
        """Return the positions of a shard's samples, after comparing the keys with the shard's other modalities.

        Args:
            name: The caller's name of a modality that the shard has.
            shard: Number of the shard.

        Raises:
            DataError: The tar is damaged or its keys differ, and damage is not skipped.
        """
        place = (name, shard)
        if place not in self._indices:
            self._indices[place] = self._read_index(*place)
        index, first = self._indices[place], self._first[shard]
        if self.on_error == "raise" and index is not first and index.keys != first.keys:
            self._raise_divergence(index, first)
        return index

    def _raise_divergence(self, index: TarIndex, first: TarIndex) -> None:
        row = next(
            (row for row, (ours, theirs) in enumerate(zip(index.keys, first.keys, strict=False)) if ours != theirs),
            min(len(index.keys), len(first.keys)),
        )
        ours, theirs = (each.keys[row] if row < len(each.keys) else "nothing" for each in (index, first))
        raise DataError(
            f"{self.store.shown(index.path)}: sample {row + 1} is {ours}, but {theirs} in "
            f"{self.store.shown(first.path)}. The tars of a shard must hold the same keys in the same order. Download "
            "both again, from one revision."
        )

    def __len__(self) -> int:
        """Return the number of samples, including those that will be skipped."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def place(self, number: int) -> SamplePlace:
        """Return the position of a sample.

        Args:
            number: Number of the sample, counted from 0 shard by shard.
        """
        shard = int(np.searchsorted(self._ends, number, side="right"))
        return SamplePlace(shard, number - int(self._ends[shard - 1] if shard else 0))

    def key(self, place: SamplePlace) -> str:
        """Return the key of a sample, e.g. 'majortom_val_0000001'."""
        return self._first[place.shard].keys[place.row]

    def keys(self, shard: int) -> list[str]:
        """Return the keys of a shard in their order."""
        return self._first[shard].keys

    def numbers(self, shard: int) -> NDArray[np.int64]:
        """Return the numbers of a shard's samples."""
        end = int(self._ends[shard])
        return np.arange(end - len(self._first[shard].keys), end)

    def wrong(self, shard: int) -> NDArray[np.bool_]:
        """Return a mask of the samples whose key differs or is missing in some modality; all False unless skipping."""
        if shard not in self._wrong:
            keys = self._first[shard].keys
            wrong = np.zeros(len(keys), bool)
            if self.on_error == "skip":
                for name in self._folders:
                    if self.path(name, shard) is not None:
                        there = self.index(name, shard).keys
                        wrong |= [row >= len(there) or there[row] != key for row, key in enumerate(keys)]
            self._wrong[shard] = wrong
            if wrong.any():
                self.skipped["keys"] += int(wrong.sum())
                logger.warning(
                    "%s: %s left out, because the key differs between modalities, e.g. %s.",
                    self.shards[shard],
                    counted(int(wrong.sum()), "sample"),
                    keys[int(wrong.argmax())],
                )
        return self._wrong[shard]

    def read(self, name: str, place: SamplePlace) -> bytes | None:
        """Return the content of a sample in one modality; None if its shard lacks the modality.

        Raises:
            DataError: The tar is damaged or cannot be read.
        """
        path = self.path(name, place.shard)
        if path is None:
            return None
        index = self.index(name, place.shard)
        start, size = int(index.starts[place.row]), int(index.sizes[place.row])
        try:
            content = self.store.read(path, start, size)
        except OSError as error:
            raise DataError(f"{self.shown(name, place)} cannot be read: {error}. Download this shard again.") from error
        if len(content) != size:
            raise DataError(f"{self.shown(name, place)} ends too early. Download this shard again.")
        return content

    def shown(self, name: str, place: SamplePlace) -> str:
        """Return the shard and key of a sample for messages."""
        path = self.path(name, place.shard)
        return f"{self.store.shown(str(path))}: {self.key(place)}"

    def fingerprint(self) -> str:
        """Return a hash of the shards and their numbers of samples, which must be the same for resuming."""
        lines = [f"{shard} {len(self._first[number].keys)}" for number, shard in enumerate(self.shards)]
        text = "\n".join([str(self.store.revision), self.split, *lines])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def subset_of(shard: str) -> str:
    """Return the subset in a shard's name, e.g. 'majortom' for 'majortom_shard_000001'."""
    found = SUBSET.fullmatch(shard)
    return found[1] if found else shard
