"""Reading chips in zarr.zip files, such as ImpactMesh's, as rasters with all dates and bands one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import DataError
from terramind_plugin.shards.decode import ARRAY, only_image, read_pixels_of
from terramind_plugin.shards.zarr_zip import ZarrGroup

UNDECLARED_NO_DATA = -9999
"""Number that means no data in zarr chips that declare none. Source: ImpactMesh's reader (no_data_value)."""


class ZarrChip(NamedTuple):
    """A chip of one modality."""

    values: NDArray[Any]
    """Values [dates * bands, H, W], date by date; float16 is converted to float32, missing decimal numbers are NaN."""
    nodata: float | None
    """Number that means no data; None if there is none."""
    names: tuple[str | None, ...]
    """Name of each band, repeated for each date; None for bands without a name."""
    crs: str | int | None
    """EPSG code or WKT; None if unknown."""
    transform: tuple[float, float, float, float, float, float] | None
    """Coefficients a to f of the transform from column and row to coordinates; None if unknown."""


def read_zarr_chip(path: str | Path) -> ZarrChip:
    """Return a chip.

    Scale and offset of the CF conventions are applied. A fill value in the array's header means no data unless it is 0,
    which is the default of writers.

    Args:
        path: A .zarr.zip file.

    Raises:
        DataError: The file is damaged, or holds no image of real numbers.
        OSError: The file cannot be read.
    """
    group = ZarrGroup(Path(path), str(path))
    values, names = read_pixels_of(group)
    dates = len(values)
    array = ARRAY if ARRAY in group else only_image(group)
    attributes = group.attributes(array)
    declared = [attributes.get(key) for key in ("_FillValue", "missing_value")]
    fill = group.header(array).fill
    declared += [fill] if fill not in (None, 0, False) else []
    numbers = [number for text in declared if (number := _number(text)) is not None and number == number]
    values = values.reshape(-1, *values.shape[2:])
    scale, offset = (float(attributes.get(key, default)) for key, default in (("scale_factor", 1), ("add_offset", 0)))
    nodata = numbers[0] if numbers else float(UNDECLARED_NO_DATA)
    if values.dtype.kind == "f" or (scale, offset) != (1, 0):
        missing = np.isin(values, [*numbers, UNDECLARED_NO_DATA])
        values = values.astype(np.float64 if values.dtype.itemsize > 4 else np.float32)
        values = values * scale + offset if (scale, offset) != (1, 0) else values
        values[missing] = np.nan
        nodata = np.nan
    elif not np.iinfo(values.dtype).min <= nodata <= np.iinfo(values.dtype).max:
        return ZarrChip(values, None, _repeated(names, len(values), dates), *_place(group))
    return ZarrChip(values, nodata, _repeated(names, len(values), dates), *_place(group))


def _number(text: Any) -> float | None:
    try:
        return None if text is None else float(np.ravel(text)[0])
    except (TypeError, ValueError, IndexError):
        return None


def _repeated(names: list[str], count: int, dates: int) -> tuple[str | None, ...]:
    return tuple(names) * dates if names else (None,) * count


def _place(group: ZarrGroup) -> tuple[str | int | None, tuple[float, float, float, float, float, float] | None]:
    """Return the coordinate reference system and the transform of a chip; None for what it lacks."""
    crs: str | int | None = None
    for name in ("crs", "spatial_ref"):
        if name in group and crs is None:
            attributes = group.attributes(name)
            value = np.ravel(group.read(name))
            code = int(value[0]) if value.size and value.dtype.kind in "iu" else 0
            crs = attributes.get("crs_wkt") or attributes.get("spatial_ref") or (code if code > 0 else None)
    if "x" not in group or "y" not in group:
        return crs, None
    x, y = (np.ravel(group.read(axis)).astype(np.float64) for axis in ("x", "y"))
    if min(len(x), len(y)) < 2:
        return crs, None
    width, height = ((axis[-1] - axis[0]) / (len(axis) - 1) for axis in (x, y))
    if not np.isfinite([width, height]).all() or 0 in (width, height):
        raise DataError(f"{group.name}: coordinates x and y are not evenly spaced.")
    return crs, (float(width), 0.0, float(x[0] - width / 2), 0.0, float(height), float(y[0] - height / 2))
