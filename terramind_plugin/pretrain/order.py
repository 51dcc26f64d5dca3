"""The order of training samples: a function of seed, epoch and step, so that an interrupted run can go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DistributedSampler

from terramind_plugin.errors import DataError


class Draw(NamedTuple):
    """Which sample to take, and the seed of what is random about it."""

    number: int
    seed: tuple[int, ...]

    def random(self) -> np.random.Generator:
        """Return the source of the sample's crop and turn."""
        return np.random.default_rng(self.seed)


class ResumableOrder(DistributedSampler[Any]):
    """Shuffled samples, another order in each epoch, that can start in the middle of an epoch.

    As a DistributedSampler it is left alone by Lightning, which would replace another one and lose the start.

    Args:
        count: Number of samples.
        batch_size: Of one process.
        seed: Not negative.
        first_epoch: Epoch to begin with.
        first_step: Step in that epoch to begin with; later epochs are whole.
        replicas: Number of processes.
        rank: Number of this process.

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
        self.set_epoch(self.first_epoch)

    def __len__(self) -> int:
        """Return the number of samples that this process gets in a whole epoch."""
        return self.steps * self.batch_size

    def __iter__(self) -> Iterator[Draw]:
        epoch = self.epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
        first = self.first_step if epoch == self.first_epoch else 0
        for step in range(first, self.steps):
            begin = (step * self.num_replicas + self.rank) * self.batch_size
            for position in range(begin, begin + self.batch_size):
                yield Draw(int(order[position]), (self.seed, epoch, position))
