"""Token ids on disk: made once, read many times. One .safetensors file a modality, which is there whole or not at all.

A file holds 'ids', uint16 [tiles, turns, rows, columns]: chip after chip, of each its tiles row by row from the upper
left; what does not fill a tile is left out. Turn 0 is the tile as it lies, the others are those of `chips.turn`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from terramind_plugin.errors import DataError
from terramind_plugin.files import write_bytes
from terramind_plugin.model.modalities import Modality
from terramind_plugin.samples.layout import ChipFolder

ENDING = ".safetensors"
SHA256 = "sha256"
"""Key in the header of a file: the hash of its ids."""


@dataclass(frozen=True)
class Recipe:
    """What token ids depend on besides the chips."""

    tokenizer: str
    """Registered name."""
    weights: str
    """SHA-256 of the encoder's weights."""
    tile: int
    """Side of a tile in pixels."""
    turns: int
    """1, or 8 for all symmetries of a square."""

    def difference(self, other: Recipe) -> str | None:
        """Return in words what is not the same, or None."""
        parts = [
            f"{name} {mine[:16] if isinstance(mine, str) and name == 'weights' else mine}"
            for (name, mine), theirs in zip(asdict(self).items(), asdict(other).values(), strict=True)
            if mine != theirs
        ]
        return ", ".join(parts) or None


@dataclass(frozen=True)
class StoredChip:
    """A file as it was when its tokens were made."""

    name: str
    size: int
    """Bytes."""
    changed: int
    """Time of the last change in nanoseconds."""
    sha256: str
    rows: int
    """Tiles from top to bottom."""
    columns: int
    """Tiles from left to right."""

    @classmethod
    def of(cls, path: Path, name: str, rows: int, columns: int) -> StoredChip:
        """Return the entry of a file."""
        stat = path.stat()
        return cls(name, stat.st_size, stat.st_mtime_ns, _digest(path), rows, columns)

    def is_still(self, path: Path) -> bool:
        """Return whether the file holds what it held; its content is read only if size or time say nothing."""
        if not path.is_file():
            return False
        stat = path.stat()
        if stat.st_size != self.size:
            return False
        return stat.st_mtime_ns == self.changed or _digest(path) == self.sha256


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class TokenFile:
    """The token ids of one modality, mapped into memory.

    Args:
        folder: Of the store.
        modality: Which one.

    Raises:
        DataError: There is no such file, or it is none of a token store.
    """

    def __init__(self, folder: str | Path, modality: Modality) -> None:
        self.path = Path(folder) / f"{modality.name}{ENDING}"
        self.modality = modality
        if not self.path.is_file():
            raise DataError(
                f"{self.path} is not there. Make it: terramind tokenize --data {modality.name}=FOLDER --out {folder}."
            )
        try:
            with safe_open(self.path, "pt") as file:
                meta = file.metadata() or {}
                self.recipe = Recipe(**json.loads(meta["recipe"]))
                self.chips = {chip.name: chip for chip in (StoredChip(*row) for row in json.loads(meta["chips"]))}
                # Of a torch tensor: numpy's reader would copy the file into memory.
                self.ids: NDArray = file.get_tensor("ids").numpy()
                self._sha256 = meta.get(SHA256)
            counts = [int(chip.rows) * int(chip.columns) for chip in self.chips.values()]
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.path} is no file of a token store ({error}). Delete it and run terramind tokenize again."
            ) from error
        starts = np.cumsum([0, *counts])[:-1].tolist()
        self._start = dict(zip(self.chips, starts, strict=True))
        if self.ids.ndim != 4 or self.ids.shape[:2] != (sum(counts), self.recipe.turns):
            raise DataError(
                f"{self.path} holds ids of shape {list(self.ids.shape)}, its header says {sum(counts)} tiles in "
                f"{self.recipe.turns} turns. Delete it and run terramind tokenize again."
            )

    def read(self, name: str, row: int, column: int, turned: int = 0) -> NDArray:
        """Return the token ids of a tile [rows, columns], int64.

        Args:
            name: The chip.
            row: Of the tile, from the top.
            column: Of the tile, from the left.
            turned: Number of the turn.
        """
        chip = self.chips[name]
        return self.ids[self._start[name] + row * chip.columns + column, turned].astype(np.int64)

    def check_content(self) -> None:
        """Raise a DataError if the ids are not those that were written."""
        if self._sha256 not in (None, hashlib.sha256(np.ascontiguousarray(self.ids).data).hexdigest()):
            raise DataError(f"{self.path} is damaged. Run terramind tokenize --replace again.")

    def check(self, names: Iterable[str]) -> None:
        """Raise a DataError if there are no tokens of a chip."""
        missing = [name for name in names if name not in self.chips]
        if missing:
            raise DataError(
                f"{self.path} has no tokens of {len(missing)} chips, e.g. {missing[0]}. "
                "Run terramind tokenize --replace again."
            )

    def check_files(self, folder: ChipFolder, names: Iterable[str]) -> None:
        """Raise a DataError if a chip's file is not the one that the tokens were made of."""
        changed = [name for name in names if not self.chips[name].is_still(folder.path(name))]
        if changed:
            raise DataError(
                f"{self.path} is out of date: {len(changed)} files are not those it was made of, e.g. "
                f"{folder.path(changed[0])}. Run terramind tokenize --replace again."
            )


def write_tokens(path: Path, ids: NDArray, recipe: Recipe, chips: list[StoredChip]) -> None:
    """Write the tokens of one modality; the file appears when it is complete.

    Args:
        path: Where; an existing file is replaced.
        ids: Token ids [tiles, turns, rows, columns], uint16.
        recipe: What they were made with.
        chips: What they were made of, in order.
    """
    ids = np.ascontiguousarray(ids)
    meta = {
        "recipe": json.dumps(asdict(recipe)),
        "chips": json.dumps([list(asdict(chip).values()) for chip in chips]),
        SHA256: hashlib.sha256(ids.data).hexdigest(),
    }
    write_bytes(path, save({"ids": ids}, meta))
