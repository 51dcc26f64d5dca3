"""Grids and georeferences of rasters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.transform import Affine
from rasterio.warp import transform as transform_positions

from terramind_plugin.errors import DataError


@dataclass(frozen=True)
class Grid:
    """Size and position of an image on Earth."""

    height: int
    width: int
    crs: CRS
    transform: Affine

    @property
    def shape(self) -> tuple[int, int]:
        """Return the height and width in pixels."""
        return self.height, self.width

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Return left, bottom, right and top in units of the CRS; the image must not be rotated."""
        left, bottom = apply_affine(self.transform, 0, self.height)
        right, top = apply_affine(self.transform, self.width, 0)
        return left, bottom, right, top

    def centre(self) -> tuple[float, float] | None:
        """Return the longitude and latitude of the middle in degrees, or None if there is no CRS."""
        return self.positions([(self.height / 2, self.width / 2)])[0] if self.crs else None

    def positions(self, pixels: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Return the longitudes and latitudes, in degrees, of positions in the image. The grid must have a CRS.

        Args:
            pixels: Row and column of each position, counted from the upper left corner.
        """
        rows, columns = np.array(pixels, dtype=float).T
        x, y = apply_affine(self.transform, columns, rows)
        longitudes, latitudes = transform_positions(self.crs, "EPSG:4326", x.tolist(), y.tolist())[:2]
        return list(zip(longitudes, latitudes, strict=True))

    def distance(self, other: Grid) -> float:
        """Return the largest distance between the corners of two grids of one CRS, in pixels of this one."""
        x, y = np.array([(0, 0), (self.width, 0), (0, self.height)]).T
        columns, rows = apply_affine(~self.transform, *apply_affine(other.transform, x, y))
        return float(np.hypot(columns - x, rows - y).max())


def find_centre(path: Any) -> tuple[float, float] | None:
    """Return the longitude and latitude of the middle of a raster in degrees; None without a georeference.

    Args:
        path: A raster; for a file that GDAL cannot read the result is None.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as raster:
                if lies_nowhere(raster.transform):
                    return None
                return Grid(raster.height, raster.width, raster.crs, raster.transform).centre()
    except (RasterioIOError, TypeError):  # a row of a table, or a format without georeference
        return None


def move_transform(transform: Affine, column: float, row: float) -> Affine:
    """Return the transform of a window that starts at the given column and row."""
    x, y = apply_affine(transform, column, row)
    return Affine(transform.a, transform.b, x, transform.d, transform.e, y)


def apply_affine(transform: Affine, x: Any, y: Any) -> tuple[Any, Any]:
    """Return transformed coordinates; `x` and `y` are numbers, or arrays of one shape."""
    # Written out: the operator that applies a transform is `*` in affine 2 and `@` in affine 3.
    return transform.a * x + transform.b * y + transform.c, transform.d * x + transform.e * y + transform.f


def lies_nowhere(transform: Affine) -> bool:
    """Return whether the geotransform gives the pixels no size, or a size that is not finite."""
    return not np.isfinite(transform[:6]).all() or transform.determinant == 0


def is_indirect(raster: Any) -> bool:
    """Return whether only ground control points or an RPC model give the position of an open raster."""
    return raster.transform.is_identity and bool(raster.gcps[0] or raster.rpcs is not None)


def check_georeference(raster: Any) -> None:
    """Raise an error if results cannot be written to the position of a raster. No position at all is accepted.

    Args:
        raster: An open raster of rasterio.

    Raises:
        DataError: The pixels have no size, or only ground control points or an RPC model give the position.
    """
    if lies_nowhere(raster.transform):
        numbers = ", ".join(f"{number:g}" for number in raster.transform[:6])
        raise DataError(
            f"{raster.name} has no usable position: its transform is [{numbers}], expected pixels with a size. "
            f"Correct it: gdal_edit.py -a_ullr LEFT TOP RIGHT BOTTOM {raster.name}"
        )
    if is_indirect(raster):
        points, _ = raster.gcps
        means, option = (f"{len(points)} ground control points", "-tps") if points else ("an RPC model", "-rpc")
        raise DataError(
            f"{raster.name} is located by {means}, which its results would lose. Warp it first: "
            f"gdalwarp {option} -r bilinear -t_srs EPSG:4326 {raster.name} warped.tif"
        )
