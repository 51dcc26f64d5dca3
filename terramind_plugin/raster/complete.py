"""Whether a GeoTIFF is whole: GDAL says nothing of a disk that was full when it closed a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # no public name, though some functions of rasterio raise it
from rasterio.errors import RasterioError
from rasterio.windows import Window

from terramind_plugin.errors import one_line

GDAL_ERRORS = (RasterioError, CPLE_BaseError, OSError)
"""Whatever rasterio raises where a raster cannot be read or written."""
_ROWS = 256
"""Rows that are read at once, at least."""

Rows = Callable[[int, int], NDArray]
"""Returns the rows of an image from a first one to before a last one, [bands, rows, width]."""


def check_complete(path: Path, rows: Rows | None = None, overviews: int | None = None) -> None:
    """Read a closed GeoTIFF again, with its overviews: every block must be there and can be decoded.

    Args:
        path: The file.
        rows: What it must hold; None leaves the values open.
        overviews: How many it must have; None takes those it has.

    Raises:
        OSError: A block or an overview is missing, or values are not those that were written.
        RasterioError: The file or a block of it cannot be read.
    """
    with rasterio.open(path, driver="GTiff") as file:
        found = len(file.overviews(1))
        _check_blocks(file)
        for first in range(0, file.height, step := _step(file)):
            last = min(first + step, file.height)
            written = file.read(window=Window(0, first, file.width, last - first))
            if rows is not None and not _equal(written, rows(first, last)):
                raise OSError(f"rows {first} to {last - 1} are not what was written")
    check_overviews(path, found if overviews is None else overviews)


def check_overviews(path: Path, count: int) -> None:
    """Read the overviews of a closed GeoTIFF again; arguments and errors as in `check_complete`."""
    with rasterio.open(path, driver="GTiff") as file:
        if len(file.overviews(1)) != count or any(len(file.overviews(band)) != count for band in file.indexes):
            raise OSError(f"{len(file.overviews(1))} overviews were written of {count}")
    for level in range(count):
        with rasterio.open(path, driver="GTiff", overview_level=level) as file:
            _check_blocks(file)
            for first in range(0, file.height, step := _step(file)):
                file.read(window=Window(0, first, file.width, min(step, file.height - first)))


def is_complete(path: Path) -> bool:
    """Return whether a path is a GeoTIFF that can be read to its end."""
    try:
        check_complete(path)
    except GDAL_ERRORS:
        return False
    return True


def reason_of(error: BaseException) -> str:
    """Return in one line why a raster could not be read or written: GDAL's own words, where rasterio hides them."""
    while error.__cause__ is not None and "See previous exception" in str(error):
        error = error.__cause__
    return one_line(error)


def _check_blocks(file: Any) -> None:
    """Raise an OSError if a block was never written: GDAL reads it as zeros."""
    bands = file.indexes if file.interleaving.value == "BAND" else file.indexes[:1]
    for band in bands:
        tall, wide = file.block_shapes[band - 1]
        for y in range(-(-file.height // tall)):
            for x in range(-(-file.width // wide)):
                if not int(file.get_tag_item(f"BLOCK_SIZE_{x}_{y}", "TIFF", bidx=band) or 0):
                    raise OSError(f"the block in row {y}, column {x} was not written")


def _step(file: Any) -> int:
    """Return how many rows to read at once: whole blocks, so that none is decoded twice."""
    tall = max(1, *(shape[0] for shape in file.block_shapes))
    return -(-_ROWS // tall) * tall


def _equal(written: NDArray, expected: NDArray) -> bool:
    return np.array_equal(written, expected, equal_nan=expected.dtype.kind == "f")
