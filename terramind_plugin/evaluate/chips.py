"""Chips of many files, read batch by batch, so that memory holds one batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.modalities import Modality, resolve
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.raster.chips import Chip, read_chip
from terramind_plugin.raster.missing import warn_of_undeclared
from terramind_plugin.raster.reader import Expected, Source

CHIP_ENDINGS = (".tif", ".tiff")


@dataclass(frozen=True)
class ChipFiles:
    """Rasters of one modality. Only their middles are read, since a model has seen images of one size."""

    paths: Sequence[Path]
    modality: Modality
    side: int
    """Largest height and width that is read, in pixels."""
    patch: int
    """Number whose multiples heights and widths become, by mirrored pixels."""
    bands: Sequence[str] = ()
    """Names of the files' bands, if their order is another one and the files do not name them."""

    def __len__(self) -> int:
        return len(self.paths)

    def positions(self, *, required: bool = False) -> list[tuple[float, float] | None]:
        """Open all files, so that mistakes show early, and return longitude and latitude of each middle in degrees.

        Args:
            required: Whether a file without a CRS is an error; its position is None otherwise.

        Raises:
            DataError: A file cannot be opened, has other bands, or has no CRS.
        """
        found = []
        for path in self.paths:
            source = Source(path, Expected.of(self.modality, self.bands))
            source.close()
            found.append(source.grid.centre())
            if required and found[-1] is None:
                raise DataError(f"{path} has no CRS, so its true position is unknown. Leave --labelled out.")
        return found

    def __iter__(self) -> Iterator[Chip]:
        """Yield the middle of each raster.

        Raises:
            DataError: A file cannot be read, or holds no data there.
        """
        for path in self.paths:
            chip = read_chip(path, self.modality, side=self.side, multiple=self.patch, bands=self.bands)
            warn_of_undeclared(path, chip.undeclared)
            yield chip


def batches(chips: Iterable[Chip], batch_size: int) -> Iterator[list[Chip]]:
    """Yield at most `batch_size` chips at a time, in their order; chips of a batch have one shape.

    Raises:
        ConfigError: batch_size is less than 1.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
    batch: list[Chip] = []
    for chip in chips:
        if batch and (len(batch) == batch_size or chip.values.shape != batch[0].values.shape):
            yield batch
            batch = []
        batch.append(chip)
    if batch:
        yield batch


def find_rasters(paths: Sequence[Path]) -> list[Path]:
    """Return files as they are, and the rasters in folders by name.

    Raises:
        DataError: A folder has no raster.
    """
    found: list[Path] = []
    for path in paths:
        inside = (
            sorted(one for one in path.iterdir() if one.suffix.lower() in CHIP_ENDINGS) if path.is_dir() else [path]
        )
        if not inside:
            raise DataError(f"No raster ({', '.join(CHIP_ENDINGS)}) in {path}.")
        found += inside
    return found


def size_of(variant: str, modality: str) -> tuple[Modality, int, int]:
    """Return an image modality, and image and patch size of a model in pixels.

    Raises:
        ConfigError: The model is unknown, or the modality is no image.
    """
    check_variant(variant)
    entry = resolve(modality)
    if entry.kind != "image":
        raise ConfigError(f"{entry.name} is no image. Give one of the image modalities, e.g. S2L2A.")
    return entry, VARIANTS[variant].img_size, VARIANTS[variant].patch_size


def check_variant(name: str) -> None:
    """Raise a ConfigError if there is no such model."""
    if name not in VARIANTS:
        raise ConfigError(f"Unknown model '{name}'. Known: {', '.join(VARIANTS)}.")


def best_device() -> torch.device:
    """Return the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
