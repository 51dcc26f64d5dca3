"""The cover of the ground: fields, woods, settlements, roads, barren land; and the annual land-cover map of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from terramind_plugin.simulation import materials as table
from terramind_plugin.simulation.materials import ID
from terramind_plugin.simulation.noise import BoolArray, FloatArray, IntArray, fractal, ramp, smooth, uniform_of
from terramind_plugin.simulation.terrain import Flood, Terrain
from terramind_plugin.simulation.worlds import Region

MaterialArray = np.ndarray
"""Material ids, uint8 [H, W]."""


@dataclass(frozen=True)
class Cover:
    """Surface of a scene at the time of the images. All arrays are [H, W]."""

    material: MaterialArray
    """Indices into MATERIALS."""
    dry: MaterialArray
    """Indices into MATERIALS of the ground without water."""
    brightness: FloatArray
    """Factor on the reflectance that a whole field shares."""
    vigour: FloatArray
    """Vigour of the plants, 0 to 1."""
    lulc: MaterialArray
    """Annual land-cover map: class ids of the LULC modality, with the errors of such maps."""
    water: BoolArray
    """True water at the time of the images, including that under trees and crops."""


@dataclass(frozen=True)
class _Parcels:
    key: IntArray
    edge: BoolArray


def _rotated(shape: tuple[int, int], angle: float | FloatArray) -> tuple[FloatArray, FloatArray]:
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    cos, sin = np.cos(angle), np.sin(angle)
    return columns * cos + rows * sin, rows * cos - columns * sin


def _make_parcels(rng: np.random.Generator, shape: tuple[int, int], grain: float) -> _Parcels:
    """Return an integer key per field and the field edges.

    Districts (cells of a Voronoi diagram) have one field pattern each: strips of fields of their own angle and size,
    with a typical length of `grain` pixels.
    """
    count = max(4, shape[0] * shape[1] // 5500)
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    warped = (rows + 5 * fractal(rng, shape, 2, 40), columns + 5 * fractal(rng, shape, 2, 40))
    seeds = rng.uniform(0, 1, (count, 2)) * np.asarray(shape)
    district = np.zeros(shape, np.int64)
    nearest = np.full(shape, np.inf, np.float32)
    for number, (y, x) in enumerate(seeds.astype(np.float32)):
        distance = (warped[0] - y) ** 2 + (warped[1] - x) ** 2
        closer = distance < nearest
        nearest[closer] = distance[closer]
        district[closer] = number
    # Neighbouring districts often share the direction of the main road.
    angles = rng.choice(rng.uniform(0, np.pi, 3), count) + rng.normal(0, 0.12, count)
    u, v = _rotated(shape, angles[district].astype(np.float32))
    u += 0.8 * fractal(rng, shape, 2, 60)
    v += 0.8 * fractal(rng, shape, 2, 60)
    length, width = grain * rng.uniform(0.6, 1.7, (2, count)) * np.asarray([[1.3], [0.8]])
    strip = np.floor(v / width[district]).astype(np.int64) + 5000
    row_key = district * 100_003 + strip
    cell = np.floor(u / (length[district] * (0.6 + 0.9 * uniform_of(row_key, 1))) + 9 * uniform_of(row_key, 2))
    key = row_key * 4099 + cell.astype(np.int64) + 2000
    edge = np.zeros(shape, bool)
    edge[:, 1:] |= key[:, 1:] != key[:, :-1]
    edge[1:] |= key[1:] != key[:-1]
    return _Parcels(key, edge)


def _crops(rng: np.random.Generator, region: Region, parcels: _Parcels, greenness: float) -> MaterialArray:
    """Return the material of each field, as if all land were farmed."""
    share = {
        "green crop": 0.30 * greenness + 0.08,
        "tall crop": 0.26 * greenness,
        "stubble": 0.28 * (1.1 - greenness),
        "ploughed soil": 0.15,
        "smooth soil": rng.uniform(0.0, 0.09),
        "waterlogged soil": rng.uniform(0.02, 0.16) * (1 - region.dry),
        "meadow": 0.18,
    }
    bounds = np.cumsum(np.asarray(list(share.values())) * rng.uniform(0.4, 1.6, len(share)))
    choice = np.searchsorted(bounds / bounds[-1], uniform_of(parcels.key, 3), side="right").clip(0, len(share) - 1)
    return np.asarray(np.asarray([ID[name] for name in share], np.uint8)[choice])


def _add_barren(rng: np.random.Generator, region: Region, terrain: Terrain, material: MaterialArray) -> None:
    """Put sand bars, dunes and salt flats, rock and snow on the map, in place."""
    shape = material.shape
    patch = fractal(rng, shape, 2.1, 55)
    lowland = (terrain.slope < 0.06) & (terrain.river_distance > 0)
    barren = lowland & (patch > np.quantile(patch, 1 - region.dry * rng.uniform(0.3, 1.0)))
    kind = ID["salt flat"] if rng.random() < 0.45 else ID["sand"]
    material[barren] = kind
    bars = (terrain.river_distance > 0) & (terrain.river_distance < 90) & (fractal(rng, shape, 1.8, 24) > 1.1)
    material[bars] = ID["sand"]
    steep = terrain.slope + 0.1 * fractal(rng, shape, 1.6, 30)
    material[steep > 0.75] = ID["rock"]
    line = terrain.snow_line + 40 * fractal(rng, shape, 1.8, 40) + 150 * (terrain.slope - 0.4)
    material[terrain.elevation > line] = ID["snow"]


def _add_woods(
    rng: np.random.Generator, region: Region, terrain: Terrain, parcels: _Parcels, material: MaterialArray
) -> None:
    """Put woods on slopes, along rivers and field edges, in place; conifers higher up."""
    shape = material.shape
    wood = fractal(rng, shape, 1.9, 50) + 1.8 * ramp(terrain.slope, 0.04, 0.25)
    riparian = np.exp(-((np.maximum(terrain.river_distance, 0) / 70) ** 2)) * (terrain.river_distance > 0)
    wood += (0.9 + region.woodland) * riparian - 1.2 * region.dry
    woods = (wood > 2.1 - 1.6 * region.woodland) & ~np.isin(material, (ID["rock"], ID["snow"], ID["salt flat"]))
    high = terrain.elevation + 120 * fractal(rng, shape, 2, 40) > 0.45 * terrain.snow_line + 200
    material[woods] = np.where(high, ID["conifers"], ID["broadleaf trees"])[woods]
    hedge = parcels.edge & (uniform_of(parcels.key, 4) < 0.45 * region.woodland) & (material != ID["sand"])
    material[hedge & (terrain.river_distance > 0)] = ID["broadleaf trees"]


def _village_sites(rng: np.random.Generator, terrain: Terrain, flood: Flood) -> list[tuple[int, int]]:
    """Return (row, column) of villages: flat, mostly dry, not far from water."""
    shape = terrain.slope.shape
    count = int(rng.poisson(1.5 * max(shape[0] * shape[1] / 336**2, 0.3)))
    sites: list[tuple[int, int]] = []
    for _ in range(count):
        rows, columns = rng.integers(0, shape[0], 40), rng.integers(0, shape[1], 40)
        near = np.abs(terrain.river_distance[rows, columns] - 350) / 500
        score = near + 12 * terrain.slope[rows, columns] + 1.2 * (flood.depth[rows, columns] > 0.1)
        best = int(np.argmin(score + rng.normal(0, 0.3, 40)))
        sites.append((int(rows[best]), int(columns[best])))
    return sites


def _add_settlements(rng: np.random.Generator, terrain: Terrain, flood: Flood, material: MaterialArray) -> BoolArray:
    """Put villages and roads on the map, in place; return where roads run on embankments above the flood."""
    shape = material.shape
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    bend = 5 * fractal(rng, shape, 2.2, 80)
    ragged = fractal(rng, shape, 1.5, 20)
    roads = np.zeros(shape, bool)
    usable = (terrain.river_distance > 0) & (terrain.slope < 0.2) & (material != ID["snow"])
    for y, x in _village_sites(rng, terrain, flood):
        radius, angle = rng.uniform(8, 30), rng.uniform(0, np.pi)
        distance = np.hypot(rows - y, columns - x)
        town = (distance + 0.28 * radius * ragged < radius) & usable
        u, v = _rotated(shape, angle)
        block = (np.floor(u / 4.3).astype(np.int64) + 3000) * 10_007 + np.floor(v / 3.4).astype(np.int64) + 3000
        lot = uniform_of(block, int(rng.integers(1000)))
        gardens = 0.25 + 0.5 * np.clip(distance / radius, 0, 1)  # towns are denser inside
        buildings = np.where(lot > 0.93, ID["large roofs"], ID["houses"])
        green = np.where(uniform_of(block, 7) < 0.5, ID["broadleaf trees"], ID["meadow"])
        material[town] = np.where(lot < gardens, green, buildings)[town]
        for turn in (rng.uniform(0, np.pi), rng.uniform(0, np.pi))[: rng.integers(1, 3)]:
            across = (rows - y) * np.cos(turn) - (columns - x) * np.sin(turn)
            roads |= np.abs(across + bend - bend[y, x]) < 0.75
    roads &= terrain.slope < 0.35
    material[roads] = ID["tarmac"]
    return roads


def _add_airfield(rng: np.random.Generator, terrain: Terrain, flood: Flood, material: MaterialArray) -> None:
    """Put an airfield on flat dry land in some scenes, in place: large and dark in the radar, like water."""
    if rng.random() > 0.25:
        return
    shape = material.shape
    for _ in range(10):
        u, v = _rotated(shape, float(rng.uniform(0, np.pi)))
        y, x = rng.integers(0, shape[0]), rng.integers(0, shape[1])
        u, v = u - u[y, x], v - v[y, x]
        grounds = (np.abs(u) < 75) & (v > -10) & (v < 26)
        if flood.water[grounds].mean() > 0.01 or terrain.slope[grounds].mean() > 0.05:
            continue
        grounds &= ~flood.water
        material[grounds] = ID["meadow"]
        material[grounds & (np.abs(u) < 70) & (np.abs(v) < 2.6)] = ID["tarmac"]
        material[grounds & (np.abs(u) < 55) & (np.abs(v - 9) < 1.2)] = ID["tarmac"]
        material[grounds & (np.abs(u - 20) < 18) & (v > 9) & (v < 21)] = ID["tarmac"]
        material[grounds & (np.abs(u - 20) < 14) & (np.abs(v - 23) < 2.5)] = ID["large roofs"]
        return


def _annual_map(
    rng: np.random.Generator, material: MaterialArray, river: BoolArray, terrain: Terrain, stage: float
) -> MaterialArray:
    """Return an annual land-cover map of the dry state: class ids, uint8 [H, W].

    It knows permanent water, calls land that floods most years 'flooded vegetation', mistakes some grass for crops
    and some dry lakes for water, is a little displaced and is smoothed to its minimum mapping unit: it helps to tell
    water from land but does not show this flood.
    """
    shape = material.shape
    lulc = table.LULC_OF[material]
    often = terrain.height_above_river < 0.45 * stage + 0.25 * fractal(rng, shape, 2, 30)
    wetland = often & np.isin(lulc, (table.TREES, table.CROPS, table.RANGELAND))
    lulc = np.where(wetland & (fractal(rng, shape, 1.8, 25) > 0.3), table.FLOODED_VEGETATION, lulc)
    lulc = np.where(river, table.WATER, lulc)
    blob = fractal(rng, shape, 1.5, 14)
    crops_or_grass = np.where(
        lulc == table.CROPS, table.RANGELAND, np.where(lulc == table.RANGELAND, table.CROPS, lulc)
    )
    lulc = np.where(blob > 1.2, crops_or_grass, lulc)
    lulc = np.where((blob < -0.9) & (lulc == table.BARE) & (terrain.slope < 0.05), table.WATER, lulc)
    at = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    at += 1.2 * np.stack([fractal(rng, shape, 1.5, 12), fractal(rng, shape, 1.5, 12)])
    lulc = ndimage.map_coordinates(lulc, at, order=0, mode="nearest")
    classes = np.unique(lulc)
    votes = np.stack([ndimage.uniform_filter((lulc == c).astype(np.float32), 5) for c in classes])
    return np.asarray(classes[np.argmax(votes, axis=0)], np.uint8)


def make_covers(
    rng: np.random.Generator, region: Region, terrain: Terrain, flood: Flood, dates: Sequence[Flood]
) -> list[Cover]:
    """Return the surface of a scene on several dates: dry land as people and plants use it, covered by the flood.

    Args:
        rng: Random numbers.
        region: Where the scene lies.
        terrain: Its terrain.
        flood: The highest water, which decides where people build.
        dates: The water of each date.
    """
    shape = terrain.slope.shape
    greenness = rng.uniform(*region.greenness)
    parcels = _make_parcels(rng, shape, rng.uniform(10, 24))
    wild = fractal(rng, shape, 2, 40) + 1.6 * (1 - greenness) - 0.4
    material = np.where(wild > 0, ID["dry grass"], ID["meadow"]).astype(np.uint8)
    farm = fractal(rng, shape, 2, 70) + uniform_of(parcels.key, 5) * 0.6 - 14 * np.maximum(terrain.slope - 0.05, 0)
    farmed = farm > 1.6 - 3.4 * region.farmland
    material[farmed] = _crops(rng, region, parcels, greenness)[farmed]
    _add_barren(rng, region, terrain, material)
    _add_woods(rng, region, terrain, parcels, material)
    _add_airfield(rng, terrain, flood, material)
    roads = _add_settlements(rng, terrain, flood, material)
    lulc = _annual_map(rng, material, terrain.river, terrain, max(flood.stage, 0.3))

    vigour = greenness * (0.6 + 0.4 * uniform_of(parcels.key, 6)) + 0.12 * fractal(rng, shape, 1.6, 30)
    brightness = 1 + 0.16 * (uniform_of(parcels.key, 8) - 0.5) + 0.05 * fractal(rng, shape, 1.6, 60)
    covers = []
    for now in dates:
        covered, water = _cover_with_water(material, roads, terrain, now)
        covers.append(
            Cover(
                material=covered,
                dry=material,
                brightness=brightness.astype(np.float32),
                vigour=smooth(np.clip(vigour, 0.02, 1), 0.5),
                lulc=lulc,
                water=water,
            )
        )
    return covers


def _cover_with_water(
    material: MaterialArray, roads: BoolArray, terrain: Terrain, flood: Flood
) -> tuple[MaterialArray, BoolArray]:
    """Return the materials of dry land as they are under water, and where the water is."""
    water = flood.water & ~(roads & (flood.depth < 3.0))  # roads cross shallow water on bridges
    shallow = flood.depth < table.SHALLOW_LIMIT[material]
    under = np.where(shallow, table.SHALLOW[material], table.DEEP[material])
    covered = np.where(water & ~terrain.river, under, material)
    return np.where(water & terrain.river, ID["clear water"], covered).astype(np.uint8), water
