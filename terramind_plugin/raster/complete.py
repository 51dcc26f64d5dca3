"""Checks that a GeoTIFF is complete: GDAL does not report a full disk when it closes a file."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # not a public name, though functions of rasterio raise it
from rasterio.enums import Compression, Interleaving
from rasterio.errors import RasterioError
from rasterio.windows import Window

from terramind_plugin.errors import one_line

GDAL_ERRORS = (RasterioError, CPLE_BaseError, OSError)
"""Errors that rasterio raises if a raster cannot be read or written."""
ROWS = 256
"""Approximate number of rows that are read at once; fewer if they are long or have many bands."""
MOST_BYTES = 128 * 2**20
"""Target size in bytes of rows that are read at once."""
Rows = Callable[[int, int], NDArray[Any]]
"""Function of two row numbers: the rows from the first number to before the second, [bands, rows, width]."""


def check_complete(path: Path, rows: Rows | None = None, overviews: int | None = None) -> None:
    """Read a closed GeoTIFF and its overviews again, and compare every block with the values written.

    Args:
        path: The file.
        rows: Expected values; None checks only the checksums of the blocks, if the compression is deflate.
        overviews: Expected number of overviews; None accepts any number.

    Raises:
        OSError: A block or an overview is missing or damaged, or values differ from the expected ones.
        RasterioError: The file or a block of it cannot be read.
    """
    with rasterio.open(path, driver="GTiff") as file:
        found = len(file.overviews(1))
        _check_blocks(path, file, rows)
    check_overviews(path, found if overviews is None else overviews)


def check_overviews(path: Path, count: int) -> None:
    """Read the overviews of a closed GeoTIFF again; arguments and errors as in `check_complete`."""
    with rasterio.open(path, driver="GTiff") as file:
        for band in file.indexes:
            if len(file.overviews(band)) != count:
                raise OSError(f"{len(file.overviews(band))} of {count} overviews were written")
    for level in range(count):
        with rasterio.open(path, driver="GTiff", overview_level=level) as file:
            _check_blocks(path, file)


def is_complete(path: Path) -> bool:
    """Return whether a path is a GeoTIFF without missing or damaged blocks."""
    try:
        check_complete(path)
    except GDAL_ERRORS:
        return False
    return True


def check_checksums(path: Path, file: Any) -> None:
    """Check the checksums that deflate stores in the blocks of a GeoTIFF: GDAL ignores them.

    Args:
        path: The file; rasters of another format or compression pass.
        file: The same file, opened by rasterio; it may be an overview.

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


def _check_blocks(path: Path, file: Any, rows: Rows | None = None) -> None:
    """Raise an OSError if a block was never written (GDAL reads it as zeros), or differs from the expected values."""
    for where, _, size in _blocks(file):
        if not size:
            raise OSError(f"the block in {where} was not written")
    if rows is None and file.compression is Compression.deflate:
        check_checksums(path, file)
        return
    tall = max(1, *(shape[0] for shape in file.block_shapes))
    row = file.width * sum(np.dtype(name).itemsize for name in file.dtypes)
    step = max(1, -(-min(ROWS, MOST_BYTES // row) // tall)) * tall  # whole blocks, so that none is decoded twice
    for first in range(0, file.height, step):
        last = min(first + step, file.height)
        written = file.read(window=Window(0, first, file.width, last - first))
        if rows is not None and not _equal(written, rows(first, last)):
            raise OSError(f"rows {first} to {last - 1} differ from the values written")


def _blocks(file: Any) -> Iterator[tuple[str, int, int]]:
    """Yield the row and column of each block as text, and its offset and size in the file; 0 if it is missing."""
    bands = file.indexes if file.interleaving is Interleaving.band else file.indexes[:1]
    for band in bands:
        tall, wide = file.block_shapes[band - 1]
        for y in range(-(-file.height // tall)):
            for x in range(-(-file.width // wide)):
                offset, size = (
                    file.get_tag_item(f"BLOCK_{name}_{x}_{y}", "TIFF", bidx=band) for name in ("OFFSET", "SIZE")
                )
                yield f"row {y}, column {x}", int(offset or 0), int(size or 0)


def reason_of(error: BaseException) -> str:
    """Return the reason of an error in one line, with GDAL's own message if rasterio hides it."""
    while error.__cause__ is not None and "See previous exception" in str(error):
        error = error.__cause__
    return one_line(error)


def _equal(written: NDArray[Any], expected: NDArray[Any]) -> bool:
    return np.array_equal(written, expected, equal_nan=expected.dtype.kind == "f")
