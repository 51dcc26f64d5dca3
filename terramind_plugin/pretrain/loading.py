"""What the data modules of both stages share: loaders whose order an interrupted run takes up again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from terramind_plugin.errors import ConfigError
from terramind_plugin.pretrain.order import ResumableOrder
from terramind_plugin.pretrain.training import next_batch
from terramind_plugin.samples.layout import ChipFolder, choose_chips


class PretrainingDataModule(LightningDataModule):
    """Loaders over `train_data` and `val_data`, which take a `Draw` in training and a number in validation.

    Args:
        train_split: List of ids.
        val_split: List of ids.
        batch_size: Samples a step and process.
        num_workers: Processes that read.
        seed: Of order, crops and turns.

    Raises:
        ConfigError: Only one split is given.
    """

    train_data: Dataset[Any]
    val_data: Dataset[Any]
    folders: Mapping[str, ChipFolder]
    """Where the chips are, by modality."""
    side: int
    """Side in pixels of what is cut of a chip."""
    chips_are_samples = True
    """Whether a sample is one chip; otherwise tiles of it are samples."""

    def __init__(
        self, train_split: str | None, val_split: str | None, batch_size: int, num_workers: int, seed: int
    ) -> None:
        super().__init__()
        if (train_split is None) != (val_split is None):
            raise ConfigError("Give both train_split and val_split, or none of them.")
        self.train_split = train_split
        self.val_split = val_split
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    def choose(self) -> tuple[list[str], list[str]]:
        """Return the ids of the chips for training and for validation; errors as in `choose_chips`."""
        folders = list(self.folders.values())
        train = choose_chips(folders, self.train_split, validation=False)
        return train, choose_chips(folders, self.val_split, validation=True)

    def train_dataloader(self) -> Any:
        """Return training batches, from the one on that the trainer needs next."""
        trainer = self.trainer
        data: Any = self.train_data
        first_epoch, first_step = next_batch(trainer) if trainer else (0, 0)
        order = ResumableOrder(
            len(data),
            self.batch_size,
            self.seed,
            first_epoch,
            first_step,
            replicas=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
        )
        return self._loader(data, sampler=order, drop_last=True)

    def val_dataloader(self) -> Any:
        """Return validation batches."""
        return self._loader(self.val_data)

    def _loader(self, data: Dataset[Any], **options: Any) -> DataLoader[Any]:
        return DataLoader(
            data,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            **options,
        )
