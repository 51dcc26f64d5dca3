"""Conversion between xarray's DataArray and a model's tensors, for rasters opened by rioxarray."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.inference.outputs import NO_LAND_COVER, choose_classes
from terramind_plugin.model.modalities import Modality, resolve
from terramind_plugin.model.units import other_unit
from terramind_plugin.raster.bands import find_bands
from terramind_plugin.raster.missing import is_odd

if TYPE_CHECKING:
    import xarray as xr

FILL_KEYS = ("_FillValue", "missing_value", "nodata")
"""Attributes in which xarray and rioxarray keep the value for no data."""


def to_tensor(array: xr.DataArray, modality: str) -> Tensor:
    """Return the values of a raster as a model's input [1, bands, H, W], float32, in the modality's units.

    Bands are selected by name if the raster names them (in the coordinate `band`, or in the attribute `long_name`, in
    which rioxarray stores GDAL's descriptions), otherwise by position. Missing values become the mean of the
    pre-training data, which is 0 after standardisation; missing land cover becomes class 0. The values are not
    standardised: build the model with `standardize=True`.

    Args:
        array: Raster [y, x] or [band, y, x], for example from `rioxarray.open_rasterio`.
        modality: Name of the modality, such as 'S2L2A'.

    Raises:
        ConfigError: The modality is not known or has no pixels, or the array has other dimensions.
        DataError: The bands are not the modality's, all values are missing, or the unit is wrong.
    """
    entry = _image_modality(modality)
    name = str(array.name or array.encoding.get("source") or f"the {modality} array")
    dims, values = tuple(map(str, array.dims)), np.asarray(array.values)
    if values.ndim == 2:
        values = values[None]
    elif values.ndim != 3:
        raise ConfigError(
            f"{name}: expected the dimensions [band, y, x], got {list(dims)} of shape {list(array.shape)}. Select one "
            "date with .isel(time=0), and order them with .transpose('band', 'y', 'x')."
        )
    elif dims[0] in ("x", "y", "lon", "lat", "longitude", "latitude"):
        raise ConfigError(
            f"{name}: expected the dimensions [band, y, x], got {list(dims)}. Order them with "
            f".transpose('{dims[-1]}', 'y', 'x')."
        )
    if values.dtype.kind not in "iuf":
        raise DataError(f"{name} holds {values.dtype}, expected real numbers.")
    positions = find_bands(name, entry.name, _band_names(array, len(values)), entry.band_names)
    values = values[positions]
    missing = is_odd(values) | _equal_fill(array, values)
    if missing.all():
        raise DataError(f"{name} holds no data: all of its values are NaN, infinite or nodata.")
    if entry.kind == "image":
        guess = other_unit(entry, values[~missing])
        if guess is not None:
            raise DataError(f"{name} looks like {guess}. Expected: {entry.units}. {guess.advice}")
    fill = [NO_LAND_COVER] if entry.kind == "classes" else list(entry.mean)
    filled = np.where(missing, np.array(fill, np.float32)[:, None, None], values.astype(np.float32))
    return torch.from_numpy(np.ascontiguousarray(filled, dtype=np.float32))[None]


def to_dataarray(tensor: Tensor, modality: str, like: xr.DataArray) -> xr.DataArray:
    """Return a model's output as an xarray DataArray [band, y, x] on the grid of another.

    It has the coordinates and the CRS of `like`, the names of bands (`band` and `long_name`), `units` and, for land
    cover, `class_names`. `result.rio.to_raster("land_cover.tif")` writes it.

    Args:
        tensor: [1, channels, H, W] or [channels, H, W]. Channels are the bands of the modality or, for land cover, one
            band of class ids or a score for each class; the class with the highest score is used.
        modality: Name of the modality, such as 'LULC'.
        like: Raster [..., y, x] whose coordinates and CRS the result gets.

    Raises:
        ConfigError: The modality is not known or has no pixels, or the tensor has another shape.
    """
    import xarray as xr

    entry = _image_modality(modality)
    values = tensor.detach().cpu()
    values = values[0] if values.ndim == 4 and len(values) == 1 else values
    y, x = like.dims[-2:]
    counts = {len(entry.bands), len(entry.class_names) or len(entry.bands)}
    if values.ndim != 3 or len(values) not in counts or tuple(values.shape[1:]) != like.shape[-2:]:
        expected = " or ".join(str([count, *like.shape[-2:]]) for count in sorted(counts))
        raise ConfigError(
            f"{entry.name}: got a tensor of shape {list(tensor.shape)}, expected {expected} for the grid of `like`, "
            "with or without a leading 1. Pass one sample at a time."
        )
    attributes: dict[str, Any] = {"long_name": entry.band_names, "units": entry.units}
    if entry.kind == "classes":
        scores = len(values) == len(entry.class_names)
        pixels = (choose_classes(values, NO_LAND_COVER)[0] if scores else values.to(torch.uint8)).numpy()
        attributes |= {"class_names": list(entry.class_names), "_FillValue": NO_LAND_COVER}
    else:
        pixels = values.float().numpy()
        attributes["_FillValue"] = float("nan")
    kept = {name: coordinate for name, coordinate in like.coords.items() if set(coordinate.dims) <= {y, x}}
    coordinates = {**kept, "band": list(entry.band_names)}
    result = xr.DataArray(pixels, dims=("band", y, x), coords=coordinates, attrs=attributes, name=entry.name)
    if "grid_mapping" in like.encoding:
        result.encoding["grid_mapping"] = like.encoding["grid_mapping"]
    return result


def _image_modality(name: str) -> Modality:
    entry = resolve(name)
    if not entry.bands:
        raise ConfigError(f"{entry.name} has no pixels. Use a modality of images, such as S2L2A, S1GRD, DEM or LULC.")
    return entry


def _band_names(array: xr.DataArray, count: int) -> list[str | None]:
    """Return the name of each band; None for a band that only has a number.

    Selecting bands does not change `long_name`, so the band numbers in the coordinate select the names from it.
    """
    listed = (
        np.atleast_1d(array.coords["band"].values).tolist() if "band" in array.coords else list(range(1, count + 1))
    )
    described = array.attrs.get("long_name") or ()
    described = (described,) if isinstance(described, str) else tuple(described)
    if len(listed) == count and all(isinstance(name, str) for name in listed):
        return list(listed)
    if len(listed) == count and all(isinstance(number, int) and 1 <= number <= len(described) for number in listed):
        return [str(described[number - 1]) for number in listed]
    return [None] * count


def _equal_fill(array: xr.DataArray, values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return a mask, True where a value is one that the raster declares as no data."""
    missing = np.zeros(values.shape, bool)
    for place in (array.attrs, array.encoding):
        for key in FILL_KEYS:
            if place.get(key) is not None:
                missing |= values == float(place[key])
    return missing
