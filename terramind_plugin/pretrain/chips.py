"""Chips of pre-training: reading, crops and turns."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import Modality
from terramind_plugin.raster.chips import read_chip
from terramind_plugin.raster.missing import describe_undeclared
from terramind_plugin.samples.layout import ChipFolder

logger = logging.getLogger("terramind_plugin")

TURNS = 8
"""The symmetries of a square."""


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
