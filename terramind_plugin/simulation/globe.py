"""A round world: places whose climate, relief and soil follow from where they are, so that a place can be told.

The planet is imaginary and has no seas. Its laws are smooth functions of longitude and latitude.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rasterio.warp import transform as transform_positions

from terramind_plugin.simulation.noise import ramp
from terramind_plugin.simulation.regions import Range, Region
from terramind_plugin.simulation.sites import Site

SOUTHERNMOST, NORTHERNMOST = -60.0, 72.0
BIOMES = ("Rainforest", "Savanna", "Desert", "Farmland", "Highland", "Boreal", "Tundra")
"""First parts of the chip ids."""


@dataclass(frozen=True)
class Climate:
    """What a place on the globe is like."""

    temperature: float
    """Annual mean at the height of the place, degrees Celsius."""
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
    """Return the climate of a place: warm and wet at the equator, dry near 25 degrees, cold at the poles.

    Along a parallel a wet side faces a dry one, one great plateau rises, and the soil changes its colour.

    Args:
        longitude: Degrees, -180 to 180.
        latitude: Degrees, -90 to 90.
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
    """Return the numbers that give a chip at a place its character."""
    climate = climate_at(longitude, latitude)
    warm = float(ramp(np.asarray(climate.temperature), -4, 16))
    temperate = float(np.exp(-(((climate.temperature - 12) / 9) ** 2)))
    wet, rugged = climate.wetness, climate.ruggedness
    green = float(np.clip(0.1 + 0.9 * wet * (0.35 + 0.65 * warm), 0, 1))
    snow_line = max(climate.temperature / 0.0055 + climate.altitude + 250, 0.0)
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
        snow_line=snow_line,
    )


@dataclass(frozen=True)
class Globe:
    """Places drawn evenly from the land between 60 degrees south and 72 degrees north."""

    name: str = "globe"

    def site(self, seed: int, index: int) -> Site:
        """Return where chip `index` of a data set lies."""
        rng = np.random.default_rng([seed, index, 360])
        low, high = np.sin(np.deg2rad([SOUTHERNMOST, NORTHERNMOST]))
        longitude, latitude = float(rng.uniform(-180, 180)), float(np.rad2deg(np.arcsin(rng.uniform(low, high))))
        region = region_at(longitude, latitude)
        (east,), (north,) = transform_positions("EPSG:4326", f"EPSG:{region.epsg}", [longitude], [latitude])
        return Site(f"{region.name}_{index + 1:05d}", region, round(east / 10) * 10.0, round(north / 10) * 10.0)


def _around(middle: float, spread: float, largest: float = np.inf) -> Range:
    return (max(middle - spread, 0.0), min(middle + spread, largest))


def _utm_zone(longitude: float, latitude: float) -> int:
    """Return the EPSG code of a place's UTM zone."""
    zone = min(int((longitude + 180) // 6) + 1, 60)
    return (32600 if latitude >= 0 else 32700) + zone
