"""Completeness of GeoTIFFs: GDAL does not report a disk that was full when it closed a file."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # no public name, though some functions of rasterio raise it
from rasterio.enums import Compression, Interleaving
from rasterio.errors import RasterioError
from rasterio.windows import Window

from terramind_plugin.errors import one_line

GDAL_ERRORS = (RasterioError, CPLE_BaseError, OSError)
"""Errors of rasterio when a raster cannot be read or written."""
_ROWS = 256
"""Minimum number of rows that are read at once."""

PLACE = ("OFFSET", "SIZE")
"""Report of GDAL on a block."""

Rows = Callable[[int, int], NDArray]
"""Function that returns the rows of an image from a first one up to but without a last one, [bands, rows, width]."""


def check_complete(path: Path, rows: Rows | None = None, overviews: int | None = None) -> None:
    """Read a closed GeoTIFF and its overviews again, and compare every block with what was written.

    Args:
        path: The file.
        rows: Expected values; None compares the checksums of the blocks, where the compression is deflate.
        overviews: Expected number of overviews; None accepts any number.

    Raises:
        OSError: A block or an overview is missing or damaged, or values differ from the expected ones.
        RasterioError: The file or a block of it cannot be read.
    """
    with rasterio.open(path, driver="GTiff") as file:
        found = len(file.overviews(1))
        if rows is None:
            check_blocks(path, file)
        else:
            _check_presence(file)
            _check_values(file, rows)
    check_overviews(path, found if overviews is None else overviews)


def check_overviews(path: Path, count: int) -> None:
    """Read the overviews of a closed GeoTIFF again; arguments and errors as in `check_complete`."""
    with rasterio.open(path, driver="GTiff") as file:
        for band in file.indexes:
            if len(file.overviews(band)) != count:
                raise OSError(f"{len(file.overviews(band))} overviews were written of {count}")
    for level in range(count):
        with rasterio.open(path, driver="GTiff", overview_level=level) as file:
            check_blocks(path, file)


def is_complete(path: Path) -> bool:
    """Return whether a path is a GeoTIFF without missing or damaged blocks."""
    try:
        check_complete(path)
    except GDAL_ERRORS:
        return False
    return True


def check_blocks(path: Path, file: Any) -> None:
    """Check that no block of a GeoTIFF is missing or, where deflate gave it a checksum, damaged.

    Args:
        path: The file.
        file: The file, or an overview of it, opened by rasterio.

    Raises:
        OSError: A block is missing or damaged.
        RasterioError: A block cannot be decoded.
    """
    _check_presence(file)
    if file.compression is Compression.deflate:
        check_checksums(path, file)
    else:
        _check_values(file, None)


def check_checksums(path: Path, file: Any) -> None:
    """Compare the blocks of a GeoTIFF with their deflate checksums, which GDAL ignores.

    Args:
        path: The file; rasters of another format or compression pass.
        file: The file, or an overview of it, opened by rasterio.

    Raises:
        OSError: A block is damaged.
    """
    if file.driver != "GTiff" or file.compression is not Compression.deflate:
        return
    with open(path, "rb") as raw:
        for where, offset, size in _blocks(file):
            raw.seek(offset)
            try:
                if size:
                    zlib.decompress(raw.read(size))
            except zlib.error as error:
                raise OSError(f"the block in {where} is damaged") from error


def _check_presence(file: Any) -> None:
    """Raise an OSError if a block was never written: GDAL reads it as zeros."""
    for where, _, size in _blocks(file):
        if not size:
            raise OSError(f"the block in {where} was not written")


def _check_values(file: Any, rows: Rows | None) -> None:
    """Decode all blocks with GDAL, and compare them with the expected values, if those are given."""
    tall = max(1, *(shape[0] for shape in file.block_shapes))
    step = -(-_ROWS // tall) * tall  # whole blocks, so that none is decoded twice
    for first in range(0, file.height, step):
        last = min(first + step, file.height)
        written = file.read(window=Window(0, first, file.width, last - first))
        if rows is not None and not _equal(written, rows(first, last)):
            raise OSError(f"rows {first} to {last - 1} are not what was written")


def _blocks(file: Any) -> Iterator[tuple[str, int, int]]:
    """Yield the position of each block in the image, in words, and its offset and size in the file, 0 if missing."""
    bands = file.indexes if file.interleaving is Interleaving.band else file.indexes[:1]
    for band in bands:
        tall, wide = file.block_shapes[band - 1]
        for y in range(-(-file.height // tall)):
            for x in range(-(-file.width // wide)):
                offset, size = (file.get_tag_item(f"BLOCK_{name}_{x}_{y}", "TIFF", bidx=band) for name in PLACE)
                yield f"row {y}, column {x}", int(offset or 0), int(size or 0)


def reason_of(error: BaseException) -> str:
    """Return in one line why a raster could not be read or written, in GDAL's own words where rasterio hides them."""
    while error.__cause__ is not None and "See previous exception" in str(error):
        error = error.__cause__
    return one_line(error)


def _equal(written: NDArray, expected: NDArray) -> bool:
    return np.array_equal(written, expected, equal_nan=expected.dtype.kind == "f")
