"""Where the chips of a simulated data set lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rasterio.warp import transform as transform_positions

from terramind_plugin.simulation.regions import REGIONS, Region

_SPACING = 12_000.0  # m between the corners of chips of one region
_CHIPS_PER_ROW = 25


@dataclass(frozen=True)
class Site:
    """Place of one chip."""

    name: str
    """Chip id, e.g. 'Delta_0001'."""
    region: Region
    easting: float
    """Of the upper left corner in the region's UTM zone, m."""
    northing: float

    @property
    def position(self) -> tuple[float, float]:
        """Longitude and latitude of that corner, degrees."""
        (longitude,), (latitude,) = transform_positions(
            f"EPSG:{self.region.epsg}", "EPSG:4326", [self.easting], [self.northing]
        )
        return longitude, latitude


class World(Protocol):
    """What says where chips lie; a chip does not depend on how many others there are."""

    @property
    def name(self) -> str:
        """Its name on the command line."""

    def site(self, seed: int, index: int) -> Site:
        """Return where chip `index`, counted from 0, of the data set with this seed lies."""


@dataclass(frozen=True)
class FloodRegions:
    """Four regions known for their floods; chip i lies in region i modulo 4."""

    name: str = "floods"

    def site(self, seed: int, index: int) -> Site:
        """Return where chip `index` lies; the same for every seed."""
        region = REGIONS[index % len(REGIONS)]
        row, column = divmod(index // len(REGIONS), _CHIPS_PER_ROW)
        return Site(
            f"{region.name}_{index + 1:04d}", region, 400_000 + column * _SPACING, region.northing - row * _SPACING
        )
