"""Reading the pixels of scenes on the grid of a chip or a block, in the units of the modality."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.transform import Affine
from rasterio.vrt import WarpedVRT
from rasterio.warp import reproject, transform_bounds
from rasterio.windows import Window

from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.georeference import Grid, apply_affine, is_indirect, move_transform
from terramind_plugin.raster.warped import pixel_ratio
from terramind_plugin.sources.datasets import SceneError, with_dataset
from terramind_plugin.sources.rules import ESRI_TO_LULC, GRD, MASK
from terramind_plugin.sources.scenes import Scene

ALIGNED = 1e-6
"""Maximum difference of two grids that count as the same, as a share of a pixel."""
MARGIN = 3
"""Number of pixels of a scene around a grid that interpolation needs."""
NO_DEM = -32768
"""Height of pixels without data."""
EDGE_POINTS = 21
"""Number of points along the side of a grid that are transformed to find the window of a file that it needs."""
LULC_TABLE = np.array([ESRI_TO_LULC.get(number, 0) for number in range(256)], np.uint8)
"""TerraMind's class id for each class id of Esri's land cover."""


@dataclass(frozen=True)
class ScenePixels:
    """Pixels of a modality on a grid."""

    values: NDArray[Any]
    """Values [bands, height, width]: uint16 reflectance x 10000 without offset, 0 for no data; float32 dB, NaN for no
    data; int16 metres; uint8 class ids."""
    origin: NDArray[np.uint8]
    """Number [height, width] of the source scene of each pixel, counted from 1; 0 for no data."""

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Return where there is data, [height, width]."""
        return self.origin > 0

    def crop(self, row: int, column: int, height: int, width: int) -> ScenePixels:
        """Return the pixels of a part."""
        here = slice(row, row + height), slice(column, column + width)
        return ScenePixels(self.values[:, *here], self.origin[here])


def read_modality(grid: Grid, modality: str, scenes: Sequence[Scene]) -> ScenePixels:
    """Return the pixels of a modality on a grid, from scenes of one date.

    Args:
        grid: Grid, in any CRS.
        modality: S2L2A, S2L1C, S1RTC, DEM or LULC.
        scenes: Scenes of one pass; a pixel gets its value from the first scene that has data there.

    Raises:
        SceneError: A scene cannot be read.
    """
    read: dict[str, Callable[[Grid, Sequence[Scene]], ScenePixels]] = {
        "S2L2A": partial(_read_reflectance, bands=MODALITIES["S2L2A"].band_names),
        "S2L1C": partial(_read_reflectance, bands=MODALITIES["S2L1C"].band_names),
        "S1RTC": _read_decibels,
        "DEM": _read_heights,
        "LULC": _read_classes,
    }
    return read[modality](grid, scenes)


def read_mask(grid: Grid, scenes: Sequence[Scene]) -> ScenePixels:
    """Return Sentinel-2's scene classification of one date, one uint8 band; 0 for no data."""
    found = np.zeros(grid.shape, np.uint8)
    origin = np.zeros(grid.shape, np.uint8)
    for number, scene in enumerate(scenes, start=1):
        if origin.all():
            break
        values = with_dataset(scene, MASK, partial(_warp, grid=grid, resampling=Resampling.nearest, nodata=0))
        rest = (values > 0) & (origin == 0)
        found[rest] = values[rest]
        origin[rest] = number
    return ScenePixels(found[None], origin)


def _read_reflectance(grid: Grid, scenes: Sequence[Scene], *, bands: Sequence[str]) -> ScenePixels:
    """Return digital numbers without offset. All bands of a pixel come from the first scene that has all of them."""
    found = np.zeros((len(bands), *grid.shape), np.uint16)
    origin = np.zeros(grid.shape, np.uint8)
    partly: list[tuple[int, NDArray[np.uint16]]] = []
    for number, scene in enumerate(scenes, start=1):
        if origin.all():
            break
        values = np.stack([_read_numbers(grid, scene, band) for band in bands])
        whole = (values > 0).all(axis=0) & (origin == 0)
        np.copyto(found, values, where=whole)
        origin[whole] = number
        if ((values > 0).any(axis=0) & (origin == 0)).any():
            partly.append((number, values))
    for number, values in partly:  # at the edge of a swath, bands end at different pixels
        rest = (values > 0).any(axis=0) & (origin == 0)
        np.copyto(found, values, where=rest)
        origin[rest] = number
    return ScenePixels(found, origin)


def _read_numbers(grid: Grid, scene: Scene, band: str) -> NDArray[np.uint16]:
    """Return the digital numbers of a band without the offset of its processing baseline; 0 still means no data."""
    nodata = 0 if scene.nodata is None else scene.nodata
    values = with_dataset(scene, band, partial(_warp, grid=grid, resampling=Resampling.bilinear, nodata=nodata))
    numbers = values.astype(np.int32)
    if nodata:
        numbers[values == nodata] = 0
    if scene.offset:
        numbers = np.where(numbers > 0, np.maximum(numbers - scene.offset, 1), 0)
    return numbers.clip(0, np.iinfo(np.uint16).max).astype(np.uint16)


def _read_decibels(grid: Grid, scenes: Sequence[Scene]) -> ScenePixels:
    """Return radar backscatter in dB, interpolated as linear power. Both polarisations come from one scene."""
    bands = MODALITIES["S1RTC"].band_names
    power = np.full((len(bands), *grid.shape), np.nan, np.float32)
    origin = np.zeros(grid.shape, np.uint8)
    for number, scene in enumerate(scenes, start=1):
        if origin.all():
            break
        values = np.stack([with_dataset(scene, band, partial(_warp_power, grid=grid)) for band in bands])
        rest = ~np.isnan(values).all(axis=0) & (origin == 0)
        np.copyto(power, values, where=rest)
        origin[rest] = number
    decibels: NDArray[np.float32] = 10 * np.log10(power)
    return ScenePixels(decibels, origin)


def _warp_power(dataset: Any, *, grid: Grid) -> NDArray[np.float32]:
    """Return linear power on a grid. Values that cannot be power count as missing, whatever the file declares."""
    _check_placed(dataset)
    offset = _offset_in(dataset, grid)
    window = None if offset is not None else _needed(dataset, grid)
    if offset is not None:
        values = _copy(dataset, grid, *offset, 0).astype(np.float32)
    elif window is not None:
        values = dataset.read(1, window=window).astype(np.float32)
    else:
        return np.full(grid.shape, np.nan, np.float32)
    nodata = dataset.nodata
    gone = ~np.isfinite(values) | (values <= 0)
    if nodata is not None and np.isfinite(nodata):
        gone |= values == np.float32(nodata)
    values[gone] = np.nan
    if window is None:
        return values
    return _reproject(
        values,
        move_transform(dataset.transform, window.col_off, window.row_off),
        dataset.crs,
        grid,
        Resampling.bilinear,
    )


def _read_heights(grid: Grid, scenes: Sequence[Scene]) -> ScenePixels:
    """Return heights in metres. Tiles are joined before interpolation; without a tile the height is 0 (sea)."""
    heights = np.full(grid.shape, np.nan, np.float32)
    groups = _by_lattice(scenes)
    for tiles in groups:
        values = _warp_tiles(grid, tiles, alone=len(groups) == 1)
        heights = np.where(np.isnan(heights), values, heights)
    # With one lattice the sea is already 0, so that the remaining gaps are holes in a tile.
    rest = NO_DEM if len(groups) == 1 else 0
    metres = np.where(np.isnan(heights), rest, np.rint(heights)).astype(np.int16)
    return ScenePixels(metres[None], (metres != NO_DEM).astype(np.uint8))


def _by_lattice(scenes: Sequence[Scene]) -> list[list[tuple[Scene, tuple[Any, ...]]]]:
    """Return the tiles in groups whose pixels lie on one lattice: CRS, pixel size and phase."""
    groups: dict[tuple[Any, ...], list[tuple[Scene, tuple[Any, ...]]]] = {}
    for scene in scenes:
        band = next(iter(scene.assets))
        transform, crs, shape = with_dataset(scene, band, lambda file: (file.transform, file.crs, file.shape))
        phase = (transform.c / transform.a % 1, transform.f / transform.e % 1)
        phase = tuple(round(value, 3) % 1 for value in phase)
        key = (crs.to_wkt(), round(transform.a, 12), round(transform.e, 12), phase)
        groups.setdefault(key, []).append((scene, (transform, crs, shape)))
    return list(groups.values())


def _warp_tiles(grid: Grid, tiles: Sequence[tuple[Scene, tuple[Any, ...]]], *, alone: bool) -> NDArray[np.float32]:
    """Return heights on a grid from tiles of one lattice, NaN for no data.

    Args:
        grid: Size and position.
        tiles: Scenes with transform, CRS and shape of their files.
        alone: Whether there is no other lattice, so that pixels without a tile are sea.
    """
    _, (transform, crs, _) = tiles[0]
    left, top, right, bottom = _extent(grid, crs, transform)
    whole = np.full((bottom - top, right - left), np.nan, np.float32)
    covered = np.zeros(whole.shape, bool)
    for scene, (own, _, shape) in tiles:
        column, row = round((own.c - transform.c) / transform.a), round((own.f - transform.f) / transform.e)
        first, last = max(top, row), min(bottom, row + shape[0])
        begin, end = max(left, column), min(right, column + shape[1])
        if first >= last or begin >= end:
            continue
        window = Window(begin - column, first - row, end - begin, last - first)
        values = with_dataset(scene, next(iter(scene.assets)), partial(_read_height_window, window=window))
        here = slice(first - top, last - top), slice(begin - left, end - left)
        np.copyto(whole[here], values, where=np.isnan(whole[here]))
        covered[here] = True
    if alone:
        # Before interpolation, so that there is no gap along a coast.
        whole[~covered] = 0
    elif not covered.any():
        return np.full(grid.shape, np.nan, np.float32)
    return _reproject(whole, move_transform(transform, left, top), crs, grid, Resampling.bilinear)


def _read_height_window(dataset: Any, window: Window) -> NDArray[np.float32]:
    values: NDArray[np.float32] = dataset.read(1, window=window).astype(np.float32)
    gone = ~np.isfinite(values)
    if dataset.nodata is not None:
        gone |= values == np.float32(dataset.nodata)
    values[gone] = np.nan
    return values


def _read_classes(grid: Grid, scenes: Sequence[Scene]) -> ScenePixels:
    """Return TerraMind's classes of land cover."""
    found = np.zeros(grid.shape, np.uint8)
    origin = np.zeros(grid.shape, np.uint8)
    for number, scene in enumerate(scenes, start=1):
        if origin.all():
            break
        band = next(iter(scene.assets))
        values = with_dataset(scene, band, partial(_warp, grid=grid, resampling=Resampling.nearest, nodata=0))
        odd = sorted(set(np.unique(values).tolist()) - ESRI_TO_LULC.keys())
        if odd:
            raise SceneError(
                scene.key,
                f"{scene.assets[band]}: {', '.join(map(str, odd[:5]))} is not a class of Esri's land cover with nine "
                f"classes ({', '.join(map(str, ESRI_TO_LULC))})",
            )
        rest = (values > 0) & (origin == 0)
        found[rest] = LULC_TABLE[values[rest].astype(np.uint8)]
        origin[rest] = number
    return ScenePixels(found[None], origin)


def _warp(dataset: Any, *, grid: Grid, resampling: Resampling, nodata: float) -> NDArray[Any]:
    """Return the first band of a file on a grid, with `nodata` where the file has no data.

    If the file has the same lattice, its pixels are copied. Otherwise pixels with data are interpolated.
    """
    _check_placed(dataset)
    offset = _offset_in(dataset, grid)
    if offset is not None:
        return _copy(dataset, grid, *offset, nodata)
    if _needed(dataset, grid) is None:
        return np.full(grid.shape, nodata, dataset.dtypes[0])
    with WarpedVRT(
        dataset,
        crs=grid.crs,
        transform=grid.transform,
        width=grid.width,
        height=grid.height,
        resampling=resampling,
        src_nodata=nodata,
        nodata=nodata,
        **pixel_ratio(grid, dataset.crs, dataset.transform),
    ) as warped:
        values: NDArray[Any] = warped.read(1)
    return values


def window_in(dataset: Any, grid: Grid) -> Window | None:
    """Return the window of a file to read for a grid, or None if they do not overlap."""
    offset = _offset_in(dataset, grid)
    if offset is None:
        return _needed(dataset, grid)
    column, row = offset
    left, top = max(column, 0), max(row, 0)
    right, bottom = min(column + grid.width, dataset.width), min(row + grid.height, dataset.height)
    return Window(left, top, right - left, bottom - top) if left < right and top < bottom else None


def _check_placed(dataset: Any) -> None:
    if is_indirect(dataset):
        raise DataError(f"it has only ground control points, like GRD products. {GRD}")
    if not dataset.crs:
        raise DataError("it has no CRS")


def _offset_in(dataset: Any, grid: Grid) -> tuple[int, int] | None:
    """Return the column and row of a grid's corner in a file with the same lattice; None if the lattice differs."""
    own = dataset.transform
    if dataset.crs != grid.crs or own.b or own.d or grid.transform.b or grid.transform.d:
        return None
    if abs(own.a - grid.transform.a) * grid.width > ALIGNED * abs(own.a):
        return None
    if abs(own.e - grid.transform.e) * grid.height > ALIGNED * abs(own.e):
        return None
    column, row = (grid.transform.c - own.c) / own.a, (grid.transform.f - own.f) / own.e
    if abs(column - round(column)) > ALIGNED or abs(row - round(row)) > ALIGNED:
        return None
    return round(column), round(row)


def _copy(dataset: Any, grid: Grid, column: int, row: int, nodata: float) -> NDArray[Any]:
    found = np.full(grid.shape, nodata, dataset.dtypes[0])
    first, last = max(row, 0), min(row + grid.height, dataset.height)
    begin, end = max(column, 0), min(column + grid.width, dataset.width)
    if first < last and begin < end:
        values = dataset.read(1, window=Window(begin, first, end - begin, last - first))
        found[first - row : last - row, begin - column : end - column] = values
    return found


def _needed(dataset: Any, grid: Grid) -> Window | None:
    """Return the window of a file that a grid needs, or None if they do not overlap."""
    _check_placed(dataset)
    left, top, right, bottom = _extent(grid, dataset.crs, dataset.transform)
    left, top = max(left, 0), max(top, 0)
    right, bottom = min(right, dataset.width), min(bottom, dataset.height)
    return Window(left, top, right - left, bottom - top) if left < right and top < bottom else None


def _extent(grid: Grid, crs: Any, transform: Affine) -> tuple[int, int, int, int]:
    """Return the part of another lattice that a grid needs: left, top, right and bottom in pixels."""
    corners = apply_affine(grid.transform, np.array([0, grid.width]), np.array([0, grid.height]))
    bounds = min(corners[0]), min(corners[1]), max(corners[0]), max(corners[1])
    if crs != grid.crs:
        bounds = transform_bounds(grid.crs, crs, *bounds, densify_pts=EDGE_POINTS)
    columns, rows = apply_affine(~transform, np.array(bounds[::2]), np.array(bounds[1::2]))
    # A pixel of a coarser grid averages all pixels that it covers.
    wide, tall = (math.ceil(np.ptp(one) / count) for one, count in ((columns, grid.width), (rows, grid.height)))
    return (
        math.floor(columns.min()) - MARGIN * wide,
        math.floor(rows.min()) - MARGIN * tall,
        math.ceil(columns.max()) + MARGIN * wide,
        math.ceil(rows.max()) + MARGIN * tall,
    )


def _reproject(
    values: NDArray[np.float32], transform: Affine, crs: Any, grid: Grid, resampling: Resampling
) -> NDArray[np.float32]:
    found = np.full(grid.shape, np.nan, np.float32)
    reproject(
        values,
        found,
        src_crs=crs,
        src_transform=transform,
        src_nodata=np.nan,
        dst_crs=grid.crs,
        dst_transform=grid.transform,
        dst_nodata=np.nan,
        resampling=resampling,
        **pixel_ratio(grid, crs, transform),
    )
    return found
