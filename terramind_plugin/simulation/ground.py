"""The ground of a simulated catalogue, and what satellites see of it on each pass, on the grid of any product."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.warp import reproject

from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.georeference import Grid, apply_affine
from terramind_plugin.simulation import materials as table
from terramind_plugin.simulation.chip import make_surface_model
from terramind_plugin.simulation.landcover import Cover, make_covers
from terramind_plugin.simulation.noise import BoolArray, FloatArray
from terramind_plugin.simulation.optics import Sky, make_sky, observe_optical
from terramind_plugin.simulation.overpasses import OPTICAL_PASSES, RADAR_PASSES, ground_grid, inside
from terramind_plugin.simulation.radar import observe_radar
from terramind_plugin.simulation.terrain import INSIDE, Flood, Terrain, make_flood, make_terrain
from terramind_plugin.simulation.worlds import Region

REGION = Region("Border", 32633, 0.0, (300, 400), (0.05, 0.15), (600, 1400), (0.5, 0.9), (60, 140), (0.6, 1.2),
                (1, 2), (0.14, 0.3), 0.70, 0.45, (0.6, 1.0), (0.1, 0.5), 0.05, 2500)  # fmt: skip
"""Character of the ground: a flooded valley between hills."""
RESOLUTIONS = {**dict.fromkeys(("B01", "B09"), 60), **dict.fromkeys(("B02", "B03", "B04", "B08"), 10)}
"""Pixel size in m of the bands of Sentinel-2 L2A; 20 for those that are not listed."""
ESRI = np.array([0, 1, 2, 4, 5, 7, 8, 9, 10, 11], np.uint8)
"""Class id in Esri's land-cover map by class id of the LULC modality."""


@dataclass(frozen=True)
class OpticalScene:
    """What Sentinel-2 sees of the whole ground on a pass."""

    counts: NDArray[np.uint16]
    """Digital numbers of S2L2A without offset, [12, H, W]."""
    classes: NDArray[np.uint8]
    """Scene classification (SCL), [H, W]."""
    valid: BoolArray
    """True inside the swath, [H, W]."""


class Ground:
    """The simulated ground; each part is made when it is needed first.

    Args:
        seed: Same seed, same ground.
        size: Height and width of a tile, pixels of 10 m.
    """

    def __init__(self, seed: int, size: int) -> None:
        self.grid = ground_grid(size)
        self._seeds = np.random.SeedSequence([seed, size, 2]).spawn(4 + len(OPTICAL_PASSES) + len(RADAR_PASSES))
        self.optical = lru_cache(maxsize=1)(self._observe_optical)
        """Function that returns the `OpticalScene` of a pass, given its number in `OPTICAL_PASSES`."""
        self.radar = lru_cache(maxsize=1)(self._observe_radar)
        """Function that returns VV and VH of a pass, gamma0 as power [2, H, W]; NaN outside the swath."""

    def _rng(self, number: int) -> np.random.Generator:
        return np.random.default_rng(self._seeds[number])

    @cached_property
    def _parts(self) -> tuple[Terrain, Flood, Cover]:
        terrain = make_terrain(self._rng(0), REGION, self.grid.height)
        flood = make_flood(self._rng(1), REGION, terrain)
        return terrain, flood, make_covers(self._rng(2), REGION, terrain, flood, [flood])[0]

    @cached_property
    def elevation(self) -> FloatArray:
        """Height of the surface above the sea, m [H, W]."""
        terrain, _, cover = self._parts
        return np.asarray(make_surface_model(self._rng(3), terrain, cover)[INSIDE], np.float32)

    @cached_property
    def landcover(self) -> NDArray[np.uint8]:
        """Class ids of Esri's land-cover map, [H, W]."""
        return np.asarray(ESRI[self._parts[2].lulc[INSIDE]])

    @cached_property
    def water(self) -> NDArray[np.uint8]:
        """Water at the time of all images, [H, W]: 1 water, 0 land."""
        return np.asarray(self._parts[2].water[INSIDE], np.uint8)

    def _observe_optical(self, number: int) -> OpticalScene:
        terrain, flood, cover = self._parts
        rng, one = self._rng(4 + number), OPTICAL_PASSES[number]
        sky = make_sky(rng, REGION, cover.material.shape, one.clouds)
        _, counts = observe_optical(rng, REGION, terrain, cover, flood, sky)
        return OpticalScene(counts, _classify(sky, cover), inside(one.edge, self.grid))

    def _observe_radar(self, number: int) -> FloatArray:
        terrain, flood, cover = self._parts
        _, decibels = observe_radar(self._rng(4 + len(OPTICAL_PASSES) + number), terrain, cover, flood)
        power = 10 ** (decibels / 10)
        power[:, ~inside(RADAR_PASSES[number].edge, self.grid)] = np.nan
        return np.asarray(power, np.float32)

    def put(self, values: NDArray[Any], grid: Grid, resampling: Resampling, fill: float = 0.0) -> NDArray[Any]:
        """Return values of the ground on another grid, [bands, H, W].

        Args:
            values: Values on the grid of the ground, [bands, H, W].
            grid: A grid; if it has the zone of the ground, its pixels are pixels of the ground.
            resampling: How to warp to another zone.
            fill: Value beyond the ground; for floats NaN counts as missing.
        """
        if grid.crs == self.grid.crs and grid.transform.a == self.grid.transform.a:
            column, row = (round(x) for x in apply_affine(~self.grid.transform, grid.transform.c, grid.transform.f))
            if row < 0 or column < 0 or row + grid.height > self.grid.height or column + grid.width > self.grid.width:
                raise ValueError(f"{grid} reaches beyond the ground {self.grid}")
            return values[:, row : row + grid.height, column : column + grid.width]
        return warp(values, self.grid, grid, resampling, fill)


def warp(values: NDArray[Any], source: Grid, grid: Grid, resampling: Resampling, fill: float = 0.0) -> NDArray[Any]:
    """Return an image on another grid, [bands, H, W].

    Args:
        values: Values on the first grid, [bands, H, W]; for floats NaN counts as missing.
        source: The first grid.
        grid: The other grid.
        resampling: How to warp.
        fill: Value of what the image does not cover.
    """
    result = np.full((len(values), *grid.shape), fill, values.dtype)
    reproject(
        values,
        result,
        src_crs=source.crs,
        src_transform=source.transform,
        src_nodata=np.nan if values.dtype.kind == "f" else None,
        dst_crs=grid.crs,
        dst_transform=grid.transform,
        init_dest_nodata=False,  # GDAL 3.11 and later move values away from a declared nodata value
        resampling=resampling,
    )
    return result


def coarsen(scene: OpticalScene, ground: Ground, grid: Grid, offset: int) -> dict[str, NDArray[np.uint16]]:
    """Return the bands of a product of Sentinel-2 at their resolutions, [h, w]; 0 outside the swath.

    Args:
        scene: What the satellite sees of the ground.
        ground: The ground.
        grid: Grid of the tile, pixels of 10 m.
        offset: Number that the processing baseline adds to the digital numbers.
    """
    values = ground.put(scene.counts.astype(np.float32), grid, Resampling.bilinear)
    valid = ground.put(scene.valid[None].view(np.uint8), grid, Resampling.nearest)[0] == 1
    bands = {}
    for number, name in enumerate(MODALITIES["S2L2A"].band_names):
        factor = RESOLUTIONS.get(name, 20) // 10
        counts = np.maximum(np.rint(_blocks(values[number], factor).mean(axis=(1, 3))), 1) + offset
        bands[name] = np.where(_blocks(valid, factor).all(axis=(1, 3)), counts, 0).astype(np.uint16)
    classes = ground.put(scene.classes[None], grid, Resampling.nearest)[0][::2, ::2]
    bands["SCL"] = np.where(_blocks(valid, 2).all(axis=(1, 3)), classes, 0).astype(np.uint8)
    return bands


def _blocks(values: NDArray[Any], factor: int) -> NDArray[Any]:
    """Return an image [H, W] as blocks of some pixels, [H / factor, factor, W / factor, factor]."""
    height, width = values.shape
    return values.reshape(height // factor, factor, width // factor, factor)


def _classify(sky: Sky, cover: Cover) -> NDArray[np.uint8]:
    """Return the scene classification of ESA's processor, [H, W]."""
    classes = np.where(table.PLANT[cover.material] > 0.3, 4, 5)  # vegetated, or not
    classes[cover.material == table.ID["snow"]] = 11
    classes[cover.water] = 6
    classes[sky.shadow > 0.35] = 3
    classes[sky.cirrus > 0.02] = 10
    classes[sky.cloud > 0.15] = 8  # cloud with medium probability
    classes[sky.cloud > 0.5] = 9  # and with high probability
    return np.asarray(classes[INSIDE], np.uint8)
