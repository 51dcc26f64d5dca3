"""Headers of rasters: shape, bands, georeference and completeness of the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.transform import Affine

from terramind_plugin.errors import one_line
from terramind_plugin.raster.complete import GDAL_ERRORS
from terramind_plugin.raster.georeference import Grid, is_indirect, lies_nowhere
from terramind_plugin.raster.netcdf import is_netcdf, raster_name
from terramind_plugin.raster.paths import is_raster
from terramind_plugin.samples.dates import modality_of
from terramind_plugin.samples.plan import DataPlan
from terramind_plugin.system.parallel import map_chunks

Item = TypeVar("Item")
Made = TypeVar("Made")
NOWHERE = Affine.identity()
UNREADABLE = (*GDAL_ERRORS, ValueError, MemoryError)
"""Errors that a damaged file may cause; ValueError comes from its CRS or its texts."""
OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "GDAL_NUM_THREADS": "1"}
"""GDAL options for reading many small files. Set them once: that takes as long as reading one file."""


def map_files(read: Callable[[Item], Made], jobs: Sequence[Item]) -> list[Made]:
    """Return the results of a function for all jobs, in their order, computed in threads or processes.

    Args:
        read: Module-level function that reads one file. It is called with `OPTIONS` set.
        jobs: Argument of each call.
    """
    # Threads that read NetCDF can deadlock: one holds the library's lock and warns, which needs Python's lock.
    alone = any(is_netcdf(part) for job in jobs for part in (job if isinstance(job, tuple) else (job,)))
    return map_chunks(partial(_read_some, read), jobs, threads=not alone)


def _read_some(read: Callable[[Item], Made], jobs: Sequence[Item]) -> list[Made]:
    with rasterio.Env(**OPTIONS):
        return [read(job) for job in jobs]


@dataclass(frozen=True)
class Header:
    """Header of one raster."""

    path: Path
    shape: tuple[int, int] = (0, 0)
    bands: int = 0
    crs: CRS | None = None
    transform: Affine = NOWHERE
    descriptions: tuple[str | None, ...] = ()
    indirect: bool = False
    """True if the raster is located only by ground control points or an RPC model."""
    problem: str = ""
    """Reason why the raster cannot be read or is incomplete; empty if there is none."""

    @property
    def lies_nowhere(self) -> bool:
        """Return whether the geotransform gives the pixels no size."""
        return lies_nowhere(self.transform)

    @property
    def placed(self) -> bool:
        """Return whether the raster has a location on Earth."""
        if self.crs is None or self.lies_nowhere or self.transform.is_identity:
            return False
        return bool(np.isfinite(self.transform.determinant))

    @property
    def grid(self) -> Grid:
        """Return the grid of the raster, which must have a location."""
        assert self.crs is not None
        return Grid(*self.shape, self.crs, self.transform)


def read_header(path: Path, modality: str = "", bands: tuple[str, ...] = ()) -> Header:
    """Return a raster's header. If the raster cannot be read or is truncated, `problem` says so.

    Args:
        path: The file.
        modality: Modality of the raster, which selects a variable of a NetCDF file; '' for any.
        bands: Names of the bands of one date in the file.
    """
    try:
        with rasterio.open(raster_name(path, modality, bands)) as raster:
            return Header(
                path=path,
                shape=raster.shape,
                bands=raster.count,
                crs=raster.crs and _system(raster.crs.to_wkt()),
                transform=raster.transform,
                descriptions=raster.descriptions,
                indirect=is_indirect(raster),
                problem=_missing_end(path, raster),
            )
    except UNREADABLE as error:
        return Header(path, problem=one_line(error))


@lru_cache
def _system(wkt: str) -> CRS:
    """Return one object for each CRS, so that headers sent from another process share it."""
    return CRS.from_wkt(wkt)


def _missing_end(path: Path, raster: rasterio.DatasetReader) -> str:
    """Return a text if the last block of a GeoTIFF is missing or lies beyond the end of the file; otherwise ''."""
    if raster.driver != "GTiff" or raster.name != str(path):  # another format, or converted in memory
        return ""
    rows, columns = raster.block_shapes[0]
    last = f"{(raster.width - 1) // columns}_{(raster.height - 1) // rows}"
    size = path.stat().st_size
    for band in {1, raster.count}:
        offset, length = (raster.get_tag_item(f"BLOCK_{what}_{last}", "TIFF", bidx=band) for what in ("OFFSET", "SIZE"))
        if offset is not None and length is not None and int(offset) + int(length) > size:
            return f"it ends after {size} bytes, its last block at {int(offset) + int(length)}"
        if offset is None and raster.nodata is None:
            return "its last block was never written and is read as zeros"
    return ""


def read_headers(plan: DataPlan) -> dict[Path, Header]:
    """Return the headers of all rasters of a plan, read in parallel."""
    everything = (item for split in plan.splits for files in split.samples.values() for item in files.items())
    known = {image.name: (modality_of(image.name), image.file_bands) for image in plan.images}
    jobs = {path: known.get(key, ("", ())) for key, path in everything if is_raster(path)}
    return {header.path: header for header in map_files(_read_job, [(path, *jobs[path]) for path in sorted(jobs)])}


def _read_job(job: tuple[Path, str, tuple[str, ...]]) -> Header:
    return read_header(*job)
