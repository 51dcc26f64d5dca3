"""Search for test chips on ground that TerraMind was pre-trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from terramind_plugin.errors import ConfigError, DataError, counted, one_line
from terramind_plugin.raster.complete import GDAL_ERRORS
from terramind_plugin.raster.georeference import Grid, apply_affine
from terramind_plugin.samples.checks.findings import Finding, some
from terramind_plugin.samples.plan import DataPlan

MESH_METRES = 2640.0
"""Side of a sample of TerraMesh in metres: 264 pixels of 10 m."""
DEGREE = 111_320.0
"""Length of a degree of latitude in metres, approximately."""
LATITUDES = ("center_lat", "centre_lat", "lat", "latitude")
LONGITUDES = ("center_lon", "centre_lon", "lon", "longitude")
"""Names of the columns with the centre of a sample; the files hold center_lat and center_lon."""


@dataclass(frozen=True)
class MeshCentres:
    """Centres of the samples of TerraMesh."""

    path: Path
    longitudes: Any
    """Longitudes in degrees."""
    latitudes: Any
    names: Any
    """Name of each sample; None if the file has none."""


def read_centres(path: Path) -> MeshCentres:
    """Return the centres of the samples in TerraMesh's metadata.

    Args:
        path: train_metadata.parquet of ibm-esa-geospatial/TerraMesh, or a part of it.

    Raises:
        ConfigError: The file is missing, is not Parquet, or has no centres.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError("--terramesh needs pyarrow: pip install 'terramind-plugin[sources]'") from error
    if not path.is_file():
        raise ConfigError(f"There is no file {path}. Give train_metadata.parquet of ibm-esa-geospatial/TerraMesh.")
    try:
        names = pq.read_schema(path).names
        found = [next((one for one in known if one in names), None) for known in (LONGITUDES, LATITUDES)]
        if None in found:
            raise ConfigError(
                f"{path} has no centres of samples: its columns are {', '.join(names[:12])}; expected {LONGITUDES[0]} "
                f"and {LATITUDES[0]}, as in train_metadata.parquet of ibm-esa-geospatial/TerraMesh."
            )
        label = next((name for name in ("zarr", "sample", "key") if name in names), None)
        table = pq.read_table(path, columns=[*found, *([label] if label else [])])
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not a readable Parquet file: {one_line(error)}.") from None
    longitudes, latitudes = (np.asarray(table[name].to_numpy(), np.float64) for name in found)
    return MeshCentres(path, longitudes, latitudes, None if label is None else table[label])


def find_pretrained(grids: Mapping[str, Grid], longitudes: Any, latitudes: Any) -> dict[str, int]:
    """Return the index of a sample of TerraMesh for each chip that overlaps one; other chips are left out.

    Args:
        grids: Size and position of each chip.
        longitudes: Longitudes of the centres of the samples, in degrees.
        latitudes: Latitudes of the centres of the samples, in degrees.
    """
    order = np.argsort(latitudes, kind="stable")
    sorted_latitudes = latitudes[order]
    found: dict[str, int] = {}
    for name, grid in grids.items():
        centre = grid.centre()
        if centre is None or not np.isfinite(centre).all():
            continue
        longitude, latitude = centre
        high, wide = (half + MESH_METRES / 2 for half in _half_sides(grid))
        first, last = np.searchsorted(sorted_latitudes, [latitude - high / DEGREE, latitude + high / DEGREE])
        near = order[first:last]
        away = np.abs((longitudes[near] - longitude + 180) % 360 - 180) * DEGREE * np.cos(np.radians(latitude))
        hits = near[away < wide]
        if hits.size:
            found[name] = int(hits[0])
    return found


def _half_sides(grid: Grid) -> tuple[float, float]:
    """Return half the height and half the width of a chip in metres."""
    unit = DEGREE if grid.crs.is_geographic else grid.crs.linear_units_factor[1]
    x, y = apply_affine(grid.transform, np.array([0, grid.width, 0]), np.array([0, 0, grid.height]))
    wide, tall = np.hypot(x[1] - x[0], y[1] - y[0]) * unit, np.hypot(x[2] - x[0], y[2] - y[0]) * unit
    if grid.crs.is_geographic:
        centre = grid.centre()
        wide *= np.cos(np.radians(centre[1])) if centre is not None else 1
    return float(tall) / 2, float(wide) / 2


def check_pretraining_ground(plan: DataPlan, centres: MeshCentres) -> Iterator[Finding]:
    """Yield the test chips that lie on ground of TerraMesh, which TerraMind was pre-trained on.

    Args:
        plan: The data set as configured.
        centres: Centres of the samples.
    """
    grids: dict[str, Grid] = {}
    for split in plan.splits:
        if split.name == "test":
            for sample, files in split.samples.items():
                grid = _grid_of(next(iter(files.values())))
                if grid is not None:
                    grids[sample] = grid
    where = "files: pre-training ground"
    if not grids:
        yield Finding(where, "note", "no test chip is georeferenced, so none can be compared with TerraMesh.")
        return
    found = find_pretrained(grids, centres.longitudes, centres.latitudes)
    if not found:
        yield Finding(
            where, "ok", f"none of {counted(len(grids), 'test chip')} lies on a sample of {centres.path.name}."
        )
        return
    shown = some(
        [f"{chip} (on {centres.names[row] if centres.names is not None else row})" for chip, row in found.items()]
    )
    yield Finding(
        where,
        "warning",
        f"{len(found)} of {counted(len(grids), 'test chip')} lie on ground that TerraMind was pre-trained on: {shown}.",
        "Leave them out of the test split: results on it would be too good.",
    )


def _grid_of(path: Path) -> Grid | None:
    try:
        with rasterio.open(path) as file:
            return Grid(file.height, file.width, file.crs, file.transform) if file.crs else None
    except (*GDAL_ERRORS, DataError):
        return None  # reported by check_headers
