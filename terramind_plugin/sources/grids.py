"""Grids of chips: UTM, Major TOM (with TerraMesh's ids), and chips around points."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from pyproj import Transformer
from rasterio.crs import CRS
from rasterio.transform import Affine

from terramind_plugin.errors import ConfigError
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.sources.area import Point

PIXEL_METRES = 10.0
"""Side of a pixel in metres: that of Sentinel-2's finest bands."""
BLOCK_PIXELS = 1024
"""Approximate side in pixels of a block: the unit of work, in which neighbouring chips share reads."""
GROUP = 4
"""Number of chips per side of a group of chips that get the same split."""
SMALLEST_CHIP, LARGEST_CHIP = 16, 1024
"""Minimum and maximum side of a chip in pixels: a patch of the model, and a block."""
MAJORTOM_RADIUS = 6378.137
"""Radius of Major TOM's grid in kilometres."""
CELL = 10
"""Side of a cell of Major TOM in kilometres."""
MESH = 264
"""Side of a chip of TerraMesh in pixels."""
MESH_SIDE = 4
"""Number of chips per side of a cell in TerraMesh."""
MESH_LEFT, MESH_TOP = -540.0, 10540.0
"""Distances in metres from the lower left corner of a cell to the left edge and to the upper edge of its chips."""
MOST_CHIPS = 2_000_000
"""Maximum number of chips of a plan."""


@dataclass(frozen=True)
class Place:
    """Position and size of a chip."""

    id: str
    crs: str
    left: float
    top: float
    width: int
    height: int
    pixel_width: float
    """Width of a pixel in units of the CRS."""
    pixel_height: float
    block: str
    """Name of the block, whose chips are read together."""
    group: str
    """Name of the group, whose chips get the same split."""
    label: str = ""
    """File of the label; empty if there is none."""
    label_row: int = 0
    """Row of the chip's upper left pixel in the file of the label."""
    label_column: int = 0

    @property
    def grid(self) -> Grid:
        """Return size and position."""
        transform = Affine(self.pixel_width, 0, self.left, 0, -self.pixel_height, self.top)
        return Grid(self.height, self.width, read_crs(self.crs), transform)

    @property
    def epsg(self) -> int | None:
        """Return the EPSG code of the CRS, or None if it has none."""
        return _epsg_of(self.crs)

    @property
    def meridian(self) -> float:
        """Return the longitude of the UTM zone's middle, by which solar dates are computed; 0 in any other CRS."""
        epsg = self.epsg or 0
        return 6.0 * (epsg % 100) - 183 if epsg // 100 in (326, 327) else 0.0

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Return left, bottom, right and top in units of the CRS."""
        right = self.left + self.width * self.pixel_width
        return self.left, self.top - self.height * self.pixel_height, right, self.top


@cache
def read_crs(text: str) -> CRS:
    """Return the CRS of a name; equal names give the same object."""
    return CRS.from_user_input(text)


@cache
def _epsg_of(text: str) -> int | None:
    code: int | None = read_crs(text).to_epsg()
    return code


@cache
def _to_degrees(crs: str) -> Transformer:
    return Transformer.from_crs(crs, "EPSG:4326", always_xy=True)


@cache
def _from_degrees(crs: str) -> Transformer:
    return Transformer.from_crs("EPSG:4326", crs, always_xy=True)


def to_degrees(crs: str, x: Any, y: Any) -> tuple[Any, Any]:
    """Return the longitudes and latitudes in degrees of positions in a CRS."""
    return _to_degrees(crs).transform(x, y)


def from_degrees(crs: str, longitude: Any, latitude: Any) -> tuple[Any, Any]:
    """Return the positions in a CRS of longitudes and latitudes in degrees."""
    return _from_degrees(crs).transform(longitude, latitude)


def utm_zone(longitude: float, latitude: float) -> int:
    """Return the number of the UTM zone, with the exceptions of Norway and Svalbard that Sentinel-2's tiles follow."""
    if 56 <= latitude < 64 and 3 <= longitude < 12:
        return 32
    if 72 <= latitude <= 84 and 0 <= longitude < 42:
        return 31 if longitude < 9 else 33 if longitude < 21 else 35 if longitude < 33 else 37
    return min(60, int((longitude + 180) // 6) + 1)


def utm_epsg(longitude: float, latitude: float) -> int:
    """Return the EPSG code of the UTM zone of a position."""
    return (32600 if latitude >= 0 else 32700) + utm_zone(longitude, latitude)


def outlines(places: Sequence[Place]) -> Any:
    """Return the footprints of chips in longitude and latitude, as an array of shapely polygons."""
    from shapely import polygons

    rings = np.empty((len(places), 9, 2))
    by_crs: dict[str, list[int]] = {}
    for index, place in enumerate(places):
        by_crs.setdefault(place.crs, []).append(index)
    for crs, members in by_crs.items():
        left, bottom, right, top = np.array([places[index].bounds for index in members]).T
        x, y = (left + right) / 2, (bottom + top) / 2
        # Corners and middles of the sides, because a side in UTM is not a straight line in degrees.
        xs = np.stack([left, x, right, right, right, x, left, left, left], axis=1)
        ys = np.stack([top, top, top, y, bottom, bottom, bottom, y, top], axis=1)
        rings[members, :, 0], rings[members, :, 1] = to_degrees(crs, xs, ys)
    return polygons(rings)


def make_utm_grid(area: Any, size: int) -> list[Place]:
    """Return the chips of a UTM grid that overlap an area.

    Edges of chips lie at multiples of a chip's side in each zone, and therefore on the pixel edges of Sentinel-2. A
    chip belongs to the zone of its middle.

    Args:
        area: Shapely geometry in longitude and latitude.
        size: Side of a chip in pixels.
    """
    side = size * PIXEL_METRES
    found: list[Place] = []
    for epsg, part in _by_zone(area):
        crs = f"EPSG:{epsg}"
        projected = project_area(part, crs)
        left, bottom, right, top = projected.bounds
        columns = np.arange(math.floor(left / side), math.ceil(right / side))
        rows = np.arange(math.floor(bottom / side) + 1, math.ceil(top / side) + 1)
        if len(columns) * len(rows) > MOST_CHIPS:
            raise ConfigError(
                f"The area has up to {len(columns) * len(rows)} chips in UTM zone {epsg % 100}, expected at most "
                f"{MOST_CHIPS}. Give parts of it, or larger chips with --size."
            )
        found += _keep(projected, crs, epsg, columns, rows, size)
    return found


def _keep(area: Any, crs: str, epsg: int, columns: Any, rows: Any, size: int) -> Iterator[Place]:
    """Yield the chips that overlap an area in the CRS and whose middle lies in its zone."""
    from shapely import box, intersects, prepare, touches

    side = size * PIXEL_METRES
    x, y = (each.ravel() for each in np.meshgrid(columns, rows[::-1]))
    boxes = box(x * side, (y - 1) * side, (x + 1) * side, y * side)
    prepare(area)
    inside = intersects(area, boxes) & ~touches(area, boxes)
    x, y = x[inside], y[inside]
    longitudes, latitudes = to_degrees(crs, (x + 0.5) * side, (y - 0.5) * side)
    per_block = max(1, round(BLOCK_PIXELS / size))
    for column, row, longitude, latitude in zip(x.tolist(), y.tolist(), longitudes, latitudes, strict=True):
        if utm_epsg(longitude, latitude) == epsg:
            yield Place(
                id=f"{epsg}_{column}_{row}",
                crs=crs,
                left=column * side,
                top=row * side,
                width=size,
                height=size,
                pixel_width=PIXEL_METRES,
                pixel_height=PIXEL_METRES,
                block=f"{epsg}_{column // per_block}_{(row - 1) // per_block}",
                group=f"{epsg}_{column // GROUP}_{(row - 1) // GROUP}",
            )


def _by_zone(area: Any) -> Iterator[tuple[int, Any]]:
    """Yield the UTM zones of an area with the part of the area near each zone; chips may reach into other zones."""
    from shapely import box

    left, bottom, right, top = area.bounds
    seen: set[int] = set()
    for latitude in np.unique([bottom, top, *np.arange(math.floor(bottom), math.ceil(top) + 0.25, 0.25)]):
        for longitude in np.unique([left, right, *np.arange(math.floor(left), math.ceil(right) + 0.5, 0.5)]):
            if left <= longitude <= right and bottom <= latitude <= top:
                seen.add(utm_epsg(float(longitude), float(latitude)))
    for epsg in sorted(seen):
        middle = 6 * (epsg % 100) - 183
        south, north = (-0.5, 90.0) if epsg < 32700 else (-90.0, 0.5)
        part = area.intersection(box(max(-180, middle - 10), south, min(180, middle + 10), north))
        if not part.is_empty:
            yield epsg, part


def project_area(area: Any, crs: str) -> Any:
    """Return an area in a CRS, with additional points along its sides, because projected sides are curved."""
    from shapely import segmentize, transform

    return transform(
        segmentize(area, 0.02), lambda points: np.column_stack(from_degrees(crs, points[:, 0], points[:, 1]))
    )


def make_majortom_grid(area: Any, size: int = MESH) -> list[Place]:
    """Return the chips of TerraMesh that overlap an area: four by four in each cell of Major TOM's grid.

    The cells are those of Major TOM (Francis and Czerkawski 2024, arXiv:2402.12095). The positions of chips in a cell
    were derived from published chips of TerraMesh.

    Args:
        area: Shapely geometry in longitude and latitude.
        size: Side of a chip in pixels; if it is below 264, the middle of TerraMesh's chip is used, as in the published
            examples of 224 pixels.
    """
    from shapely import intersects, prepare

    if size > MESH or size % 2:
        raise ConfigError(f"--size must be an even number up to {MESH} with --grid majortom, got {size}.")
    found: list[Place] = []
    left, bottom, right, top = area.bounds
    margin = (MESH - size) / 2 * PIXEL_METRES
    for row, column, longitude, latitude in _cells(left, bottom, right, top):
        epsg = (32600 if latitude >= 0 else 32700) + min(60, int((longitude + 180) // 6) + 1)
        crs = f"EPSG:{epsg}"
        x, y = from_degrees(crs, longitude, latitude)
        cell = name_cell(row, column)
        found += [
            Place(
                id=f"{cell}_{c}_{r}",
                crs=crs,
                left=x + MESH_LEFT + MESH * PIXEL_METRES * c + margin,
                top=y + MESH_TOP - MESH * PIXEL_METRES * r - margin,
                width=size,
                height=size,
                pixel_width=PIXEL_METRES,
                pixel_height=PIXEL_METRES,
                block=cell,
                group=f"{row // 2}_{column // 2}",
            )
            for r in range(MESH_SIDE)
            for c in range(MESH_SIDE)
        ]
        if len(found) > MOST_CHIPS:
            raise ConfigError(f"The area has more than {MOST_CHIPS} chips. Give parts of it.")
    if not found:
        return found
    prepare(area)
    shapes = outlines(found)
    return [place for place, inside in zip(found, intersects(area, shapes), strict=True) if inside]


def name_cell(row: int, column: int) -> str:
    """Return the name of a cell of Major TOM's grid, e.g. '433D_629L', by its row and column from the origin."""
    return f"{abs(row)}{'U' if row >= 0 else 'D'}_{abs(column)}{'R' if column >= 0 else 'L'}"


def _cells(left: float, bottom: float, right: float, top: float) -> Iterator[tuple[int, int, float, float]]:
    """Yield row, column, longitude and latitude of the lower left corner of each cell around an extent in degrees."""
    rows = math.ceil(math.pi * MAJORTOM_RADIUS / CELL)
    latitudes = np.linspace(-90, 90, rows + 1)[:-1]
    equator = int(np.searchsorted(latitudes, 0))
    near = 2 * 180 / rows
    for index in np.flatnonzero((latitudes > bottom - near) & (latitudes < top + near)).tolist():
        latitude = float(latitudes[index])
        columns = math.ceil(2 * math.pi * MAJORTOM_RADIUS * math.cos(math.radians(latitude)) / CELL)
        step = 360 / columns
        for column in range(math.floor(left / step) - 2, math.ceil(right / step) + 2):
            longitude = column * step
            if -180 <= longitude < 180:
                yield index - equator, column, longitude, latitude


def make_point_grid(points: Iterable[Point], size: int) -> list[Place]:
    """Return a chip around each point, in the UTM zone of the point and on the pixel edges of Sentinel-2."""
    found = []
    for point in points:
        epsg = utm_epsg(point.longitude, point.latitude)
        x, y = from_degrees(f"EPSG:{epsg}", point.longitude, point.latitude)
        left = round((x - size * PIXEL_METRES / 2) / PIXEL_METRES) * PIXEL_METRES
        top = round((y + size * PIXEL_METRES / 2) / PIXEL_METRES) * PIXEL_METRES
        block, group = BLOCK_PIXELS * PIXEL_METRES, GROUP * size * PIXEL_METRES
        found.append(
            Place(
                id=point.id,
                crs=f"EPSG:{epsg}",
                left=left,
                top=top,
                width=size,
                height=size,
                pixel_width=PIXEL_METRES,
                pixel_height=PIXEL_METRES,
                block=f"{epsg}_{int(x // block)}_{int(y // block)}",
                group=f"{epsg}_{int(x // group)}_{int(y // group)}",
            )
        )
    return found
