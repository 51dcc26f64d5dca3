"""TerraMesh as an iterable PyTorch data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from terramind_plugin.errors import ConfigError
from terramind_plugin.shards.catalogue import OnError
from terramind_plugin.shards.order import part_of
from terramind_plugin.shards.samples import BUFFER, Read, TerraMeshSamples, shared_counts

MISSING_SIZE = 264
"""Height and width in pixels of a missing modality (all NaN) in a sample without any image."""


class TerraMeshDataset(IterableDataset[dict[str, Any]]):
    """Samples of TerraMesh, or of another data set with its layout such as SSL4EO-S12 v1.1.

    A sample is a dict with these entries: 'key'; 'image', float32 tensors [bands, 264, 264] by modality, as published
    (offsets are neither added nor removed, radar and NDVI may contain NaN); 'modality_mask', True for each modality
    that the sample has and that is not all NaN; 'center', float64 longitude and latitude in degrees. A missing modality
    is all NaN: for each place TerraMesh has either S1GRD or S1RTC. Samples of several dates are [bands, dates, H, W].

    Each sample comes once in an epoch, whatever the numbers of shards, ranks and workers. `set_epoch` changes the
    order: call it before each epoch. `state_dict` and `load_state_dict` resume in the middle of an epoch. With workers
    of a DataLoader, only the loop over the loader knows how many batches were used: count them, and use `start`.

    Shards are read with tarfile, zipfile and numcodecs only.
    Source: https://huggingface.co/datasets/ibm-esa-geospatial/TerraMesh.

    Args:
        root: Folder that holds train/ and val/, URL of such a folder, or hub:ORG/NAME[@REVISION].
        split: Folder of the split.
        modalities: Modalities to read, in any spelling; they are the keys of 'image'.
        shuffle: Whether to shuffle.
        seed: Seed of the order.
        buffer: Maximum number of places by which shuffling moves a sample within its shards.
        weights: Share of the samples by subset, e.g. {majortom: 0.8, ssl4eos12: 0.2}; an epoch ends when the first
            subset has no sample left. None for all samples.
        max_cloud_cover: Maximum cloud_cover in the metadata table, in its unit.
        area: West, south, east and north in degrees, compared with the metadata table.
        ranges: Minimum and maximum for further columns of the metadata table.
        on_error: 'raise' to stop at damage, 'skip' to leave out damaged samples and count them in `skipped`.
        batch_size: Batch size of the loader, needed if batches must be the same for any number of workers.
        details: Whether samples have 'details': time, crs, x, y, sample, cloud_mask and file_id of each modality, as
            published.
        rank: Number of this process (default: from torch.distributed).
        world_size: Number of processes (default: from torch.distributed).
        revision: Branch, tag or commit on the hub. The attribute `revision` is the commit in use.
        cache_dir: Folder for indices of shards (default: only indices of remote shards, in the user's cache).

    Raises:
        ConfigError: An argument is wrong.
        DataError: The data set is missing or damaged.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "val",
        modalities: Sequence[str] = ("S2L2A", "S1RTC", "S1GRD", "DEM"),
        shuffle: bool = False,
        seed: int = 0,
        *,
        buffer: int = BUFFER,
        weights: Mapping[str, float] | None = None,
        max_cloud_cover: float | None = None,
        area: Sequence[float] | None = None,
        ranges: Mapping[str, Sequence[float]] | None = None,
        on_error: OnError = "raise",
        batch_size: int = 1,
        details: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__()
        if (rank is None) != (world_size is None) or (rank is not None and not 0 <= rank < (world_size or 0)):
            raise ConfigError(f"Give both rank and world_size, rank below world_size, got {rank} and {world_size}.")
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
        self.samples = TerraMeshSamples(
            root, split, modalities, on_error=on_error, max_cloud_cover=max_cloud_cover, area=area, ranges=ranges,
            weights=weights, shuffle=shuffle, seed=seed, buffer=buffer, details=details, revision=revision,
            cache_dir=cache_dir,
        )  # fmt: skip
        self.modalities = list(self.samples.catalogue.modalities)
        self.revision = self.samples.revision
        self.batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._count = len(self.samples.order(0))
        # Epoch, samples already used, number of calls of start; shared, so that set_epoch reaches persistent workers.
        self._position = shared_counts(3)
        self._begun = 0
        self._used = 0

    @property
    def skipped(self) -> dict[str, int]:
        """Return the number of samples left out so far, by reason."""
        return self.samples.skipped

    def _process(self) -> tuple[int, int]:
        if self._rank is not None and self._world_size is not None:
            return self._rank, self._world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def __getstate__(self) -> dict[str, Any]:
        # torch.distributed is not initialised in a spawned worker.
        rank, ranks = self._process()
        return {**self.__dict__, "_rank": rank, "_world_size": ranks}

    def __len__(self) -> int:
        """Return the number of samples of this process in a whole epoch, including those that will be skipped."""
        rank, ranks = self._process()
        return len(
            part_of(np.arange(self._count), rank=rank, ranks=ranks, worker=0, workers=1, batch_size=self.batch_size)
        )

    def set_epoch(self, epoch: int) -> None:
        """Start another epoch, which has its own order."""
        self.start(epoch, 0)

    def start(self, epoch: int, used: int) -> None:
        """Resume in the middle of an epoch.

        Args:
            epoch: Number of the epoch.
            used: Number of samples that this process has used in that epoch; a multiple of `batch_size`.

        Raises:
            ConfigError: A number is negative, or `used` is not a multiple of `batch_size`.
        """
        if epoch < 0 or used < 0 or used % self.batch_size:
            raise ConfigError(
                "epoch and used must not be negative, and used a multiple of batch_size "
                f"{self.batch_size}, got {epoch} and {used}."
            )
        self._position[0], self._position[1] = epoch, used
        self._position[2] += 1
        self._used = used

    def state_dict(self) -> dict[str, Any]:
        """Return the position: epoch, number of samples used in it, and a hash of the data set and the arguments."""
        return {
            "epoch": int(self._position[0]),
            "used": self._used,
            "shards": self._fingerprint(),
            "revision": self.revision,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume at a position.

        Args:
            state: Result of `state_dict` of a data set with the same arguments.

        Raises:
            ConfigError: The data set now has other shards, samples or arguments.
        """
        if state["shards"] != self._fingerprint():
            raise ConfigError(
                f"The position does not belong to {self.samples.catalogue.store.root}: shards, numbers of samples, "
                "filters, weights, seed or revision differ. Give the same arguments, or start again."
            )
        # An incomplete batch is repeated as a whole.
        self.start(int(state["epoch"]), int(state["used"]) // self.batch_size * self.batch_size)

    def _fingerprint(self) -> str:
        samples = self.samples
        settings = (samples.seed, samples.shuffle, samples.buffer, samples.weights, self._count, self._process()[1])
        return f"{samples.catalogue.fingerprint()} {settings}"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rank, ranks = self._process()
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        epoch, used, calls = self._position.tolist()
        # Only for the first loop: a second loop over the data set starts at the beginning.
        self._used = used if calls != self._begun else 0
        self._begun = calls
        numbers = part_of(
            self.samples.order(epoch),
            rank=rank,
            ranks=ranks,
            worker=worker,
            workers=workers,
            batch_size=self.batch_size,
            first_step=self._used // self.batch_size,
        )
        for number in numbers:
            read = self.samples.read(int(number))
            self._used += 1
            if read is not None:
                yield self._sample(read)

    def _sample(self, read: Read) -> dict[str, Any]:
        images, mask = {}, {}
        modalities = self.samples.catalogue.modalities
        some = next(iter(read.images.values()), None)
        shape = (MISSING_SIZE, MISSING_SIZE) if some is None else some.shape[1:]
        for name, modality in modalities.items():
            image = read.images.get(name)
            if image is None:
                images[name] = torch.full((len(modality.bands), *shape), torch.nan)
            else:
                images[name] = torch.from_numpy(image)
            mask[name] = torch.tensor(image is not None and not _all_nan(image))
        sample: dict[str, Any] = {
            "key": read.key,
            "image": images,
            "modality_mask": mask,
            "center": torch.tensor(read.centre, dtype=torch.float64),
        }
        return {**sample, "details": read.details} if self.samples.details else sample


def _all_nan(image: NDArray[np.float32]) -> bool:
    return bool(np.isnan(image.flat[0])) and bool(np.isnan(image).all())
