"""Where a raster lies: checked before anything that takes its place over."""

from __future__ import annotations

from typing import Any

import numpy as np

from terramind_plugin.errors import DataError


def check_georeference(raster: Any) -> None:
    """Raise unless results can be written to the place of a raster, or to none where it has none.

    Args:
        raster: An open raster of rasterio.

    Raises:
        DataError: Its pixels have no size, or only ground control points or an RPC model say where it lies.
    """
    transform = raster.transform
    if not np.isfinite(transform[:6]).all() or transform.determinant == 0:
        numbers = ", ".join(f"{number:g}" for number in transform[:6])
        raise DataError(
            f"{raster.name} lies nowhere: its transform is [{numbers}], expected pixels with width and height. "
            f"Correct it: gdal_edit.py -a_ullr LEFT TOP RIGHT BOTTOM {raster.name}"
        )
    if not transform.is_identity:
        return
    points, _ = raster.gcps
    if points or raster.rpcs is not None:
        means, option = (f"{len(points)} ground control points", "-tps") if points else ("an RPC model", "-rpc")
        raise DataError(
            f"{raster.name} is placed by {means}, which what is made of it would lose. Warp it first: "
            f"gdalwarp {option} -r bilinear -t_srs EPSG:4326 {raster.name} warped.tif"
        )
