"""TerraMesh as an iterable data set of PyTorch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from terramind_plugin.errors import ConfigError, DataError, check_seed
from terramind_plugin.shards.catalogue import OnError, SamplePlace, ShardCatalogue
from terramind_plugin.shards.decode import read_details, read_image_of, read_sample_centre
from terramind_plugin.shards.filters import choose_samples
from terramind_plugin.shards.order import Numbers, check_weights, draw_order, part_of
from terramind_plugin.shards.stores import open_store
from terramind_plugin.shards.zarr_zip import ZarrGroup

logger = logging.getLogger("terramind_plugin")

BUFFER = 4096
"""Default number of places by which shuffling moves a sample."""
CACHE = "~/.cache/terramind_plugin/shards"
"""Folder for indices of remote shards, and for copies where a server sends whole files only."""
VALIDATION_SHARE = 20
"""Without a split for validation, every 20th sample is for validation."""
MISSING_SIZE = 264
"""Height and width in pixels of the NaN that stand for a missing modality of a sample without any image."""


class Read(NamedTuple):
    """One sample as it is in the shards."""

    key: str
    images: dict[str, NDArray[np.float32]]
    """Images [bands, H, W] or [bands, dates, H, W] of the modalities that the sample has, by the caller's names."""
    centre: tuple[float, float]
    """Longitude and latitude in degrees; NaN if unknown."""
    details: dict[str, dict[str, Any]]
    """What each modality says of itself, where asked for."""


class TerraMeshSamples:
    """The samples of a split by their numbers.

    Args:
        root: Folder that holds train/ and val/, URL of such a folder, or hub:ORG/NAME[@REVISION].
        split: Folder of the split.
        modalities: Modalities to read, in any spelling.
        on_error: 'raise' to stop at a damaged shard or sample, 'skip' to leave it out and count it.
        max_cloud_cover: Largest cloud_cover in the metadata table.
        area: West, south, east and north in degrees.
        ranges: Smallest and largest value by further columns of the table.
        weights: Share of the samples by subset.
        shuffle: Whether epochs are shuffled.
        seed: Start of the order.
        buffer: Number of places by which shuffling moves a sample.
        details: Whether to read what samples say of themselves.
        revision: Branch, tag or commit on the hub.
        cache_dir: Folder for indices of shards.

    Raises:
        ConfigError: An argument is wrong.
        DataError: The data set is missing or damaged.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        modalities: Sequence[str],
        *,
        on_error: OnError = "raise",
        max_cloud_cover: float | None = None,
        area: Sequence[float] | None = None,
        ranges: Mapping[str, Sequence[float]] | None = None,
        weights: Mapping[str, float] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        buffer: int = BUFFER,
        details: bool = False,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"on_error must be raise or skip, got {on_error!r}.")
        if isinstance(buffer, bool) or not isinstance(buffer, int) or buffer < 1:
            raise ConfigError(f"buffer must be a whole number above 0, got {buffer!r}.")
        self.seed, self.shuffle, self.buffer = check_seed(seed), shuffle, buffer
        copies = Path(cache_dir or CACHE).expanduser()
        store = open_store(root, revision, copies)
        self.revision = store.revision
        self.catalogue = ShardCatalogue(
            store, split, modalities, on_error, cache_dir or (copies if store.remote else None)
        )
        self.details = details
        self.weights = dict(weights) if weights is not None else None
        if self.weights is not None:
            check_weights(self.weights, list(dict.fromkeys(self.catalogue.subsets)))
        filtered = max_cloud_cover is not None or area is not None or bool(ranges)
        conditions = {"max_cloud_cover": max_cloud_cover, "area": area, "ranges": ranges}
        self._masks = choose_samples(self.catalogue, **conditions) if filtered else None  # type: ignore[arg-type]
        self.damaged = _shared_counts(1)
        """Number of samples that could not be decoded so far, in this process and its workers."""

    def order(self, epoch: int) -> Numbers:
        """Return the numbers of an epoch's samples in their order.

        Raises:
            DataError: No sample is left.
        """
        shards = []
        for shard in range(len(self.catalogue.shards)):
            numbers = self.catalogue.numbers(shard)
            keep = ~self.catalogue.wrong(shard)
            if self._masks is not None:
                keep = keep & self._masks[shard]
            if len(self.catalogue.lacking.get(self.catalogue.subsets[shard], ())) == len(self.catalogue.modalities):
                keep = np.zeros_like(keep)  # nothing of what is asked for
            shards.append(numbers[keep])
        order = draw_order(
            shards,
            self.catalogue.subsets,
            shuffle=self.shuffle,
            seed=self.seed,
            epoch=epoch,
            buffer=self.buffer,
            weights=self.weights,
        )
        if not len(order):
            raise DataError(f"{self.catalogue.store.shown(self.catalogue.split)} has no sample to read.")
        return order

    def held_out(self, *, validation: bool) -> TerraMeshSamples:
        """Return every twentieth sample, for validation, or all others.

        Args:
            validation: Whether to return the samples for validation.
        """
        made = copy(self)
        shards = range(len(self.catalogue.shards))
        masks = self._masks or [np.ones(len(self.catalogue.numbers(shard)), bool) for shard in shards]
        made._masks = [
            mask & ((self.catalogue.numbers(shard) % VALIDATION_SHARE == 0) == validation)
            for shard, mask in zip(shards, masks, strict=True)
        ]
        made.shuffle = self.shuffle and not validation
        return made

    @property
    def skipped(self) -> dict[str, int]:
        """Number of samples left out so far by reason; those of a loader's workers are included."""
        found = dict(self.catalogue.skipped)
        if int(self.damaged):
            found["damaged"] = int(self.damaged)
        return found

    def read(self, number: int) -> Read | None:
        """Return a sample, or None for a damaged one that is skipped.

        Raises:
            DataError: The sample is damaged; the message names shard and key.
        """
        place = self.catalogue.place(number)
        try:
            return self._read(place)
        except DataError as error:
            if self.catalogue.on_error == "raise":
                raise
            logger.warning("Skipped: %s", error)
            self.damaged += 1
            return None

    def _read(self, place: SamplePlace) -> Read:
        catalogue = self.catalogue
        images: dict[str, NDArray[np.float32]] = {}
        details: dict[str, dict[str, Any]] = {}
        centre, size = (np.nan, np.nan), (0, 0)
        for name, modality in catalogue.modalities.items():
            content = catalogue.read(name, place)
            if content is None:
                continue
            group = ZarrGroup(content, catalogue.shown(name, place))
            images[name] = read_image_of(group, modality)
            if images[name].shape[-2:] != size and any(size):
                raise DataError(
                    f"{group.name} has {images[name].shape[-2]} x {images[name].shape[-1]} pixels, "
                    f"{next(iter(images))} has {size[0]} x {size[1]}. Modalities of a sample must lie on one grid."
                )
            size = images[name].shape[-2:]
            if np.isnan(centre).any():
                centre = read_sample_centre(group)
            if self.details:
                details[name] = read_details(group)
        return Read(catalogue.key(place), images, centre, details)


class TerraMeshDataset(IterableDataset[dict[str, Any]]):
    """Samples of TerraMesh, or of another data set of its layout such as SSL4EO-S12 v1.1.

    A sample is a dict: 'key'; 'image' with float32 tensors [bands, 264, 264] by modality, as published: offsets are
    neither added nor taken away, radar and NDVI may hold NaN; 'modality_mask' with True for each modality that the
    sample has and that is not NaN all over; 'center', float64 longitude and latitude in degrees. A missing modality is
    NaN: TerraMesh has S1GRD or S1RTC of a place, never both. Samples of several dates are [bands, dates, H, W].

    Each sample comes once in an epoch, whatever the numbers of shards, ranks and workers. `set_epoch` changes the
    order: call it before each epoch. `state_dict` and `load_state_dict` go on in the middle of an epoch. With workers
    of a DataLoader only the loop over the loader knows how many batches were used: count them, and use `start`.

    Reads with tarfile, zipfile and numcodecs alone. Source: https://huggingface.co/datasets/ibm-esa-geospatial/TerraMesh.

    Args:
        root: Folder that holds train/ and val/, URL of such a folder, or hub:ORG/NAME[@REVISION].
        split: Folder of the split.
        modalities: Modalities to read, in any spelling; they are the keys of 'image'.
        shuffle: Whether to shuffle.
        seed: Start of the order.
        buffer: Number of places by which shuffling moves a sample from where its shard has it.
        weights: Share of the samples by subset, e.g. {majortom: 0.8, ssl4eos12: 0.2}; an epoch ends with the first
            subset that has no sample left. None for all samples.
        max_cloud_cover: Largest cloud_cover in the metadata table, in its unit.
        area: West, south, east and north in degrees, compared with the metadata table.
        ranges: Smallest and largest value by further columns of the metadata table.
        on_error: 'raise' to stop at damage, 'skip' to leave it out; `skipped` counts.
        batch_size: Batch size of the loader, if batches are to be the same for any number of workers.
        details: Whether samples have 'details': by modality time, crs, x, y, sample, cloud_mask and file_id as
            published.
        rank: Number of this process; by default that of torch.distributed.
        world_size: Number of processes; by default that of torch.distributed.
        revision: Branch, tag or commit on the hub; the commit in use is the attribute `revision`.
        cache_dir: Folder for indices of shards; by default only those of remote shards are kept, in the user's cache.

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
        # Shared, so that set_epoch reaches persistent workers: epoch, samples used before, number of calls of start.
        self._position = _shared_counts(3)
        self._begun = 0
        self._used = 0

    @property
    def skipped(self) -> dict[str, int]:
        """Number of samples left out so far by reason."""
        return self.samples.skipped

    def _process(self) -> tuple[int, int]:
        if self._rank is not None and self._world_size is not None:
            return self._rank, self._world_size
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is spawned knows nothing of torch.distributed.
        rank, ranks = self._process()
        return {**self.__dict__, "_rank": rank, "_world_size": ranks}

    def __len__(self) -> int:
        """Return the number of samples that this process gets in a whole epoch, including those to be skipped."""
        rank, ranks = self._process()
        return len(
            part_of(np.arange(self._count), rank=rank, ranks=ranks, worker=0, workers=1, batch_size=self.batch_size)
        )

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch, whose order differs."""
        self.start(epoch, 0)

    def start(self, epoch: int, used: int) -> None:
        """Go on in the middle of an epoch.

        Args:
            epoch: Number of the epoch.
            used: Number of samples that this process has had in that epoch; whole batches of `batch_size`.

        Raises:
            ConfigError: A number is negative, or not of whole batches.
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
        """Return the position: epoch, samples used in it, and a hash of what they were drawn from."""
        return {
            "epoch": int(self._position[0]),
            "used": self._used,
            "shards": self._fingerprint(),
            "revision": self.revision,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position.

        Args:
            state: Result of `state_dict` of a data set with the same arguments.

        Raises:
            ConfigError: The data set has other shards, samples or arguments now.
        """
        if state["shards"] != self._fingerprint():
            raise ConfigError(
                f"{self.samples.catalogue.store.root} is not what the position belongs to: other shards, numbers of "
                "samples, filters, weights, seed or revision. Give the same arguments, or start anew."
            )
        # A batch that was broken off is given again as a whole.
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
        # Once: a second loop over the data set begins at the beginning.
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


def _shared_counts(count: int) -> Tensor:
    """Return zeros that this process and its workers share."""
    counts: Tensor = torch.zeros(count, dtype=torch.long).share_memory_()  # type: ignore[no-untyped-call]
    return counts


def _all_nan(image: NDArray[np.float32]) -> bool:
    return bool(np.isnan(image.flat[0])) and bool(np.isnan(image).all())
