"""Where the scenes of a simulated catalogue lie, and which satellite passes over them when.

The ground lies around 12 degrees east, 48 degrees north, where two UTM zones and four elevation tiles meet.
Scenes have what makes real catalogues hard: two processing baselines on one day, an old scene that was reprocessed,
swath edges, clouds, and two orbits of Sentinel-1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform as transform_positions

from terramind_plugin.raster.georeference import Grid
from terramind_plugin.simulation.noise import BoolArray
from terramind_plugin.simulation.terrain import PIXEL

MERIDIAN, PARALLEL = 12.0, 48.0
"""Longitude at which UTM zones 32 and 33 meet, and the latitude of the middle, degrees."""
ZONES = (32632, 32633)
"""EPSG codes of the two UTM zones; the ground is simulated in the second."""
MULTIPLE = 60.0
"""Distance in m of which corners of scenes are multiples, so that pixels of 10, 20 and 60 m have common corners."""
TILT = 0.2
"""Tangent of the angle between a swath's edge and the columns of a scene."""


@dataclass(frozen=True)
class Tile:
    """A tile of Sentinel-2's grid."""

    name: str
    """Name as in the grid MGRS, e.g. '33TTN'."""
    grid: Grid
    """Pixels of 10 m."""


@dataclass(frozen=True)
class Edge:
    """The edge of a swath: a line that crosses the ground from north to south."""

    position: float
    """Where the line crosses the middle row, as a share of the ground's width from its western side."""
    east: bool
    """Whether the swath lies to the east of the line."""


@dataclass(frozen=True)
class OpticalPass:
    """A pass of Sentinel-2 over all tiles."""

    time: str
    platform: str
    orbit: int
    """Relative orbit."""
    clouds: str
    """Kind of sky, as in `make_sky`."""
    baselines: dict[str, str]
    """Processing baseline of each tile's product, by tile."""
    processed: dict[str, str] = field(default_factory=dict)
    """Date on which a product was made, by tile, where that is not the day of the pass."""
    edge: Edge | None = None


@dataclass(frozen=True)
class RadarPass:
    """A pass of Sentinel-1 over the ground."""

    time: str
    platform: str
    orbit: int
    """Relative orbit."""
    state: str
    """'ascending' or 'descending'."""
    epsg: int
    """UTM zone of the product."""
    edge: Edge | None = None


TILES = ("32TQT", "33TTN", "33UTP")
"""Names of the tiles: one in zone 32 in the west, two in zone 33 in the south-east and the north-east."""
OPTICAL_PASSES = (
    OpticalPass(
        "2021-07-10T10:15:59.024000Z", "Sentinel-2B", 22, "clear",
        # The third was reprocessed: it has an offset of 1000, those beside it on the same day have none.
        dict(zip(TILES, ("03.01", "03.01", "05.00"), strict=True)), {"33UTP": "20230222T060108"},
    ),
    OpticalPass(
        "2021-09-08T10:05:49.024000Z", "Sentinel-2A", 122, "few",
        dict.fromkeys(TILES, "05.00"), dict.fromkeys(TILES, "20230301T112233"), edge=Edge(0.72, east=False),
    ),
    OpticalPass(
        "2022-07-05T10:16:11.024000Z", "Sentinel-2B", 22, "broken", dict.fromkeys(TILES, "04.00"),
        edge=Edge(0.12, east=True),
    ),
)  # fmt: skip
"""Passes of Sentinel-2."""
RADAR_PASSES = (
    RadarPass("2021-07-09T05:26:23.123456Z", "SENTINEL-1B", 168, "descending", ZONES[1]),
    RadarPass("2021-07-11T17:06:55.123456Z", "SENTINEL-1A", 117, "ascending", ZONES[0], Edge(0.9, east=False)),
    RadarPass("2021-09-07T05:26:26.123456Z", "SENTINEL-1B", 168, "descending", ZONES[1]),
    RadarPass("2022-07-06T17:06:59.123456Z", "SENTINEL-1A", 117, "ascending", ZONES[0], Edge(0.9, east=False)),
)
"""Passes of Sentinel-1."""
YEARS = (2021, 2022)
"""Years of the land-cover map."""


def centre(epsg: int) -> tuple[float, float]:
    """Return the middle of the ground in a UTM zone, m, rounded to `MULTIPLE`."""
    (x,), (y,) = transform_positions("EPSG:4326", f"EPSG:{epsg}", [MERIDIAN], [PARALLEL])
    return round(x / MULTIPLE) * MULTIPLE, round(y / MULTIPLE) * MULTIPLE


def make_grid(epsg: int, west: float, north: float, height: int, width: int) -> Grid:
    """Return a grid of 10 m whose corner lies some metres west and north of the middle of the ground."""
    x, y = centre(epsg)
    left, top = (round(value / MULTIPLE) * MULTIPLE for value in (x - west, y + north))
    return Grid(height, width, CRS.from_epsg(epsg), Affine(PIXEL, 0, left, 0, -PIXEL, top))


def ground_grid(size: int) -> Grid:
    """Return the grid on which the ground is simulated.

    Args:
        size: Height and width of a tile, pixels of 10 m.
    """
    side = size * PIXEL
    return make_grid(ZONES[1], side, side, 2 * size, 2 * size)


def make_tiles(size: int) -> list[Tile]:
    """Return the tiles of `TILES`, each `size` pixels high and wide; neighbours overlap by a tenth."""
    side = size * PIXEL
    return [
        Tile(TILES[0], make_grid(ZONES[0], 0.9 * side, 0.5 * side, size, size)),
        Tile(TILES[1], make_grid(ZONES[1], 0.1 * side, 0.05 * side, size, size)),
        Tile(TILES[2], make_grid(ZONES[1], 0.1 * side, 0.95 * side, size, size)),
    ]


def inside(edge: Edge | None, ground: Grid) -> BoolArray:
    """Return which pixels of the ground a swath covers, [H, W]."""
    rows, columns = np.mgrid[: ground.height, : ground.width].astype(np.float32) + np.float32(0.5)
    if edge is None:
        return np.ones(ground.shape, bool)
    line = edge.position * ground.width - TILT * (rows - ground.height / 2)
    return np.asarray(columns > line if edge.east else columns < line)
