"""Chips from many files, read batch by batch, so that memory holds one batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.evaluate.options import ChipOptions
from terramind_plugin.model.modalities import Modality, resolve
from terramind_plugin.model.variants import Variant
from terramind_plugin.raster.chips import Chip, read_chip
from terramind_plugin.raster.missing import warn_of_undeclared
from terramind_plugin.raster.reader import Expected, Source

CHIP_ENDINGS = (".tif", ".tiff")


@dataclass(frozen=True)
class ChipFiles:
    """Rasters of one modality; only their middles are read, since models were trained on images of one size."""

    paths: Sequence[Path]
    modality: Modality
    side: int
    """Maximum height and width that is read, in pixels."""
    patch: int
    """Patch size in pixels; heights and widths are padded to multiples of it with mirrored pixels."""
    bands: Sequence[str] = ()
    """Names of the files' bands; needed only if their order is not the modality's and the files do not name them."""

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
    """Yield at most `batch_size` chips at a time, in their order; chips of a batch have one shape."""
    batch: list[Chip] = []
    for chip in chips:
        if batch and (len(batch) == batch_size or chip.values.shape != batch[0].values.shape):
            yield batch
            batch = []
        batch.append(chip)
    if batch:
        yield batch


def find_rasters(paths: Sequence[Path]) -> list[Path]:
    """Return the given files, and the rasters in given folders, sorted by name.

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


def open_chips(paths: Sequence[Path], options: ChipOptions, variant: Variant) -> ChipFiles:
    """Return rasters that are read with the size, bands and padding that a model needs.

    Raises:
        ConfigError: The modality is not an image, or a number is not possible.
    """
    if options.batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {options.batch_size}.")
    modality = image_modality(options.modality)
    return ChipFiles(paths, modality, variant.img_size, variant.patch_size, options.bands or [])


def image_modality(name: str) -> Modality:
    """Return a modality.

    Raises:
        ConfigError: There is no such modality, or it is not an image.
    """
    entry = resolve(name)
    if entry.kind != "image":
        raise ConfigError(f"{entry.name} is not an image. Give one of the image modalities, e.g. S2L2A.")
    return entry
