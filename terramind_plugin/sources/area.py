"""Areas and points of interest, and the range of dates, as users give them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from terramind_plugin.errors import ConfigError, counted, one_line
from terramind_plugin.system.files import TABLES, read_table

FARTHEST_NORTH, FARTHEST_SOUTH = 84.0, -80.0
"""Latitudes between which UTM is defined."""
DEGREES = ("CRS84", "EPSG::4326", "EPSG:4326", "EPSG:4979", "CRS84H")
"""Ends of the names of CRSs that are longitude and latitude."""
_AREAS = ("Polygon", "MultiPolygon")
_ID = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class DateRange:
    """Range of days; the first and the last day are included."""

    first: date
    last: date

    @classmethod
    def read(cls, text: str) -> DateRange:
        """Return the range given by a text such as '2023-05-01/2023-09-30' or '2023-06-12'.

        Raises:
            ConfigError: A date is wrong, or the last one is before the first.
        """
        parts = text.strip().split("/")
        try:
            if not 1 <= len(parts) <= 2 or not all(re.fullmatch(r"\d{4}-\d{2}-\d{2}", part) for part in parts):
                raise ValueError("it has another format")
            first, last = date.fromisoformat(parts[0]), date.fromisoformat(parts[-1])
        except ValueError as error:
            raise ConfigError(
                f"--date takes a day or a range such as 2023-05-01/2023-09-30, got '{text}' ({one_line(error)})."
            ) from None
        if last < first:
            raise ConfigError(f"--date {text} ends before it begins: write {last}/{first}.")
        return cls(first, last)

    @property
    def start(self) -> datetime:
        """Return the first moment."""
        return datetime.combine(self.first, time.min, UTC)

    @property
    def end(self) -> datetime:
        """Return the last moment."""
        return datetime.combine(self.last, time.max, UTC)

    @property
    def middle(self) -> datetime:
        """Return the moment in the middle."""
        return self.start + (self.end - self.start) / 2

    def cut(self, count: int) -> list[DateRange]:
        """Return `count` parts of about equal length, in the order of time.

        Raises:
            ConfigError: The range has fewer days than parts.
        """
        days = (self.last - self.first).days + 1
        if days < count:
            raise ConfigError(f"--date {self} has {counted(days, 'day')}, fewer than the {count} dates of the model.")
        edges = [self.first + timedelta(days=days * number // count) for number in range(count + 1)]
        return [DateRange(first, after - timedelta(days=1)) for first, after in pairwise(edges)]

    def __str__(self) -> str:
        return f"{self.first}/{self.last}"


def read_periods(text: str) -> list[DateRange]:
    """Return the ranges in a text with commas, one for each date of a series.

    Raises:
        ConfigError: A date is wrong, or a range begins before the previous range has ended.
    """
    periods = [DateRange.read(part) for part in text.split(",")]
    for earlier, later in pairwise(periods):
        if later.first <= earlier.last:
            raise ConfigError(
                f"--date lists {later} after {earlier}: give ranges in the order of time, without common days."
            )
    return periods


@dataclass(frozen=True)
class Point:
    """A location of interest."""

    id: str
    longitude: float
    latitude: float


def read_geojson(path: Path) -> list[dict[str, Any]]:
    """Return the features of a GeoJSON in longitude and latitude, each with a geometry.

    Raises:
        ConfigError: The file cannot be read, is not GeoJSON, is empty, or is in another CRS.
    """
    if not path.is_file():
        raise ConfigError(f"There is no file {path}. Give a GeoJSON in longitude and latitude.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is not valid GeoJSON: {one_line(error)}. Convert other formats: "
            f"ogr2ogr -f GeoJSON -t_srs EPSG:4326 area.geojson {path}"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not GeoJSON: it holds a {type(content).__name__}.")
    name = ((content.get("crs") or {}).get("properties") or {}).get("name")
    if name is not None and not str(name).upper().endswith(DEGREES):
        raise ConfigError(f"{path} is in {name}, expected longitude and latitude. {_reproject(path)}")
    if content.get("type") == "FeatureCollection":
        features = content.get("features") or []
    elif content.get("type") == "Feature":
        features = [content]
    else:
        features = [{"type": "Feature", "properties": {}, "geometry": content}]
    found = [one for one in features if isinstance(one, dict) and (one.get("geometry") or {}).get("type")]
    if not found:
        raise ConfigError(f"{path} holds no geometry: it is empty.")
    return found


def _reproject(path: Path) -> str:
    return f"Convert it: ogr2ogr -f GeoJSON -t_srs EPSG:4326 area.geojson {path}"


def read_shape(path: Path, feature: dict[str, Any]) -> Any:
    """Return the geometry of a feature as a shapely geometry, with valid rings.

    Raises:
        ConfigError: The geometry is broken, or its coordinates are not longitudes and latitudes.
    """
    from shapely import make_valid
    from shapely.geometry import shape

    try:
        found = shape(feature["geometry"])
        bounds = found.bounds
    except Exception as error:  # shapely raises whatever the coordinates cause
        raise ConfigError(f"{path} holds a geometry that cannot be read: {one_line(error)}.") from None
    if not bounds or any(math.isnan(one) for one in bounds):
        raise ConfigError(f"{path} holds an empty geometry.")
    left, bottom, right, top = bounds
    if left < -360 or right > 360 or bottom < -90 or top > 90:
        raise ConfigError(
            f"{path} is in another CRS: its coordinates reach from {left:.9g}, {bottom:.9g} to {right:.9g}, {top:.9g}, "
            f"expected longitudes from -180 to 180 and latitudes from -90 to 90. {_reproject(path)}"
        )
    return found if found.is_valid else make_valid(found)


def read_area(path: Path) -> Any:
    """Return the area of a GeoJSON as a shapely geometry in longitude and latitude.

    Raises:
        ConfigError: The file is wrong, has no area, crosses the antimeridian, or lies outside UTM's latitudes.
    """
    from shapely import union_all

    shapes = [read_shape(path, feature) for feature in read_geojson(path)]
    area = union_all([part for one in shapes for part in _polygons(one)])
    if area.is_empty or not area.area:
        kinds = ", ".join(sorted({one.geom_type for one in shapes}))
        raise ConfigError(f"{path} has no area: it holds {kinds}. Give polygons with --aoi, and points with --points.")
    check_extent(path, area.bounds)
    return area


def _polygons(geometry: Any) -> Iterator[Any]:
    if geometry.geom_type in _AREAS:
        yield geometry
    for part in getattr(geometry, "geoms", ()) if geometry.geom_type == "GeometryCollection" else ():
        yield from _polygons(part)


def check_extent(path: Path, bounds: tuple[float, float, float, float]) -> None:
    """Raise a ConfigError if an extent in degrees crosses the antimeridian or leaves UTM's latitudes."""
    left, bottom, right, top = bounds
    if left < -180 or right > 180 or right - left > 180:
        raise ConfigError(
            f"{path} crosses the antimeridian (longitudes {left:g} to {right:g}): cut it at 180 degrees and run the "
            "command once for each side."
        )
    if top > FARTHEST_NORTH or bottom < FARTHEST_SOUTH:
        raise ConfigError(
            f"{path} reaches a pole (latitudes {bottom:g} to {top:g}): chips are in UTM, which ends at "
            f"{FARTHEST_SOUTH:g} and {FARTHEST_NORTH:g}."
        )


def read_points(path: Path) -> list[Point]:
    """Return the points of a GeoJSON, or of a CSV or Parquet file with the columns id, longitude and latitude.

    Raises:
        ConfigError: The file is wrong, or a point lies outside UTM's latitudes.
    """
    points = _read_table_of_points(path) if path.suffix in TABLES else _read_features_of_points(path)
    names = [one.id for one in points]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ConfigError(f"{path} names {twice} twice: give each point its own id.")
    for one in points:
        check_extent(path, (one.longitude, one.latitude, one.longitude, one.latitude))
    return points


def _read_table_of_points(path: Path) -> list[Point]:
    if not path.is_file():
        raise ConfigError(f"There is no file {path}. Give a table with the columns id, longitude and latitude.")
    try:
        table = read_table(path).reset_index()
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} is not a readable table: {one_line(error)}.") from None
    missing = [name for name in ("longitude", "latitude") if name not in table.columns]
    if missing or not len(table):
        problem = f"lacks the column {missing[0]}" if missing else "has no row"
        raise ConfigError(f"{path} {problem}. Give the columns id, longitude and latitude, in degrees.")
    names = table["id"] if "id" in table.columns else table.iloc[:, 0]
    rows = zip(names, table["longitude"], table["latitude"], strict=True)
    try:
        return [Point(clean_id(str(name)), float(x), float(y)) for name, x, y in rows]
    except ValueError as error:
        raise ConfigError(f"{path} holds a position that is not a number: {one_line(error)}.") from None


def _read_features_of_points(path: Path) -> list[Point]:
    found = []
    for number, feature in enumerate(read_geojson(path)):
        geometry = read_shape(path, feature)
        if geometry.geom_type not in ("Point", "MultiPoint"):
            raise ConfigError(f"{path} holds a {geometry.geom_type}, expected points. Give polygons with --aoi.")
        properties = feature.get("properties") or {}
        name = properties.get("id", feature.get("id"))
        name = f"point_{number:06d}" if name is None else clean_id(str(name))
        parts = getattr(geometry, "geoms", [geometry])
        for index, part in enumerate(parts):
            found.append(Point(name if len(parts) == 1 else f"{name}_{index}", part.x, part.y))
    return found


def clean_id(text: str) -> str:
    """Return a text in which characters that do not suit a file name are replaced."""
    return _ID.sub("_", text).strip("_.") or "_"
