"""Sites of the chips of a simulated data set, and the numbers that give each its character.

Chips of a flood data set lie in four imaginary regions. A globe is an imaginary planet without seas, on which climate,
relief and soil are smooth functions of longitude and latitude, so that a model can tell a place from its images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rasterio.warp import transform as transform_positions

from terramind_plugin.simulation.noise import ramp

Range = tuple[float, float]
_SPACING = 12_000.0  # m between the corners of chips of one region
_CHIPS_PER_ROW = 25
_SOUTHERNMOST, _NORTHERNMOST = -60.0, 72.0


@dataclass(frozen=True)
class Region:
    """Ranges from which the properties of a chip are drawn, uniformly."""

    name: str
    """First part of the chip ids."""
    epsg: int
    """UTM zone of the region."""
    northing: float
    """Northing of the region's first chip, m."""
    altitude: Range
    """Height of the river above the sea, m."""
    steepness: Range
    """Slope of a hillside cell without inflow; 0.3 is mountainous, 0.01 a plain."""
    valley: Range
    """Half width of the flat valley floor, m."""
    micro_relief: Range
    """Standard deviation of small-scale height differences on the valley floor, m."""
    river_width: Range
    """Width of the main river, m."""
    meander: Range
    """Largest angle between river and valley, radian."""
    side_channels: tuple[int, int]
    """Number of further arms and cut-off loops: fewest, most."""
    flooded: Range
    """Share of the chip under water at the time of the images."""
    farmland: float
    """Share of suitable land that is farmed."""
    woodland: float
    """Share of the rest that is wooded."""
    greenness: Range
    """Vigour of vegetation: 0 withered, 1 lush."""
    soil_red: Range
    """Redness of the soil: 0 grey, 1 red."""
    dry: float
    """Share of barren land (sand, salt flats, dry lakes) in uncultivated lowland."""
    snow_line: float
    """Height above which snow lies, m."""


REGIONS: tuple[Region, ...] = (
    Region("Delta", 32646, 2_430_000, (1, 8), (0.004, 0.010), (900, 2500), (0.5, 0.9), (90, 260), (0.5, 1.1),
           (1, 3), (0.16, 0.48), 0.75, 0.25, (0.7, 1.0), (0.0, 0.3), 0.05, 9000),
    Region("Valley", 32632, 5_080_000, (250, 1600), (0.7, 1.6), (200, 420), (0.4, 0.9), (25, 60), (0.4, 0.9),
           (0, 1), (0.08, 0.24), 0.60, 0.55, (0.6, 1.0), (0.1, 0.4), 0.04, 1700),
    Region("Plain", 32633, 5_320_000, (60, 250), (0.010, 0.035), (400, 1100), (0.5, 0.9), (40, 110), (0.8, 1.6),
           (1, 3), (0.12, 0.42), 0.88, 0.35, (0.5, 1.0), (0.1, 0.6), 0.03, 9000),
    Region("Basin", 32736, 7_900_000, (300, 900), (0.025, 0.10), (400, 1000), (0.4, 0.8), (40, 140), (0.5, 1.2),
           (0, 2), (0.08, 0.34), 0.35, 0.12, (0.2, 0.7), (0.4, 1.0), 0.28, 9000),
)  # fmt: skip
"""Chip number i lies in region i modulo 4."""


@dataclass(frozen=True)
class Site:
    """Position of one chip."""

    name: str
    """Chip id, e.g. 'Delta_0001'."""
    region: Region
    easting: float
    """Easting of the upper left corner in the region's UTM zone, m."""
    northing: float
    """Northing of that corner, m."""

    @property
    def position(self) -> tuple[float, float]:
        """Return longitude and latitude of the upper left corner, degrees."""
        (longitude,), (latitude,) = transform_positions(
            f"EPSG:{self.region.epsg}", "EPSG:4326", [self.easting], [self.northing]
        )
        return longitude, latitude


World = Callable[[int, int], Site]
"""Returns where a chip of a data set lies: given the seed, and the chip's number from 0."""


def flood_site(seed: int, index: int) -> Site:
    """Return the site of a chip in one of the regions known for floods; the same for every seed."""
    region = REGIONS[index % len(REGIONS)]
    row, column = divmod(index // len(REGIONS), _CHIPS_PER_ROW)
    return Site(f"{region.name}_{index + 1:04d}", region, 400_000 + column * _SPACING, region.northing - row * _SPACING)


BIOMES = ("Rainforest", "Savanna", "Desert", "Farmland", "Highland", "Boreal", "Tundra")
"""First parts of the chip ids."""


@dataclass(frozen=True)
class Climate:
    """Climate, relief and soil at one position on the globe."""

    temperature: float
    """Annual mean at the position's height, degrees Celsius."""
    wetness: float
    """0 desert to 1 rainforest."""
    altitude: float
    """Height of the rivers above the sea, m."""
    ruggedness: float
    """0 plain to 1 mountains."""
    soil_red: float
    """Redness of the soil: 0 grey, 1 red."""

    @property
    def biome(self) -> str:
        """Name of the biome, one of `BIOMES`; after the diagram of Whittaker (1975)."""
        if self.temperature < -2:
            return "Tundra"
        if self.altitude > 1400 and self.ruggedness > 0.5:
            return "Highland"
        if self.wetness < 0.3:
            return "Desert"
        if self.temperature < 6:
            return "Boreal"
        if self.temperature > 19:
            return "Rainforest" if self.wetness > 0.62 else "Savanna"
        return "Farmland"


def climate_at(longitude: float, latitude: float) -> Climate:
    """Return the climate at a position in degrees: warm and wet at the equator, dry near 25 degrees, cold at the poles.

    Along a parallel a wet side faces a dry one, one great plateau rises, and the soil changes its colour.
    """
    east, north = np.deg2rad(longitude), abs(latitude)
    plateau = 0.5 + 0.5 * np.cos(east - 1.6)
    altitude = 20 + 2600 * plateau**3 * (0.5 + 0.5 * np.cos(np.deg2rad(2 * latitude - 60)))
    belts = 0.95 * np.exp(-((north / 14) ** 2)) + 0.75 * np.exp(-(((north - 50) / 17) ** 2)) + 0.1
    wetness = float(np.clip(belts + 0.22 * np.cos(east + 0.9), 0.02, 1))
    ruggedness = float(np.clip(0.5 + 0.6 * np.sin(2 * east + 0.4) * np.cos(np.deg2rad(latitude)), 0, 1))
    soil_red = float(np.clip(0.9 * np.exp(-((north / 32) ** 2)) + 0.45 * np.sin(east), 0, 1))
    temperature = 27 - 33 * (1 - np.cos(np.deg2rad(1.35 * north))) - 0.0045 * altitude
    return Climate(float(temperature), wetness, float(altitude), ruggedness, soil_red)


def region_at(longitude: float, latitude: float) -> Region:
    """Return the numbers that give a chip at a position in degrees its character."""
    climate = climate_at(longitude, latitude)
    warm = float(ramp(np.asarray(climate.temperature), -4, 16))
    temperate = float(np.exp(-(((climate.temperature - 12) / 9) ** 2)))
    wet, rugged = climate.wetness, climate.ruggedness
    green = float(np.clip(0.1 + 0.9 * wet * (0.35 + 0.65 * warm), 0, 1))
    return Region(
        name=climate.biome,
        epsg=_utm_zone(longitude, latitude),
        northing=0.0,
        altitude=_around(climate.altitude, 0.12 * climate.altitude + 8),
        steepness=_around(0.006 + 0.9 * rugged**3, 0.003 + 0.3 * rugged**3),
        valley=(250 + 900 * (1 - rugged), 500 + 1700 * (1 - rugged)),
        micro_relief=(0.4, 0.9),
        river_width=(25 + 40 * wet, 60 + 40 * wet + 150 * wet * (1 - rugged)),
        meander=(0.5, 0.9 + 0.6 * (1 - rugged)),
        side_channels=(0, 1 + round(2 * wet)),
        flooded=(0.04 + 0.06 * wet, 0.12 + 0.3 * wet * (1 - 0.6 * rugged)),
        farmland=float(np.clip(0.95 * temperate * ramp(np.asarray(wet), 0.15, 0.5), 0.02, 0.9)),
        woodland=float(np.clip(wet * (0.25 + 0.75 * warm) * (1.2 - 0.7 * temperate), 0.02, 0.95)),
        greenness=_around(green, 0.12, largest=1.0),
        soil_red=_around(climate.soil_red, 0.08, largest=1.0),
        dry=float(np.clip(1.1 * (0.42 - wet), 0.02, 0.6)),
        snow_line=max(climate.temperature / 0.0055 + climate.altitude + 250, 0.0),
    )


def globe_site(seed: int, index: int) -> Site:
    """Return the site of a chip, drawn evenly from the land between 60 degrees south and 72 degrees north."""
    rng = np.random.default_rng([seed, index, 360])
    low, high = np.sin(np.deg2rad([_SOUTHERNMOST, _NORTHERNMOST]))
    longitude, latitude = float(rng.uniform(-180, 180)), float(np.rad2deg(np.arcsin(rng.uniform(low, high))))
    region = region_at(longitude, latitude)
    (east,), (north,) = transform_positions("EPSG:4326", f"EPSG:{region.epsg}", [longitude], [latitude])
    return Site(f"{region.name}_{index + 1:05d}", region, round(east / 10) * 10.0, round(north / 10) * 10.0)


def _around(middle: float, spread: float, largest: float = np.inf) -> Range:
    return (max(middle - spread, 0.0), min(middle + spread, largest))


def _utm_zone(longitude: float, latitude: float) -> int:
    """Return the EPSG code of a position's UTM zone."""
    zone = min(int((longitude + 180) // 6) + 1, 60)
    return (32600 if latitude >= 0 else 32700) + zone


WORLDS: dict[str, World] = {"floods": flood_site, "globe": globe_site}
"""Worlds by name: regions known for floods, or anywhere on a globe whose climate follows latitude."""
