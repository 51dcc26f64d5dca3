"""Scenes: the properties of a STAC item that are used, and the offset in its pixels."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from terramind_plugin.errors import DataError
from terramind_plugin.sources.rules import CollectionRule

OFFSET_DN = 1000
"""Offset that ESA adds to the digital numbers of Sentinel-2 from processing baseline 04.00 on."""
FIRST_WITH_OFFSET = (4, 0)
"""First processing baseline with the offset."""
DOUBTFUL = (datetime(2022, 1, 25, tzinfo=UTC), datetime(2022, 4, 1, tzinfo=UTC))
"""Period of acquisitions of Earth Search's sentinel-2-l2a in which the offset was removed from some files only."""
PASS = timedelta(hours=1)
"""Maximum duration of a pass over an area; it is shorter than an orbit, so that two passes are not confused."""
L2A_BUCKET = "sentinel-s2-l2a/"
"""Part of the addresses of L2A files, to which some items of Earth Search's sentinel-2-l1c refer by mistake."""
_BASELINE = re.compile(r"(\d{1,2})\.(\d{1,2})")
_IN_ID = re.compile(r"_N(\d{2})(\d{2})_|_N(\d{2})\.(\d{2})")
_ORBIT = re.compile(r"^S2.*_R(\d{3})_")
_TILE = re.compile(r"(?:^|_)T?(\d{2})([C-HJ-NP-X])[A-Z]{2}(?:_|$)")


@dataclass(frozen=True)
class Scene:
    """One item of a catalogue."""

    id: str
    modality: str
    catalogue: str
    collection: str
    start: datetime
    """Time of acquisition; for an annual product, the beginning of the year."""
    end: datetime
    """Time of acquisition; for an annual product, the end of the year."""
    outline: bytes
    """Footprint in longitude and latitude, as WKB."""
    assets: Mapping[str, str]
    """Address of each band, and of the scene classification 'SCL'."""
    epsg: int | None = None
    """CRS according to the item; the CRS in the file takes precedence."""
    offset: int = 0
    """Offset to subtract from digital numbers."""
    baseline: str = ""
    """Processing baseline of Sentinel-2, e.g. '05.09'."""
    orbit: int | None = None
    """Relative orbit."""
    orbit_state: str = ""
    """'ascending' or 'descending'."""
    platform: str = ""
    cloud: float | None = None
    """Share of clouds in the whole scene according to the item, from 0 to 1."""
    nodata: float | None = None
    """Value of a pixel without data, whatever the files declare; None for the files' own nodata values."""
    gdal: str = "{}"
    """Options of GDAL for reading the files, as JSON."""

    @property
    def key(self) -> str:
        """Return a unique name of the scene."""
        return f"{self.collection}/{self.id}"

    def day(self, longitude: float) -> str:
        """Return the solar date at a longitude, e.g. '2023-06-12'; a pass has the same date everywhere."""
        return (self.start + timedelta(hours=longitude / 15)).strftime("%Y-%m-%d")


def is_same_pass(one: datetime, other: datetime) -> bool:
    """Return whether two times may belong to one pass of a satellite."""
    return abs(one - other) < PASS


def group_passes(scenes: Iterable[Scene], longitude: float) -> dict[tuple[Any, ...], list[Scene]]:
    """Return the scenes of each pass, which share the solar date at a longitude, the relative orbit and the platform.

    If items do not give the orbit, passes of one day are distinguished by their time.
    """
    found: dict[tuple[Any, ...], list[Scene]] = {}
    for scene in scenes:
        key: tuple[Any, ...] = (scene.day(longitude), scene.orbit, scene.platform)
        while key in found and not is_same_pass(found[key][0].start, scene.start):
            key = (*key, "later")
        found.setdefault(key, []).append(scene)
    return found


def nearest_years(scenes: Iterable[Scene], wanted: datetime) -> list[list[Scene]]:
    """Return annual products in groups by year, the nearest year to a time first."""
    years: dict[tuple[datetime, datetime], list[Scene]] = {}
    for scene in scenes:
        years.setdefault((scene.start, scene.end), []).append(scene)
    order = sorted(years, key=lambda year: (max(year[0] - wanted, wanted - year[1]), year))
    return [years[year] for year in order]


def read_time(text: object) -> datetime:
    """Return a time of a STAC item in UTC.

    Raises:
        ValueError: The text is not a time.
    """
    found = text if isinstance(text, datetime) else datetime.fromisoformat(str(text).strip().replace("Z", "+00:00"))
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def make_scene(item: Mapping[str, Any], rule: CollectionRule, outline: bytes) -> Scene:
    """Return the scene of an item.

    Args:
        item: STAC item of version 1.0 or 1.1, with absolute addresses.
        rule: Row of the table for its collection.
        outline: Footprint in longitude and latitude, as WKB.

    Raises:
        DataError: The item lacks an asset, a time or, if the offset depends on it, the processing baseline.
    """
    properties = item.get("properties") or {}
    assets = item.get("assets") or {}
    missing = [name for name in rule.assets.values() if not (assets.get(name) or {}).get("href")]
    if missing:
        raise DataError(f"it has no asset {', '.join(missing)}")
    if rule.modality == "S2L1C" and any(L2A_BUCKET in str(assets[name]["href"]) for name in rule.assets.values()):
        raise DataError("it is listed as L1C, but its files are L2A")
    try:
        first = properties.get("start_datetime") or properties.get("datetime")
        start = read_time(properties.get("datetime") or first)
        if rule.units == "esri":
            start = read_time(first)
        end = read_time(properties.get("end_datetime") or start) if rule.units == "esri" else start
    except ValueError:
        raise DataError("it has no time") from None
    baseline = _baseline(item) if rule.units == "reflectance" else None
    cloud = properties.get("eo:cloud_cover")
    return Scene(
        id=str(item["id"]),
        modality=rule.modality,
        catalogue=rule.catalogue,
        collection=rule.collection,
        start=start,
        end=end,
        outline=outline,
        assets={band: str(assets[name]["href"]) for band, name in rule.assets.items()},
        epsg=_epsg(item, next(iter(rule.assets.values()))),
        offset=_offset(rule, baseline, start, properties),
        baseline="" if baseline is None else f"{baseline[0]:02d}.{baseline[1]:02d}",
        orbit=_orbit(item),
        orbit_state=str(properties.get("sat:orbit_state") or "").lower(),
        platform=str(properties.get("platform") or "").lower(),
        cloud=None if cloud is None else float(cloud) / 100,
        nodata=rule.nodata,
        gdal=json.dumps(dict(rule.gdal)),
    )


def _baseline(item: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the processing baseline of a Sentinel-2 item, or None if it is unknown."""
    properties = item.get("properties") or {}
    for key in ("s2:processing_baseline", "processing:version"):
        value = properties.get(key)
        if value is not None:
            # The number 5.1 means baseline 05.10: YAML and JSON drop trailing zeros.
            text = f"{value:05.2f}" if isinstance(value, int | float) else str(value).strip().removeprefix("N")
            text = f"{text[:2]}.{text[2:]}" if re.fullmatch(r"\d{4}", text) else text
            found = _BASELINE.fullmatch(text)
            if found is not None:
                return int(found[1]), int(found[2])
    for name in (properties.get("s2:product_uri"), item.get("id"), properties.get("s2:granule_id"),
                 properties.get("s2:datatake_id"), properties.get("s2:datastrip_id")):  # fmt: skip
        hit = _IN_ID.search(str(name or ""))
        if hit is not None:
            return int(hit[1] or hit[3]), int(hit[2] or hit[4])
    return None


def _orbit(item: Mapping[str, Any]) -> int | None:
    """Return the relative orbit from an item or from the name of its product."""
    properties = item.get("properties") or {}
    named = properties.get("sat:relative_orbit")
    if named is not None:
        return int(named)
    hits = (_ORBIT.search(str(name or "")) for name in (item.get("id"), properties.get("s2:product_uri")))
    return next((int(hit[1]) for hit in hits if hit is not None), None)


def _offset(
    rule: CollectionRule, baseline: tuple[int, int] | None, start: datetime, properties: Mapping[str, Any]
) -> int:
    """Return the offset to subtract from digital numbers.

    Raises:
        DataError: It is unknown whether the pixels have the offset.
    """
    if rule.offset == "baseline":
        if baseline is None:
            raise DataError("its processing baseline is unknown, so it is not known whether it has the offset of 1000")
        return OFFSET_DN if baseline >= FIRST_WITH_OFFSET else 0
    if rule.offset == "earth_search_l2a":
        old = baseline is not None and baseline < FIRST_WITH_OFFSET
        applied = properties.get("earthsearch:boa_offset_applied") is True
        if not old and not applied and DOUBTFUL[0] <= start < DOUBTFUL[1]:
            raise DataError(
                "Earth Search removed the offset of 1000 from some files of early 2022 only; use sentinel-2-c1-l2a"
            )
    return 0


def _epsg(item: Mapping[str, Any], asset: str) -> int | None:
    """Return the EPSG code from an item, its asset or its MGRS tile."""
    properties = item.get("properties") or {}
    for source in ((item.get("assets") or {}).get(asset) or {}, properties):
        code = source.get("proj:epsg") or source.get("proj:code")
        found = re.fullmatch(r"(?:EPSG:)?(\d+)", str(code or ""), flags=re.IGNORECASE)
        if found is not None:
            return int(found[1])
    tile = str(properties.get("s2:mgrs_tile") or properties.get("grid:code") or "").replace("MGRS-", "")
    hit = _TILE.search(tile) or _TILE.search(str(item.get("id") or ""))
    if hit is None or "S2" not in str(item.get("id") or "")[:2].upper():
        return None
    return (32600 if hit[2] >= "N" else 32700) + int(hit[1])
