"""One chip: every modality of one simulated scene, and its label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.transform import Affine

from terramind_plugin.errors import ConfigError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.simulation.labels import LABEL_TASKS, NOT_SEEN
from terramind_plugin.simulation.landcover import Cover, make_covers
from terramind_plugin.simulation.materials import ID
from terramind_plugin.simulation.noise import FloatArray, fractal, smooth
from terramind_plugin.simulation.optics import observe_optical
from terramind_plugin.simulation.radar import observe_radar, swath_gap
from terramind_plugin.simulation.terrain import (
    INSIDE,
    PIXEL,
    Flood,
    Terrain,
    flood_levels,
    make_flood,
    make_terrain,
    recede,
)
from terramind_plugin.simulation.worlds import Region, World, flood_site

SMALLEST = 32
"""Smallest side of a chip, pixels."""
_RGB_WHITE = 3000  # digital number of L2A that becomes 255


@dataclass(frozen=True)
class SimulatedChip:
    """One simulated chip in all modalities. Height and width are equal."""

    name: str
    """Chip id, e.g. 'Delta_0001'."""
    images: dict[str, NDArray[Any]]
    """Modality name -> array [bands, H, W] in the bands, units and type of the modality; NaN = no data in S1.

    With several dates, all bands of a date follow those of the previous date; DEM and LULC have one date."""
    label: NDArray[np.int16]
    """Class of each pixel, [H, W], see `LABEL_TASKS`; for task water: 1 water (permanent, flood, under plants), 0 land.

    -1 is unknown."""
    transform: Affine
    """Transform from pixel corners to metres in `crs`."""
    crs: str
    """Coordinate reference system, e.g. 'EPSG:32646'."""


def make_surface_model(rng: np.random.Generator, terrain: Terrain, cover: Cover) -> FloatArray:
    """Return the heights of an elevation product in m [H, W]: coarser than 10 m, with tree tops, roofs and errors."""
    trees = np.isin(cover.material, (ID["broadleaf trees"], ID["conifers"], ID["flooded trees"]))
    roofs = np.isin(cover.material, (ID["houses"], ID["large roofs"], ID["flooded houses"]))
    height = terrain.elevation + 7.0 * trees + 3.5 * roofs
    error = 0.45 * fractal(rng, terrain.river.shape, 1.3, 12) + 0.35 * fractal(rng, terrain.river.shape, 2, 60)
    return smooth(height, 1.4) + error


def _ndvi(l2a: NDArray[np.uint16]) -> FloatArray:
    """Return (NIR - red) / (NIR + red) of S2L2A digital numbers, [H, W], in -1..1."""
    modality = MODALITIES["S2L2A"]
    nir = l2a[modality.band_index("B08")].astype(np.float32)
    red = l2a[modality.band_index("B04")].astype(np.float32)
    return np.asarray((nir - red) / (nir + red))


def _rgb(l2a: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return an 8-bit colour image [3, H, W] of S2L2A digital numbers."""
    colours = l2a[list(MODALITIES["S2L2A"].rgb)].astype(np.float32)
    return np.rint(np.clip(colours / _RGB_WHITE, 0, 1) * 255).astype(np.uint8)


def _observe(
    streams: tuple[np.random.Generator, np.random.Generator],
    region: Region,
    terrain: Terrain,
    cover: Cover,
    flood: Flood,
) -> dict[str, NDArray[Any]]:
    """Return the images of one date by modality.

    Args:
        streams: Random numbers of the optical sensor and of the radar.
        region: Region of the scene.
        terrain: Its terrain.
        cover: Its surface on this date.
        flood: Its water on this date.
    """
    optical, radar = streams
    l1c, l2a = observe_optical(optical, region, terrain, cover, flood)
    grd, rtc = observe_radar(radar, terrain, cover, flood)
    gap = swath_gap(radar, grd.shape[-2:])
    return {
        "S2L1C": l1c,
        "S2L2A": l2a,
        "S1GRD": np.where(gap, np.nan, grd).astype(np.float32),
        "S1RTC": np.where(gap, np.nan, rtc).astype(np.float32),
        "NDVI": _ndvi(l2a)[None],
        "RGB": _rgb(l2a),
    }


def simulate_chip(
    seed: int, index: int, size: int, world: World = flood_site, dates: int = 1, task: str = "water"
) -> SimulatedChip:
    """Return one chip of the simulated data set; the same arguments always give the same chip.

    A series shows the chip before its flood, at the peak, and while the water falls, see `flood_levels`. The label and
    the images of the peak are those of the chip with one date.

    Args:
        seed: Seed of the data set, at least 0.
        index: Number of the chip, from 0. A chip does not depend on the number of chips.
        size: Side in pixels of 10 m, at least 32.
        world: Function that chooses the place of a chip.
        dates: Number of dates.
        task: Meaning of the labels, a key of `LABEL_TASKS`. The images do not depend on it.

    Raises:
        ConfigError: An argument is too small.
    """
    if size < SMALLEST:
        raise ConfigError(f"Chips of {size} pixels are too small: write a size of at least {SMALLEST}.")
    if seed < 0 or index < 0:
        raise ConfigError(f"Seed and index of a chip must not be negative; got seed {seed}, index {index}.")
    # One stream per stage, so that a change in one stage does not change the random numbers of the others.
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence([seed, index]).spawn(6)]
    site = world(seed, index)
    region = site.region
    terrain = make_terrain(streams[0], region, size)
    peak = make_flood(streams[1], region, terrain)
    levels = flood_levels(dates)
    highest = levels.index(1.0)
    floods = [recede(peak, terrain, level, left=date > highest) for date, level in enumerate(levels)]
    covers = make_covers(streams[2], region, terrain, peak, floods)
    shots = []
    for date, (flood, cover) in enumerate(zip(floods, covers, strict=True)):
        more = np.random.SeedSequence([seed, index, 1 + date]).spawn(2)
        optical, radar = streams[3:5] if date == highest else map(np.random.default_rng, more)
        shots.append(_observe((optical, radar), region, terrain, cover, flood))
    elevation = make_surface_model(streams[5], terrain, covers[highest])
    classes = LABEL_TASKS[task].classify(covers[highest], terrain)[INSIDE].astype(np.int16)
    label = np.where(np.isnan(shots[highest]["S1GRD"][0]), np.int16(NOT_SEEN), classes)
    images: dict[str, NDArray[Any]] = {name: np.concatenate([shot[name] for shot in shots]) for name in shots[0]}
    images |= {"DEM": elevation[None][INSIDE], "LULC": covers[highest].lulc[None][INSIDE]}
    return SimulatedChip(
        name=site.name,
        images={name: np.ascontiguousarray(image) for name, image in images.items()},
        label=label,
        transform=Affine(PIXEL, 0, site.easting, 0, -PIXEL, site.northing),
        crs=f"EPSG:{region.epsg}",
    )
