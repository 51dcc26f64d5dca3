"""Token ids of chips on disk: made once, read many times, one .safetensors file a modality.

A file holds 'ids', uint16 [tiles, symmetries, rows, columns]: chip after chip, each chip's tiles row by row from the
upper left. Pixels that do not fill a tile are left out. Symmetry 0 is the tile as it lies; see `apply_symmetry`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from terramind_plugin.errors import DataError, counted
from terramind_plugin.model.modalities import Modality
from terramind_plugin.samples.layout import ChipFolder
from terramind_plugin.system.files import write_bytes

ENDING = ".safetensors"
SHA256 = "sha256"
"""Key in the header of a file: the hash of its ids."""


@dataclass(frozen=True)
class Recipe:
    """Everything that token ids depend on besides the chips."""

    tokenizer: str
    """Registered name."""
    weights: str
    """SHA-256 of the encoder's weights."""
    tile: int
    """Side of a tile in pixels."""
    symmetries: int
    """1, or 8 for all symmetries of a square."""

    def difference(self, other: Recipe) -> str | None:
        """Return this recipe's values that differ from another's as text, or None."""
        parts = [
            f"{name} {mine[:16] if isinstance(mine, str) and name == 'weights' else mine}"
            for (name, mine), theirs in zip(asdict(self).items(), asdict(other).values(), strict=True)
            if mine != theirs
        ]
        return ", ".join(parts) or None


@dataclass(frozen=True)
class StoredChip:
    """State of a chip's file when its tokens were made."""

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
    def describe(cls, path: Path, name: str, rows: int, columns: int) -> StoredChip:
        """Return the entry of a file."""
        stat = path.stat()
        return cls(name, stat.st_size, stat.st_mtime_ns, _digest(path), rows, columns)

    def is_unchanged(self, path: Path) -> bool:
        """Return whether the file has the same content; it is read only if the size agrees and the time does not."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        return path.stat().st_mtime_ns == self.changed or _digest(path) == self.sha256


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class TokenFile:
    """The token ids of one modality, mapped into memory.

    Args:
        folder: Folder of the store.
        modality: Modality of the tokens.
        shard: Path of a shard below the store, without the ending; None for a store of chips in folders.

    Raises:
        DataError: There is no such file, or it is not a file of a token store.
    """

    def __init__(self, folder: str | Path, modality: Modality, shard: str | None = None) -> None:
        self.path = Path(folder) / f"{shard or modality.name}{ENDING}"
        self.modality = modality
        if not self.path.is_file():
            source = f"{modality.name}=FOLDER" if shard is None else "terramesh:ROOT"
            raise DataError(f"{self.path} is not there. Make it: terramind tokenize --data {source} --out {folder}.")
        try:
            with safe_open(self.path, "pt") as file:
                meta = file.metadata() or {}
                self.recipe = Recipe(**json.loads(meta["recipe"]))
                self.chips = {chip.name: chip for chip in (StoredChip(*row) for row in json.loads(meta["chips"]))}
                # Via a torch tensor, since numpy's reader would copy the file into memory.
                self.ids: NDArray[Any] = file.get_tensor("ids").numpy()
                self._sha256 = meta.get(SHA256)
            counts = [int(chip.rows) * int(chip.columns) for chip in self.chips.values()]
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.path} is not a file of a token store ({error}). Delete it and run terramind tokenize again."
            ) from error
        starts = np.cumsum([0, *counts])[:-1].tolist()
        self._start = dict(zip(self.chips, starts, strict=True))
        if self.ids.ndim != 4 or self.ids.shape[:2] != (sum(counts), self.recipe.symmetries):
            raise DataError(
                f"{self.path} holds ids of shape {list(self.ids.shape)}, its header says {sum(counts)} tiles under "
                f"{self.recipe.symmetries} symmetries. Delete it and run terramind tokenize again."
            )

    def read(self, name: str, row: int, column: int, symmetry: int = 0) -> NDArray[Any]:
        """Return the token ids of a tile [rows, columns], int64.

        Args:
            name: Id of the chip.
            row: Row of the tile, from the top.
            column: Column of the tile, from the left.
            symmetry: Number of the symmetry.
        """
        chip = self.chips[name]
        ids: NDArray[Any] = self.ids[self._start[name] + row * chip.columns + column, symmetry]
        return ids.astype(np.int64)

    def check_content(self) -> None:
        """Raise a DataError if the ids differ from the ids that were written."""
        if self._sha256 not in (None, hashlib.sha256(np.ascontiguousarray(self.ids).data).hexdigest()):
            raise DataError(f"{self.path} is damaged. Run terramind tokenize --replace again.")

    def check(self, names: Sequence[str], folder: ChipFolder | None = None) -> None:
        """Check that there are tokens of all chips, made from the current files.

        Args:
            names: Ids of the chips.
            folder: Folder of the files; None to check only that tokens exist.

        Raises:
            DataError: Tokens are missing or out of date.
        """
        missing = [name for name in names if name not in self.chips]
        if missing:
            raise DataError(
                f"{self.path} has no tokens of {counted(len(missing), 'chip')}, e.g. {missing[0]}. "
                "Run terramind tokenize --replace again."
            )
        if folder is None:
            return
        changed = [name for name in names if not self.chips[name].is_unchanged(folder.path(name))]
        if changed:
            raise DataError(
                f"{self.path} is out of date: {counted(len(changed), 'file', 'has/have')} changed since the tokens "
                f"were made, e.g. {folder.path(changed[0])}. Run terramind tokenize --replace again."
            )


def write_tokens(
    path: Path, ids: NDArray[Any], recipe: Recipe, chips: list[StoredChip], source: Mapping[str, str] | None = None
) -> None:
    """Write the tokens of one modality; the file appears only when it is complete.

    Args:
        path: File to write; an existing file is replaced.
        ids: Token ids [tiles, symmetries, rows, columns], uint16.
        recipe: Tokenizer and tiling.
        chips: Files of the chips, in order.
        source: Further texts for the header, e.g. the revision of a data set.
    """
    ids = np.ascontiguousarray(ids)
    meta = {
        "recipe": json.dumps(asdict(recipe)),
        "chips": json.dumps([list(asdict(chip).values()) for chip in chips]),
        SHA256: hashlib.sha256(ids.data).hexdigest(),
        **(source or {}),
    }
    write_bytes(path, save({"ids": ids}, meta))


def is_out_of_date(
    out: Path,
    modality: Modality,
    recipe: Recipe,
    check: Callable[[TokenFile], None],
    replace: bool,
    shard: str | None = None,
) -> bool:
    """Return whether a file of tokens must be written or written again.

    Args:
        out: Folder of the store.
        modality: Modality of the tokens.
        recipe: Tokenizer and tiling of this run.
        check: Raises a DataError if the tokens are not those of the samples.
        replace: Whether a file that is out of date may be replaced.
        shard: As for `TokenFile`.

    Raises:
        DataError: The file is out of date, and `replace` is False.
    """
    try:
        stored = TokenFile(out, modality, shard)
        difference = stored.recipe.difference(recipe)
        if difference is not None:
            raise DataError(f"{stored.path} was made with {difference}; now it is {recipe.difference(stored.recipe)}.")
        stored.check_content()
        check(stored)
    except DataError as error:
        if replace:
            return True
        raise DataError(f"{error}\nReplace it with --replace, or choose another --out.") from error
    return False
