"""Decoding images and positions of samples from Zarr groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import OPTICAL, RADAR, Modality
from terramind_plugin.shards.zarr_zip import ZarrGroup

ARRAY = "bands"
"""Name of the array with the pixels."""
DIMENSIONS = "_ARRAY_DIMENSIONS"
"""Attribute with the names of an array's dimensions, as xarray writes it."""
AXES = ("time", "band", "y", "x")
UNITS = {
    "nanoseconds": 1,
    "microseconds": 10**3,
    "milliseconds": 10**6,
    "seconds": 10**9,
    "minutes": 60 * 10**9,
    "hours": 3600 * 10**9,
    "days": 86400 * 10**9,
}
"""Length in nanoseconds of the CF conventions' units of time."""
KINDS = {"i": "whole numbers", "u": "whole numbers", "f": "decimal numbers"}
"""Names of the kinds of numbers, by NumPy's letters."""


def allowed_kinds(modality: Modality) -> str:
    """Return NumPy's letters for the kinds of numbers in which a modality is published."""
    if modality.name in (*OPTICAL, "RGB") or modality.kind == "classes":
        return "iu"
    return "f" if modality.name in (*RADAR, "NDVI") else "iuf"


def read_pixels_of(group: ZarrGroup) -> tuple[NDArray[Any], list[str]]:
    """Return the stored pixels of a group [dates, bands, H, W], and the names of the bands ([] if there are none).

    Raises:
        DataError: The group has no array of pixels, or the array has other dimensions.
    """
    name = ARRAY if ARRAY in group else only_image(group)
    values = group.read(name)
    named = [str(axis) for axis in group.attributes(name).get(DIMENSIONS, ())]
    if len(named) != values.ndim:
        named = list(AXES[-values.ndim :]) if 2 <= values.ndim <= 4 else []
    wanted = [axis for axis in AXES if axis in named]
    if sorted(wanted) != sorted(named) or "y" not in named or "x" not in named:
        raise DataError(
            f"{group.name}: '{name}' has shape {list(values.shape)} and dimensions {named or 'unknown'}, expected "
            f"{', '.join(AXES)}."
        )
    values = values.transpose([named.index(axis) for axis in wanted])
    values = values.reshape([values.shape[wanted.index(axis)] if axis in wanted else 1 for axis in AXES])
    names = [str(text) for text in group.read("band").ravel()] if "band" in group else []
    if names and len(names) != values.shape[1]:
        raise DataError(f"{group.name} names {len(names)} bands ({', '.join(names)}), but holds {values.shape[1]}.")
    if values.dtype.kind not in KINDS:
        raise DataError(f"{group.name} holds {values.dtype}, expected real numbers.")
    return values, names


def only_image(group: ZarrGroup) -> str:
    """Return the name of the only array with three or four dimensions.

    Raises:
        DataError: There is no such array, or there are several.
    """
    found = [name for name in group.arrays if len(group.header(name).shape) in (3, 4)]
    if len(found) != 1:
        raise DataError(f"{group.name} has no array '{ARRAY}'. It has: {', '.join(group.arrays) or 'none'}.")
    return found[0]


def read_image_of(group: ZarrGroup, modality: Modality) -> NDArray[np.float32]:
    """Return the image of a modality as published, without removing offsets or filling NaN.

    Args:
        group: A sample.
        modality: Modality of the sample.

    Returns:
        float32 [bands, H, W], or [bands, dates, H, W] for several dates, with bands in the order of the modality.

    Raises:
        DataError: The group holds other bands or another kind of numbers, or cannot be decoded.
    """
    values, names = read_pixels_of(group)
    kinds = allowed_kinds(modality)
    if values.dtype.kind not in kinds:
        raise DataError(
            f"{group.name} holds {values.dtype}, expected {KINDS[kinds[0]]} for {modality.name} ({modality.units})."
        )
    order = _order(group.name, modality, names, values.shape[1])
    if order != list(range(len(order))):
        values = values[:, order]
    image = values[0] if len(values) == 1 else values.transpose(1, 0, 2, 3)
    return image.astype(np.float32)


def _order(name: str, modality: Modality, names: Sequence[str], count: int) -> list[int]:
    """Return the position of each of the modality's bands among the bands of a sample."""
    positions = [modality.find_band(text) for text in names]
    wanted = list(range(len(modality.bands)))
    if len(wanted) == 1 and count == 1:  # a single band is named after the product, or not at all
        return [0]
    if names and None not in positions and set(wanted) <= set(positions):
        return [positions.index(band) for band in wanted]
    if not names and count == len(wanted):
        return wanted
    shown = ", ".join(names) if names else f"{count} without names"
    raise DataError(f"{name} has the bands {shown}; {modality.name} has {', '.join(modality.band_names)}.")


def read_sample_centre(group: ZarrGroup) -> tuple[float, float]:
    """Return the longitude and latitude of a sample's centre in degrees; NaN if they are unknown.

    Raises:
        DataError: The numbers cannot be decoded.
    """
    if "center_lon" in group and "center_lat" in group:
        longitude, latitude = (np.ravel(group.read(f"center_{axis}")) for axis in ("lon", "lat"))
        return float(longitude[0]), float(latitude[0])
    system = next((name for name in ("crs", "spatial_ref") if name in group), None)
    if "x" not in group or "y" not in group or system is None:
        return np.nan, np.nan
    from pyproj import Transformer

    code = int(np.ravel(group.read(system))[0])
    if code <= 0:
        return np.nan, np.nan
    x, y = (group.read(axis) for axis in ("x", "y"))
    to_degrees = Transformer.from_crs(code, 4326, always_xy=True)
    longitude, latitude = to_degrees.transform((x[0] + x[-1]) / 2, (y[0] + y[-1]) / 2)
    return float(longitude), float(latitude)


def read_details(group: ZarrGroup) -> dict[str, Any]:
    """Return the metadata of a sample: those of time, crs, x, y, sample, cloud_mask and file_id that it has.

    Arrays have the published type. A single text becomes a str, a single whole number an int, and 'time' datetime64[ns]
    [dates].

    Raises:
        DataError: An array cannot be decoded.
    """
    found: dict[str, Any] = {}
    for name in ("time", "crs", "x", "y", "sample", "cloud_mask", "file_id"):
        if name not in group:
            continue
        value = group.read(name)
        if name == "time" and value.dtype.kind in "iuf":
            value = _dates(group, value)
        found[name] = value.ravel()[0].item() if value.size == 1 and name in ("crs", "sample", "file_id") else value
    return found


def _dates(group: ZarrGroup, value: NDArray[Any]) -> NDArray[Any]:
    """Return times as datetime64[ns]. Without a unit they are nanoseconds since 1970, as in xarray."""
    unit, _, start = str(group.attributes("time").get("units", "nanoseconds since 1970-01-01")).partition(" since ")
    if unit not in UNITS:
        raise DataError(
            f"{group.name}: 'time' has the unit '{unit} since {start}', expected one of {', '.join(UNITS)}."
        )
    try:
        first = np.datetime64(start.strip().replace(" ", "T").removesuffix("+00:00"), "ns")
    except ValueError as error:
        raise DataError(f"{group.name}: 'time' counts from '{start}', which is not a date.") from error
    return first + np.round(value * UNITS[unit]).astype("timedelta64[ns]")
