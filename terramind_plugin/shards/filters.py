"""Selection of samples by the metadata table of a data set."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import ConfigError, DataError, counted, one_line, suggest
from terramind_plugin.shards.catalogue import ShardCatalogue
from terramind_plugin.system.files import ZARR_ZIP

logger = logging.getLogger("terramind_plugin")

CLOUDS = "cloud_cover"
CENTRE = ("center_lon", "center_lat")
MEMBER = "zarr"
"""Column with the names of the samples, which are unique, so that the column `tar` (the shard) is not needed."""


def choose_samples(
    catalogue: ShardCatalogue,
    *,
    max_cloud_cover: float | None = None,
    area: Sequence[float] | None = None,
    ranges: Mapping[str, Sequence[float]] | None = None,
) -> list[NDArray[np.bool_]]:
    """Return a mask for each shard: samples that meet all conditions. Samples that the table lacks do not.

    Args:
        catalogue: The data set, whose {split}_metadata.parquet is read.
        max_cloud_cover: Maximum of 'cloud_cover', in the table's unit.
        area: West, south, east and north in degrees, as limits of 'center_lon' and 'center_lat'. If west is larger than
            east, the area crosses the antimeridian.
        ranges: Minimum and maximum for further columns.

    Raises:
        ConfigError: The table lacks a column, or a condition is wrong.
        DataError: The table is missing or cannot be read, or no sample is left.
    """
    wanted = {name: tuple(map(float, pair)) for name, pair in (ranges or {}).items()}
    if max_cloud_cover is not None:
        wanted[CLOUDS] = (-np.inf, float(max_cloud_cover))
    for name, pair in wanted.items():
        if len(pair) != 2 or not pair[0] <= pair[1]:
            raise ConfigError(f"{name} needs the smallest and the largest value, got {list(pair)}.")
    table = _read_table(catalogue, [MEMBER, *wanted, *(CENTRE if area is not None else ())])
    keep = np.ones(len(table), bool)
    for name, (low, high) in wanted.items():
        values = table[name].to_numpy()
        with np.errstate(invalid="ignore"):
            keep &= (values >= low) & (values <= high)
    if area is not None:
        keep &= _inside(area, *(table[name].to_numpy(float) for name in CENTRE))
    listed = table[MEMBER].astype(str).str.rpartition("/")[2].str.removesuffix(ZARR_ZIP)
    known, chosen = set(listed), set(listed[keep])
    masks = [np.array([key in chosen for key in catalogue.keys(shard)]) for shard in range(len(catalogue.shards))]
    left = sum(int(mask.sum()) for mask in masks)
    absent = sum(key not in known for shard in range(len(catalogue.shards)) for key in catalogue.keys(shard))
    if absent:
        logger.warning(
            "%s left out: not in the metadata table, which the filters need.", counted(absent, "sample", "is/are")
        )
    logger.info("%d of %d samples fit the filters.", left, len(catalogue))
    if not left:
        raise DataError(
            f"None of {counted(len(catalogue), 'sample')} fits {wanted or ''} {area or ''}. Widen the filter."
        )
    return masks


def _inside(area: Sequence[float], longitude: NDArray[Any], latitude: NDArray[Any]) -> NDArray[np.bool_]:
    if len(area) != 4 or not area[1] <= area[3] or not np.isfinite(area).all():
        raise ConfigError(f"area must be west, south, east and north in degrees, got {list(area)}.")
    west, south, east, north = area
    across = (longitude >= west) | (longitude <= east)
    within = (longitude >= west) & (longitude <= east) if west <= east else across
    return np.asarray(within & (latitude >= south) & (latitude <= north))


def _read_table(catalogue: ShardCatalogue, columns: Sequence[str]) -> Any:
    """Return columns of the metadata table as a DataFrame."""
    store, path = catalogue.store, f"{catalogue.split}_metadata.parquet"
    try:
        import pandas as pd
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            f"Filters need {error.name}, which is not installed: pip install 'terramind-plugin[shards]'."
        ) from error
    try:
        content = io.BytesIO(store.read(path, 0, store.size(path)))
        there = pq.read_schema(content).names
    except (OSError, ValueError) as error:
        raise DataError(
            f"{store.shown(path)} cannot be read: {one_line(error)}. Filters need the metadata table: download it."
        ) from error
    missing = [name for name in columns if name not in there]
    if missing:
        raise ConfigError(
            f"{store.shown(path)} has no column {missing[0]}.{suggest(missing[0], there)} It has: {', '.join(there)}."
        )
    return pd.read_parquet(content, columns=list(dict.fromkeys(columns)))
