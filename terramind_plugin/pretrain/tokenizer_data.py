"""Stage 1: a data module for images of one modality."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from terramind_plugin.data.guard import guard
from terramind_plugin.errors import DataError
from terramind_plugin.pretrain.loading import (
    SYMMETRIES,
    ChipReader,
    Draw,
    PretrainingDataModule,
    apply_symmetry,
    to_image_tensor,
)
from terramind_plugin.samples.layout import ChipFolder, make_folders

VALIDATION_SEED = 0
"""Seed of the crops for validation."""


class Crops(Dataset[dict[str, Tensor]]):
    """Crops of chips: {'image': standardised [bands, crop, crop] or class ids [crop, crop]}.

    Args:
        folder: Folder of the chips.
        names: Ids of the chips.
        crop: Side in pixels.
        reader: Reads the chips.
    """

    def __init__(self, folder: ChipFolder, names: list[str], crop: int, reader: ChipReader) -> None:
        self.folder = folder
        self.names = names
        self.crop = crop
        self.reader = reader

    def __len__(self) -> int:
        """Return the number of chips."""
        return len(self.names)

    def __getitem__(self, draw: Draw | int) -> dict[str, Tensor]:
        """Return a crop: random and under a random symmetry for a `Draw`, always the same for an index."""
        if isinstance(draw, Draw):
            number, random, symmetries = draw.number, draw.random(), SYMMETRIES
        else:
            number, random, symmetries = draw, np.random.default_rng([VALIDATION_SEED, draw]), 1
        name = self.names[number]
        chip = self.reader.read(self.folder, name)
        image = chip[:, *draw_window(random, chip.shape[1:], self.crop, self.folder.path(name))]
        return {"image": to_image_tensor(apply_symmetry(image, int(random.integers(symmetries))), self.folder.modality)}


def draw_window(random: np.random.Generator, shape: Sequence[int], size: int, path: object) -> tuple[slice, slice]:
    """Return the rows and columns of a square crop at a random position.

    Args:
        random: Random generator.
        shape: Height and width of the chip.
        size: Side of the crop.
        path: File or name of the chip, for the message.

    Raises:
        DataError: The chip is smaller than the crop.
    """
    if min(shape) < size:
        raise DataError(f"{path} has {shape[0]} x {shape[1]} pixels; crops of {size} x {size} do not fit. Lower crop.")
    row, column = (int(random.integers(length - size + 1)) for length in shape)
    return slice(row, row + size), slice(column, column + size)


class TokenizerDataModule(PretrainingDataModule):
    """Standardised crops of one modality under random D4 symmetries, for `TokenizerTask`.

    A resumed run continues with the batch that would have come next; every process gets `batch_size` samples.

    Args:
        modality: Name of the modality, e.g. 'S2L2A'.
        folder: GeoTIFFs of that modality.
        suffix: Suffix of the file names. The id in split lists is the name before it.
        train_split: File with the ids for training; without lists, every twentieth chip is used for validation.
        val_split: File with the ids for validation.
        crop: Side of a crop in pixels.
        batch_size: Crops per step and process.
        num_workers: Number of processes that read.
        keep_in_memory: Read each chip once and keep it, 2 bytes per pixel and band in each worker.
        seed: Seed of order, crops and symmetries.

    Raises:
        ConfigError: The modality has no raster, or only one split is given.
        DataError: See `choose_chips`.
    """

    def __init__(
        self,
        modality: str,
        folder: str,
        suffix: str = ".tif",
        train_split: str | None = None,
        val_split: str | None = None,
        crop: int = 256,
        batch_size: int = 16,
        num_workers: int = 0,
        keep_in_memory: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(train_split, val_split, batch_size, num_workers, seed)
        self.folders = make_folders({modality: folder}, {modality: suffix})
        (self.folder,) = self.folders.values()
        self.side = crop
        self.reader = ChipReader(keep_in_memory)

    def setup(self, stage: str) -> None:
        """Find the chips."""
        guard(self.trainer)
        train, val = self.choose()
        self.train_data = Crops(self.folder, train, self.side, self.reader)
        self.val_data = Crops(self.folder, val, self.side, self.reader)
