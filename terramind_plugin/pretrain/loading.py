"""Loading for both stages: chips, dihedral symmetries, and an order of samples that a resumed run continues."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.modalities import Modality
from terramind_plugin.pretrain.task import next_batch
from terramind_plugin.raster.chips import read_chip
from terramind_plugin.raster.missing import describe_undeclared
from terramind_plugin.samples.layout import ChipFolder, choose_chips

logger = logging.getLogger("terramind_plugin")

SYMMETRIES = 8
"""Number of dihedral (D4) symmetries: the symmetries of a square."""


class ChipReader:
    """Reads chips, and keeps them in memory if requested.

    Args:
        keep: Whether to keep chips in memory, 2 bytes per pixel and band.
    """

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep
        self._kept: dict[Path, NDArray[Any]] = {}
        self._named: set[str] = set()

    def read(self, folder: ChipFolder, name: str) -> NDArray[Any]:
        """Return a chip: standardised [bands, H, W] float16, or class ids [1, H, W] uint8; gaps are filled.

        Raises:
            DataError: The file cannot be read, is not a chip of that modality, or holds a number too far from its mean.
        """
        path, modality = folder.path(name), folder.modality
        if path in self._kept:
            return self._kept[path]
        chip = read_chip(path, modality)
        if chip.undeclared and modality.name not in self._named:
            self._named.add(modality.name)
            text = describe_undeclared(path, chip.undeclared)
            logger.warning("%s Further files of %s are not named.", text, modality.name)
        values = chip.values
        if modality.kind == "classes":
            stored = values.astype(np.uint8)
        else:
            mean, std = (np.asarray(x, np.float32)[:, None, None] for x in (modality.mean, modality.std))
            with np.errstate(over="ignore"):
                stored = ((values - mean) / std).astype(np.float16)
            if not np.isfinite(stored).all():
                wrong = values[~np.isfinite(stored)][0]
                raise DataError(
                    f"{path} holds {wrong:g}, not a value in {modality.units}. If it means no data, declare it in "
                    f"the file: gdal_edit.py -a_nodata {wrong:g}."
                )
        if self.keep:
            self._kept[path] = stored
        return stored


def apply_symmetry(image: NDArray[Any], number: int) -> NDArray[Any]:
    """Return an image [..., H, W] under a D4 symmetry: rotated by `number` % 4 quarter turns, mirrored from 4 on."""
    rotated = np.rot90(image, number % 4, axes=(-2, -1))
    return rotated[..., ::-1] if number >= 4 else rotated


def to_image_tensor(chip: NDArray[Any], modality: Modality) -> Tensor:
    """Return a chip from `ChipReader` as the input of a tokenizer: float32 [bands, H, W], or class ids [H, W] int64."""
    if modality.kind == "classes":
        return torch.from_numpy(chip[0].astype(np.int64))
    return torch.from_numpy(chip.astype(np.float32))


class Draw(NamedTuple):
    """Index of a training sample, and the seed of its crop and symmetry."""

    number: int
    seed: tuple[int, ...]

    def random(self) -> np.random.Generator:
        """Return the random generator for the sample's crop and symmetry."""
        return np.random.default_rng(self.seed)


class ResumableOrder(DistributedSampler[Any]):
    """Shuffled samples, in a different order in each epoch, which can start in the middle of an epoch.

    Order and draws depend only on seed, epoch and step. The class is a DistributedSampler because Lightning would
    replace another sampler and lose the start.

    Args:
        count: Number of samples.
        batch_size: Samples in a step of one process.
        seed: Seed, at least 0.
        first_epoch: Epoch to begin with.
        first_step: Step of that epoch to begin with; later epochs are complete.
        replicas: Number of processes.
        rank: Number of this process.
        draw: Function that returns the indices of an epoch's samples in their order; None for a permutation.

    Raises:
        DataError: There are fewer samples than a step takes.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int,
        first_epoch: int = 0,
        first_step: int = 0,
        *,
        replicas: int = 1,
        rank: int = 0,
        draw: Callable[[int], NDArray[np.int64]] | None = None,
    ) -> None:
        super().__init__(range(count), num_replicas=replicas, rank=rank, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.count = count
        self.batch_size = batch_size
        self.steps = count // (batch_size * replicas)
        if self.steps == 0:
            raise DataError(
                f"{count} training samples do not fill one step of {batch_size} x {replicas} processes. Lower "
                "batch_size or add samples."
            )
        self.first_epoch, self.first_step = first_epoch, first_step
        self.draw = draw
        self.set_epoch(self.first_epoch)

    def __len__(self) -> int:
        """Return the number of samples that this process gets in a whole epoch."""
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[Draw]:
        epoch = self.epoch
        order = self.draw(epoch) if self.draw is not None else self._permutation(epoch)
        first = self.first_step if epoch == self.first_epoch else 0
        for step in range(first, self.steps):
            begin = (step * self.num_replicas + self.rank) * self.batch_size
            for position in range(begin, begin + self.batch_size):
                yield Draw(int(order[position]), (self.seed, epoch, position))

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(self.count)


class ResumableDataModule(LightningDataModule):
    """Loaders over `train_data` and `val_data`, which are indexed by a `Draw` in training and an int in validation.

    A data set may have `draw_order`, which returns the indices of an epoch's samples in their order, and `collate`,
    which makes a batch of samples.

    Args:
        batch_size: Samples per step and process.
        num_workers: Number of processes that read.
        seed: Seed of order, crops and symmetries.
    """

    train_data: Dataset[Any]
    val_data: Dataset[Any]

    def __init__(self, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    def train_dataloader(self) -> Any:
        """Return training batches, beginning with the next one for the trainer."""
        trainer = self.trainer
        data: Any = self.train_data
        order = ResumableOrder(
            len(data),
            self.batch_size,
            self.seed,
            *(next_batch(trainer) if trainer else (0, 0)),
            replicas=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
            draw=getattr(data, "draw_order", None),
        )
        return self._loader(data, sampler=order, drop_last=True)

    def val_dataloader(self) -> Any:
        """Return validation batches."""
        return self._loader(self.val_data)

    def _loader(self, data: Dataset[Any], **options: Any) -> DataLoader[Any]:
        workers = self.num_workers
        options["collate_fn"] = getattr(data, "collate", None)
        return DataLoader(data, self.batch_size, num_workers=workers, persistent_workers=workers > 0, **options)


class PretrainingDataModule(ResumableDataModule):
    """Loaders over chips in folders.

    Args:
        train_split: File with the ids for training.
        val_split: File with the ids for validation.
        batch_size: Samples per step and process.
        num_workers: Number of processes that read.
        seed: Seed of order, crops and symmetries.

    Raises:
        ConfigError: Only one split is given.
    """

    folders: Mapping[str, ChipFolder]
    """Folders of the chips by modality."""
    side: int
    """Side in pixels of a crop or tile."""
    chips_are_samples = True
    """Whether a chip is one sample; otherwise each tile of a chip is one."""

    def __init__(
        self, train_split: str | None, val_split: str | None, batch_size: int, num_workers: int, seed: int
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        if (train_split is None) != (val_split is None):
            raise ConfigError("Give both train_split and val_split, or neither of them.")
        self.train_split = train_split
        self.val_split = val_split

    def choose(self) -> tuple[list[str], list[str]]:
        """Return the ids of the chips for training and for validation; errors as in `choose_chips`."""
        folders = list(self.folders.values())
        train = choose_chips(folders, self.train_split, validation=False)
        return train, choose_chips(folders, self.val_split, validation=True)
