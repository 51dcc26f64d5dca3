"""Time series on disk: rasters of one modality in the order of time, read as one image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path

import numpy as np

from terramind_plugin.errors import DataError
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.raster.reader import Expected, FilledPixels, Source

MOST_SHOWN = 4
"""Maximum number of dates in a preview."""
DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)([-_.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?:T(\d{4,6}))?(?!\d)")
"""A date in a file name, e.g. 20240131, 2024-01-31 or 20240131T101031."""


class Series:
    """The dates of one modality, read on one grid.

    Args:
        paths: Rasters in the order of time; each holds one date or several.
        expected: Bands and units of one date.
        grid: Grid on which the rasters are read; None for that of the first raster.
        threads: Number of threads that decode blocks, see `Source`.
        warn: Whether to warn of values that look like those of another unit.

    Raises:
        DataError: A raster cannot be used, or the dates in the names of the files are not in the order of time.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        expected: Expected,
        grid: Grid | None = None,
        threads: int = 1,
        *,
        warn: bool = True,
    ) -> None:
        check_time(paths)
        self.path, self.expected = paths[0], expected
        self.sources: list[Source] = []
        with ExitStack() as stack:
            for path in paths:
                source = stack.enter_context(closing(Source(path, expected, grid, threads, warn=warn)))
                self.sources.append(source)
                grid = grid or source.grid
            stack.pop_all()
        self.grid = self.sources[0].grid
        self.dates = sum(source.dates for source in self.sources)
        self.warped = any(source.warped for source in self.sources)

    def read(self, row: int, column: int, height: int, width: int) -> FilledPixels:
        """Return a window as `Source.read` does, with values [bands, dates, height, width].

        A pixel is valid if some band was measured at some date. Dates without data are NaN if `expected` has
        `keep_missing`.
        """
        parts = [source.read(row, column, height, width) for source in self.sources]
        measured = [source.measured for source in self.sources]
        bands = len(self.expected.bands)
        values = [part.values.reshape(-1, bands, *part.values.shape[1:]).swapaxes(0, 1) for part in parts]
        if self.expected.keep_missing:
            values = [
                np.where(known[:, None, None], image, np.float32(np.nan))
                for image, known in zip(values, measured, strict=True)
            ]
        valid = np.logical_or.reduce([part.valid for part in parts])
        return FilledPixels(values[0] if len(values) == 1 else np.concatenate(values, axis=1), valid)

    keep_type = False
    """Windows of a series are always float32, because a date may be missing."""

    def previews(self, size: tuple[int, int], bands: Sequence[int]) -> list[tuple[int, FilledPixels]]:
        """Return the numbers (from 1) and the reduced images of some dates of the whole image.

        Args:
            size: Height and width in pixels.
            bands: Positions of the bands to read among those of one date.
        """
        found = []
        for source, first, shown in self._shown():
            pixels = source.preview(size, self._bands(shown, bands))
            for number, values in zip(shown, np.split(pixels.values, len(shown)), strict=True):
                found.append((first + number + 1, FilledPixels(values, pixels.valid)))
        return found

    def keep_rows(self, height: int, size: tuple[int, int] | None = None, bands: Sequence[int] = ()) -> None:
        """Prepare for windows that are read row by row of windows, see `Source.keep_rows`."""
        shown = {id(source): numbers for source, _, numbers in self._shown()}
        for source in self.sources:
            numbers = shown.get(id(source))
            source.keep_rows(height, size if numbers else None, self._bands(numbers or [], bands))

    def cache_bytes(self, height: int) -> int:
        """Return the size in bytes of the decoded blocks that GDAL must keep, see `Source.cache_bytes`."""
        return sum(source.cache_bytes(height) for source in self.sources)

    @property
    def undeclared(self) -> int:
        """Return the number of undeclared missing pixels so far, see `Source.undeclared`."""
        return sum(source.undeclared for source in self.sources)

    def close(self) -> None:
        """Close the files."""
        for source in self.sources:
            source.close()

    def _shown(self) -> list[tuple[Source, int, list[int]]]:
        """Return the rasters of a preview, each with the number of dates before it and its dates to show."""
        numbers = np.unique(np.linspace(0, self.dates - 1, min(self.dates, MOST_SHOWN)).round().astype(int))
        found, first = [], 0
        for source in self.sources:
            here = [int(number) - first for number in numbers if first <= number < first + source.dates]
            if here:
                found.append((source, first, here))
            first += source.dates
        return found

    def _bands(self, dates: Sequence[int], bands: Sequence[int]) -> list[int]:
        """Return the positions of bands of some dates of one raster."""
        return [date * len(self.expected.bands) + band for date in dates for band in bands]


def open_input(
    paths: Sequence[Path], expected: Expected, grid: Grid | None = None, threads: int = 1, *, warn: bool = True
) -> Source | Series:
    """Return the raster of a modality, or its series, opened for reading.

    Args:
        paths: Files of the modality in the order of time; one file if no series is expected.
        expected: Bands and units.
        grid: As for `Source`.
        threads: As for `Source`.
        warn: As for `Source`.

    Raises:
        DataError: A file cannot be used.
    """
    if expected.dated:
        return Series(paths, expected, grid, threads, warn=warn)
    (path,) = paths
    return Source(path, expected, grid, threads, warn=warn)


def check_time(paths: Sequence[Path]) -> None:
    """Raise a DataError if all names of files hold a date and the dates are not in the order of time."""
    dated = [(date_of(path), path) for path in paths]
    for (earlier, one), (later, other) in pairwise(dated):
        if earlier and later and later < earlier:
            raise DataError(
                f"{other.name} comes after {one.name}, but its date is earlier. Give the files in the order of time."
            )


def date_of(path: Path) -> str:
    """Return the last date in a file's name as sortable text; '' if there is none."""
    found = DATE.findall(path.name)
    return "" if not found else "".join(found[-1][:1] + found[-1][2:])
