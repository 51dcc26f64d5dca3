"""A picture of a simulated region: optical image, radar image, truth, and the model's map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.features import rasterize
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform_geom

from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.plotting.pictures import plot_samples
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.simulation.catalogue import offset_of
from terramind_plugin.system.files import check_picture, write_figure

MAP_NO_DATA = 255
"""Nodata value of maps."""


def draw_region(world: Path, maps: Path, out: Path, class_names: list[str]) -> None:
    """Write a PNG with a row for each map of a simulated catalogue's area.

    Args:
        world: Folder that `terramind simulate --world stac` wrote.
        maps: Folder that `terramind map --stac` wrote.
        out: Picture to write.
        class_names: Names of the classes.

    Raises:
        ConfigError: `out` is a file that is not a picture of this program.
        DataError: There is no map.
    """
    check_picture(out)
    items = json.loads((world / "items.json").read_text(encoding="utf-8"))["features"]
    labels = json.loads((world / "labels.geojson").read_text(encoding="utf-8"))["features"]
    rows = []
    for path in sorted(maps.glob("*_pred.tif")):
        with rasterio.open(path) as file:
            predicted = file.read(1).astype(np.int64)
            grid = Grid(file.height, file.width, file.crs, file.transform)
        predicted[predicted == MAP_NO_DATA] = -1
        outlines = [transform_geom("EPSG:4326", grid.crs, one["geometry"]) for one in labels]
        truth = rasterize(((one, 1) for one in outlines), grid.shape, transform=grid.transform, dtype="uint8")
        images = {"S2L2A": _colours(world, items, grid), "S1RTC": _radar(world, items, grid)}
        rows.append((path.stem.removesuffix("_pred"), images, np.where(predicted < 0, -1, truth), predicted))
    if not rows:
        raise DataError(f"No map in {maps}: expected files such as aoi_32632_pred.tif, which terramind map writes.")
    write_figure(out, plot_samples(rows, class_names))


def _colours(world: Path, items: list[dict[str, Any]], grid: Grid) -> NDArray[Any]:
    """Return the first date of Sentinel-2 without offset, [12, H, W]; 0 for no data and bands that are not drawn."""
    own = [one for one in items if one["collection"] == "sentinel-2-l2a"]
    first = min(one["properties"]["datetime"] for one in own)
    modality = MODALITIES["S2L2A"]
    image = np.zeros((len(modality.bands), *grid.shape), np.float32)
    for number in modality.rgb:
        for one in own:
            if one["properties"]["datetime"] == first:
                band = _read(world / one["assets"][modality.band_names[number]]["href"], grid, 0)
                seen = (band > 0) & (image[number] == 0)
                image[number][seen] = np.maximum(band[seen] - offset_of(one["properties"]["s2:processing_baseline"]), 1)
    return image


def _radar(world: Path, items: list[dict[str, Any]], grid: Grid) -> NDArray[Any]:
    """Return the first date of Sentinel-1, [2, H, W] in dB."""
    one = min(
        (one for one in items if one["collection"] == "sentinel-1-rtc"),
        key=lambda one: str(one["properties"]["datetime"]),
    )
    power = np.stack([_read(world / one["assets"][name]["href"], grid, -32768) for name in ("vv", "vh")])
    return np.asarray(10 * np.log10(np.where(power > 0, power, np.nan)))


def _read(path: Path, grid: Grid, nodata: float) -> NDArray[np.float32]:
    """Return the first band of a file on a grid, [H, W]."""
    with rasterio.open(path) as file, WarpedVRT(
        file, crs=grid.crs, transform=grid.transform, width=grid.width, height=grid.height,
        resampling=Resampling.bilinear, src_nodata=nodata, nodata=nodata,
    ) as warped:  # fmt: skip
        return np.asarray(warped.read(1), np.float32)
