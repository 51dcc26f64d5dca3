"""NetCDF files: names by which GDAL opens their variables as one raster."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import rasterio

from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import find
from terramind_plugin.raster.bands import band_key
from terramind_plugin.raster.paths import is_remote
from terramind_plugin.raster.zarr import zarr_name
from terramind_plugin.system.files import ZARR_ZIP

NETCDF = (".nc", ".nc4")
"""Endings of NetCDF files."""
LARGEST_TYPE = "Float64"
TYPES = {
    "uint8": "Byte",
    "int16": "Int16",
    "uint16": "UInt16",
    "int32": "Int32",
    "uint32": "UInt32",
    "float32": "Float32",
}
"""GDAL's names of number types; variables of other types are read as `LARGEST_TYPE`."""


class _WithoutDimensions(logging.Filter):
    """Filter of GDAL's warnings about dimensions without coordinates, which are not needed here."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "No 1D variable is indexed by dimension" not in record.getMessage()


logging.getLogger("rasterio._env").addFilter(_WithoutDimensions())


def is_netcdf(path: object) -> bool:
    """Return whether an object is the path of a NetCDF file."""
    return isinstance(path, str | Path) and str(path).lower().endswith(NETCDF)


def raster_name(path: str | Path, modality: str = "", bands: Sequence[object] = ()) -> str:
    """Return the name by which GDAL opens a file as the raster of a modality.

    For a file of another format, or with one variable, this is the file's own name; for a zarr.zip chip, that of a
    raster in memory. Of several variables, the one with the modality's name is used, or those with the names of its
    bands, each of which holds one band or one series of dates.

    Args:
        path: The file.
        modality: Name of the modality; '' for any variable, because all variables have one grid.
        bands: Names of the bands of one date in the file, in their order.

    Raises:
        DataError: No variable has one of these names.
        RasterioError: The file cannot be read.
    """
    if not is_remote(path) and str(path).lower().endswith(ZARR_ZIP):
        return zarr_name(path)
    if is_remote(path) or not is_netcdf(path):
        return str(path)
    with rasterio.open(path) as file:
        if file.count or not file.subdatasets:
            return str(path)
        variables: dict[str, str] = {name.rpartition(":")[2]: name for name in file.subdatasets}
    entry = find(modality)
    for variable, name in variables.items():
        if not modality or variable.lower() == modality.lower() or (entry is not None and find(variable) is entry):
            return name
    keyed = {key: name for variable, name in variables.items() if (key := band_key(modality, variable)) is not None}
    wanted = [band_key(modality, band) for band in bands]
    if not wanted or not all(key in keyed for key in wanted):
        raise DataError(
            f"{path} has the variables {', '.join(variables)}. None is named {modality}, and they are not its bands "
            f"{', '.join(str(getattr(band, 'value', band)) for band in bands)}. Rename them, or give a GeoTIFF."
        )
    return _join([(str(band), keyed[key]) for band, key in zip(bands, wanted, strict=True) if key is not None])


def _join(variables: Sequence[tuple[str, str]]) -> str:
    """Return a virtual raster with the bands of one date after those of another; a variable holds all dates of a band.

    Args:
        variables: Names of the bands and of GDAL's data sets.
    """
    bands: list[str] = []
    with rasterio.open(variables[0][1]) as first:
        height, width, dates = first.height, first.width, first.count
        wkt, numbers = (first.crs.to_wkt() if first.crs else ""), first.transform.to_gdal()
    for date in range(1, dates + 1):
        for band, name in variables:
            with rasterio.open(name) as variable:
                if (variable.height, variable.width, variable.count) != (height, width, dates):
                    raise DataError(
                        f"{name} has {variable.count} x {variable.height} x {variable.width} values, "
                        f"{variables[0][1]} has {dates} x {height} x {width}. All bands need one size."
                    )
                nodata, kind = variable.nodatavals[date - 1], TYPES.get(variable.dtypes[date - 1], LARGEST_TYPE)
                bands.append(
                    f'<VRTRasterBand dataType="{kind}" band="{len(bands) + 1}">'
                    f"<Description>{escape(band)}</Description>"
                    + ("" if nodata is None else f"<NoDataValue>{nodata!r}</NoDataValue>")
                    + f'<SimpleSource><SourceFilename relativeToVRT="0">{escape(name)}</SourceFilename>'
                    f"<SourceBand>{date}</SourceBand></SimpleSource></VRTRasterBand>"
                )
    place = ", ".join(map(repr, numbers))
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>{escape(wkt)}</SRS>'
        f"<GeoTransform>{place}</GeoTransform>{''.join(bands)}</VRTDataset>"
    )
