"""Access to the samples of TerraMesh's shards by number."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terramind_plugin.errors import ConfigError, DataError, check_seed
from terramind_plugin.shards.catalogue import OnError, SamplePlace, ShardCatalogue
from terramind_plugin.shards.decode import read_details, read_image_of, read_sample_centre
from terramind_plugin.shards.filters import choose_samples
from terramind_plugin.shards.order import VALIDATION_SHARE, Numbers, check_weights, draw_order
from terramind_plugin.shards.stores import open_store
from terramind_plugin.shards.zarr_zip import ZarrGroup

logger = logging.getLogger("terramind_plugin")

BUFFER = 4096
"""Default number of places by which shuffling moves a sample."""
CACHE = "~/.cache/terramind_plugin/shards"
"""Folder for indices of remote shards, and for copies of shards if a server sends whole files only."""


class Read(NamedTuple):
    """One sample, as stored in the shards."""

    key: str
    images: dict[str, NDArray[np.float32]]
    """Images [bands, H, W] or [bands, dates, H, W] of the modalities that the sample has, by the caller's names."""
    centre: tuple[float, float]
    """Longitude and latitude in degrees; NaN if unknown."""
    details: dict[str, dict[str, Any]]
    """Metadata of each modality; empty unless asked for."""


class TerraMeshSamples:
    """The samples of a split, accessed by number.

    Args:
        root: Folder that holds train/ and val/, URL of such a folder, or hub:ORG/NAME[@REVISION].
        split: Folder of the split.
        modalities: Modalities to read, in any spelling.
        on_error: 'raise' to stop at a damaged shard or sample, 'skip' to leave it out and count it.
        max_cloud_cover: Maximum cloud_cover in the metadata table.
        area: West, south, east and north in degrees.
        ranges: Minimum and maximum for further columns of the table.
        weights: Share of the samples by subset.
        shuffle: Whether epochs are shuffled.
        seed: Seed of the order.
        buffer: Maximum number of places by which shuffling moves a sample.
        details: Whether to read the metadata of samples.
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
        self.damaged = shared_counts(1)
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
                keep = np.zeros_like(keep)  # the subset has none of the modalities
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
        """Return the number of samples left out so far by reason, including those of a loader's workers."""
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
                    f"{group.name} has {images[name].shape[-2]} x {images[name].shape[-1]} pixels, but "
                    f"{next(iter(images))} has {size[0]} x {size[1]}. Modalities of a sample must lie on one grid."
                )
            size = images[name].shape[-2:]
            if np.isnan(centre).any():
                centre = read_sample_centre(group)
            if self.details:
                details[name] = read_details(group)
        return Read(catalogue.key(place), images, centre, details)


def shared_counts(count: int) -> Tensor:
    """Return zeros that this process and its workers share."""
    counts: Tensor = torch.zeros(count, dtype=torch.long).share_memory_()  # type: ignore[no-untyped-call]
    return counts
