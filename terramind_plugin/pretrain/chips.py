"""Chips of pre-training: a folder for each modality, crops and turns of what lies in them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.modalities import Modality, resolve
from terramind_plugin.raster.missing import describe_undeclared
from terramind_plugin.raster.reader import read_chip
from terramind_plugin.samples.splits import read_split

logger = logging.getLogger("terramind_plugin")

TURNS = 8
"""The symmetries of a square."""
EVERY = 20
"""Without split lists, one file in this many is for validation."""


@dataclass(frozen=True)
class ChipFolder:
    """The files of one modality: ids with a common ending."""

    modality: Modality
    folder: Path
    suffix: str
    """What follows the chip's id in a file's name, e.g. '_S2L2AHand.tif'."""

    def path(self, name: str) -> Path:
        """Return the file of a chip."""
        return self.folder / f"{name}{self.suffix}"

    def names(self) -> list[str]:
        """Return the ids of all chips, sorted.

        Raises:
            DataError: There is none.
        """
        found = sorted(path.name.removesuffix(self.suffix) for path in self.folder.glob(f"*{self.suffix}"))
        if not found:
            raise DataError(
                f"No file in {self.folder} ends in '{self.suffix}' ({self.modality.name}). Check folder and suffix."
            )
        return found


def make_folders(folders: Mapping[str, str | Path], suffixes: Mapping[str, str]) -> dict[str, ChipFolder]:
    """Return the folders by the modality's name.

    Args:
        folders: Folder by modality.
        suffixes: End of the file names by modality; '.tif' where none is given.

    Raises:
        ConfigError: A modality is unknown, or has no raster.
    """
    ends = {resolve(name).name: suffix for name, suffix in suffixes.items()}
    made: dict[str, ChipFolder] = {}
    for given, folder in folders.items():
        modality = resolve(given)
        if modality.kind == "sequence":
            raise ConfigError(f"{modality.name} is no raster: places come from the georeferences of the others.")
        made[modality.name] = ChipFolder(modality, Path(folder), ends.pop(modality.name, ".tif").lstrip("*"))
    if ends:
        raise ConfigError(f"suffixes names {', '.join(ends)}, which folders does not: {', '.join(made)}.")
    return made


def choose(folders: Sequence[ChipFolder], split: str | Path | None, *, validation: bool) -> list[str]:
    """Return the ids of the chips that are in all folders and in a split.

    Args:
        folders: One for each modality.
        split: List of ids; None for every twentieth chip as validation and the others as training.
        validation: Which of both.

    Raises:
        DataError: A chip of the list lacks a file, or no chip is left.
    """
    if split is None:
        common = set(folders[0].names()).intersection(*(folder.names() for folder in folders[1:]))
        names = [name for number, name in enumerate(sorted(common)) if (number % EVERY == 0) == validation]
        if not names:
            kind = "validation" if validation else "training"
            raise DataError(
                f"No chip for {kind}: {len(common)} have files in all of {', '.join(map(_shown, folders))}."
            )
        return names
    names = read_split(split)
    missing = [folder.path(name) for name in names for folder in folders if not folder.path(name).is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} files of {split} are not there, the first is {missing[0]}. Check folder and suffix, or "
            "remove the ids."
        )
    return names


def _shown(folder: ChipFolder) -> str:
    return f"{folder.folder}/*{folder.suffix}"


class ChipReader:
    """Reads chips, and keeps them if there is memory for all.

    Args:
        keep: Whether to keep what was read; 2 bytes a pixel and band.
    """

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep
        self._kept: dict[Path, NDArray] = {}
        self._named: set[str] = set()

    def read(self, folder: ChipFolder, name: str) -> NDArray:
        """Return a chip: standardised [bands, H, W] float16, or class ids [1, H, W] uint8; gaps are filled.

        Raises:
            DataError: The file cannot be read, is no chip of that modality, or holds a number too far from its mean.
        """
        path = folder.path(name)
        if path in self._kept:
            return self._kept[path]
        chip = read_chip(path, folder.modality)
        values = chip.values
        if chip.undeclared and folder.modality.name not in self._named:
            self._named.add(folder.modality.name)
            logger.warning(
                "%s Further files of %s are not named.",
                describe_undeclared(path, chip.undeclared),
                folder.modality.name,
            )
        if folder.modality.kind == "classes":
            stored = values.astype(np.uint8)
        else:
            mean, std = (np.asarray(x, np.float32)[:, None, None] for x in (folder.modality.mean, folder.modality.std))
            with np.errstate(over="ignore"):
                stored = ((values - mean) / std).astype(np.float16)
            if not np.isfinite(stored).all():
                wrong = values[~np.isfinite(stored)][0]
                raise DataError(
                    f"{path} holds {wrong:g}, no value in {folder.modality.units}. If it means no data, declare it in "
                    f"the file: gdal_edit.py -a_nodata {wrong:g}."
                )
        if self.keep:
            self._kept[path] = stored
        return stored


def draw_window(random: np.random.Generator, shape: tuple[int, int], size: int, path: Path) -> tuple[slice, slice]:
    """Return where a square crop lies in a chip.

    Args:
        random: Source of randomness.
        shape: Height and width of the chip.
        size: Side of the crop.
        path: File of the chip, for the message.

    Raises:
        DataError: The chip is smaller than the crop.
    """
    if min(shape) < size:
        raise DataError(f"{path} has {shape[0]} x {shape[1]} pixels; crops of {size} x {size} do not fit. Lower crop.")
    row, column = (int(random.integers(length - size + 1)) for length in shape)
    return slice(row, row + size), slice(column, column + size)


def turn(image: NDArray, number: int) -> NDArray:
    """Return an image [..., H, W] in one of the `TURNS` positions of a square: a quarter turn `number` % 4 times,
    mirrored from 4 on.
    """
    turned = np.rot90(image, number % 4, axes=(-2, -1))
    return turned[..., ::-1] if number >= 4 else turned


def to_tensor(chip: NDArray, modality: Modality) -> Tensor:
    """Return a chip of `ChipReader` as a tokenizer takes it: float32 [bands, H, W], or class ids [H, W] int64."""
    if modality.kind == "classes":
        return torch.from_numpy(chip[0].astype(np.int64))
    return torch.from_numpy(chip.astype(np.float32))
