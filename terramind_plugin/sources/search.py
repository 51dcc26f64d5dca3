"""Search for scenes in STAC APIs, static catalogues and files of items."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from terramind_plugin.errors import ConfigError, DataError, counted, one_line
from terramind_plugin.raster.paths import is_remote
from terramind_plugin.sources.area import DateRange
from terramind_plugin.sources.rules import CollectionRule, choose_rules
from terramind_plugin.sources.scenes import Scene, make_scene, read_time

EXTRA = "pip install 'terramind-plugin[sources]'"
"""Command that installs the packages for satellite catalogues."""
PAGE = 250
"""Number of items on a page of an API."""
MOST_ITEMS = 900
"""Number of items above which a query is halved: Planetary Computer returns at most 1000."""
PART = 5.0
"""Maximum extent of a query in degrees."""
STATIC = ("DEM", "LULC")
"""Modalities whose scenes are searched without a date."""


@dataclass
class Found:
    """Result of a search."""

    scenes: list[Scene] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Reason for each item that cannot be used, by its id."""


class Catalogue:
    """A source of STAC items: an API, a static catalogue, or a file of items.

    Args:
        address: URL or path of an API's landing page, a catalog.json, an items.json or an items.parquet.

    Raises:
        ConfigError: Nothing answers there, or it is not a STAC catalogue.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._items: list[dict[str, Any]] | None = None
        self._client: Any = None
        if address.lower().endswith(".parquet"):
            self._items = _read_parquet(address)
            return
        content = _read_json(address)
        kind = content.get("type") if isinstance(content, dict) else "list"
        rels = {link.get("rel") for link in content.get("links", [])} if isinstance(content, dict) else set()
        if kind == "Catalog" and is_remote(address) and ("conformsTo" in content or "search" in rels):
            self._client = _open_api(address)
        elif kind in ("Catalog", "Collection"):
            self._items = _resolve(_walk(address, content))
        elif kind in ("FeatureCollection", "list", "Feature"):
            features = content if kind == "list" else [content] if kind == "Feature" else content.get("features")
            self._items = [_with_absolute_links(item, address) for item in features or []]
        else:
            raise ConfigError(
                f"{address} is not a STAC catalogue: its type is {kind}. Give an API's landing page, a catalog.json, "
                "or items as JSON or Parquet."
            )
        if self._items is not None and not self._items:
            raise ConfigError(f"{address} holds no item.")

    @property
    def collections(self) -> set[str] | None:
        """Return the ids of the collections; None for an API, which may have thousands."""
        if self._items is None:
            return None
        return {str(item.get("collection") or "") for item in self._items} - {""}

    def days(self, collection: str) -> set[str]:
        """Return the dates of a collection's items; an empty set for an API, which would need a full query."""
        found = (item for item in self._items or [] if item.get("collection") == collection)
        return {str((item.get("properties") or {}).get("datetime") or "")[:10] for item in found} - {""}

    def items(self, collection: str, area: Any, dates: DateRange | None) -> Iterator[dict[str, Any]]:
        """Yield the items of a collection whose extents touch that of an area, each item once.

        Args:
            collection: Id of the collection.
            area: Shapely geometry in longitude and latitude.
            dates: Range of dates, or None for all.

        Raises:
            ConfigError: An API has no such collection.
            DataError: An API does not answer.
        """
        seen: set[str] = set()
        if self._items is not None:
            found: Iterable[dict[str, Any]] = (
                item for item in self._items if item.get("collection") == collection and _is_in(item, area, dates)
            )
        else:
            found = self._ask(collection, area, dates)
        for item in found:
            if item["id"] not in seen:
                seen.add(item["id"])
                yield item

    def _ask(self, collection: str, area: Any, dates: DateRange | None) -> Iterator[dict[str, Any]]:
        for box in _parts(area):
            try:
                yield from self._page(collection, box, None if dates is None else (dates.start, dates.end))
            except (ConfigError, DataError):
                raise
            except Exception as error:  # pystac-client passes on errors of requests and urllib3
                text = one_line(error)
                if "404" in text or "NotFound" in text:
                    raise ConfigError(f"{self.address} has no collection {collection}: {text}") from error
                raise DataError(f"{self.address} does not answer: {text}. Run the same command again later.") from error

    def _page(
        self, collection: str, box: tuple[float, ...], dates: tuple[datetime, datetime] | None
    ) -> list[dict[str, Any]]:
        """Return the items of a query. If there are too many, each half of the dates is queried separately."""
        arguments = {"collections": [collection], "bbox": box, "limit": PAGE, "max_items": MOST_ITEMS}
        span = None if dates is None else "/".join(one.strftime("%Y-%m-%dT%H:%M:%SZ") for one in dates)
        found: list[dict[str, Any]] = list(self._client.search(**arguments, datetime=span).items_as_dicts())
        if len(found) < MOST_ITEMS or dates is None or dates[1] - dates[0] < timedelta(days=1):
            return [_with_absolute_links(item, self.address) for item in found]
        middle = dates[0] + (dates[1] - dates[0]) / 2
        return [*self._page(collection, box, (dates[0], middle)), *self._page(collection, box, (middle, dates[1]))]


def _parts(area: Any) -> Iterator[tuple[float, ...]]:
    """Yield the extents of the parts of an area, none larger than `PART` degrees."""
    from shapely import box

    left, bottom, right, top = area.bounds
    columns, rows = (max(1, -int(-(length // PART))) for length in (right - left, top - bottom))
    for row in range(rows):
        for column in range(columns):
            cell = box(
                left + (right - left) * column / columns,
                bottom + (top - bottom) * row / rows,
                left + (right - left) * (column + 1) / columns,
                bottom + (top - bottom) * (row + 1) / rows,
            )
            part = area.intersection(cell)
            if not part.is_empty:
                yield part.bounds


def _open_api(address: str) -> Any:
    try:
        from pystac_client import Client
        from pystac_client.stac_api_io import StacApiIO
        from urllib3 import Retry
    except ImportError as error:
        raise ConfigError(f"A STAC API needs pystac-client: {EXTRA}") from error
    retry = Retry(
        total=5, backoff_factor=1, status_forcelist=[429, 500, 502, 503, 504], allowed_methods=None,
        raise_on_status=False,
    )  # fmt: skip
    try:
        return Client.open(address, stac_io=StacApiIO(max_retries=retry, timeout=60))
    except Exception as error:  # pystac-client passes on errors of requests, urllib3 and its own
        raise ConfigError(f"{address} is not a readable STAC API: {one_line(error)}") from error


def _fetch(address: str) -> bytes:
    """Return the content of a file or URL."""
    if not is_remote(address):
        return Path(address).read_bytes()
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import Retry

    with requests.Session() as session:
        adapter = HTTPAdapter(
            max_retries=Retry(total=3, backoff_factor=0.5, status_forcelist=[429, 500, 502, 503, 504])
        )
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        answer = session.get(address, timeout=60)
        answer.raise_for_status()
        return bytes(answer.content)


def _read_json(address: str) -> Any:
    try:
        return json.loads(_fetch(address))
    except FileNotFoundError:
        raise ConfigError(f"There is no catalogue {address}.") from None
    except ValueError as error:  # errors of requests about JSON and addresses are also ValueErrors
        raise ConfigError(f"{address} is not valid JSON: {one_line(error)}") from None
    except OSError as error:  # errors of requests derive from it
        raise ConfigError(f"The catalogue {address} cannot be read: {one_line(error)}") from None


def _walk(address: str, content: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the address and the content of all items below a static catalogue."""
    queue = [(address, content)]
    seen = {address}
    while queue:
        base, page = queue.pop(0)
        for link in page.get("links", []):
            if link.get("rel") not in ("child", "item", "items") or not link.get("href"):
                continue
            target = join_address(base, str(link["href"]))
            if target in seen:
                continue
            seen.add(target)
            found = _read_json(target)
            if not isinstance(found, dict):
                raise ConfigError(f"{target}, which {base} names, is not part of a STAC catalogue.")
            if found.get("type") == "Feature":
                if page.get("type") == "Collection":
                    found.setdefault("collection", page.get("id"))
                yield target, found
            elif found.get("type") == "FeatureCollection":
                yield from ((target, item) for item in found.get("features", []))
            else:
                queue.append((target, found))


def _resolve(pages: Iterable[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    return [_with_absolute_links(item, address) for address, item in pages]


def join_address(base: str, href: str) -> str:
    """Return the absolute address of a link in a file at `base`, which is a path or a URL."""
    if is_remote(href) or Path(href).is_absolute():
        return href.removeprefix("file://") if href.startswith("file://") else href
    if is_remote(base):
        return urljoin(base, href)
    return str((Path(base).resolve().parent / href).resolve())


def _with_absolute_links(item: dict[str, Any], address: str) -> dict[str, Any]:
    """Return an item whose assets have absolute addresses, because workers may have another working folder."""
    own = next((str(link["href"]) for link in item.get("links") or [] if link.get("rel") == "self"), None)
    base = own if own is not None and is_remote(own) and not own.startswith("file://") else address
    assets = item.get("assets")
    assets = assets if isinstance(assets, dict) else {}
    return item | {
        "id": str(item.get("id")),
        "assets": {
            name: asset | {"href": join_address(base, str(asset["href"]))}
            for name, asset in assets.items()
            if isinstance(asset, dict) and asset.get("href")
        },
    }


def _read_parquet(address: str) -> list[dict[str, Any]]:
    """Return the items of a stac-geoparquet file, in which properties are columns and the geometry is WKB."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(f"items.parquet needs pyarrow: {EXTRA}") from error
    try:
        table = pq.read_table(pa.BufferReader(_fetch(address)))
    except FileNotFoundError:
        raise ConfigError(f"There is no file {address}.") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ConfigError(f"{address} is not a readable Parquet file: {one_line(error)}") from None
    missing = [name for name in ("id", "assets", "geometry", "collection") if name not in table.column_names]
    if missing:
        raise ConfigError(f"{address} is not a stac-geoparquet file: it lacks the column {', '.join(missing)}.")
    return [_with_absolute_links(_from_row(row), address) for row in table.to_pylist()]


def _from_row(row: dict[str, Any]) -> dict[str, Any]:
    from shapely import from_wkb
    from shapely.geometry import mapping

    own = ("type", "stac_version", "stac_extensions", "id", "geometry", "bbox", "links", "assets", "collection")
    geometry = row["geometry"]
    if isinstance(geometry, bytes):
        geometry = mapping(from_wkb(geometry))
    assets = json.loads(row["assets"]) if isinstance(row["assets"], str) else row["assets"]
    box = row.get("bbox")
    return {
        "id": row["id"],
        "collection": row["collection"],
        "geometry": geometry,
        "bbox": [box[key] for key in ("xmin", "ymin", "xmax", "ymax")] if isinstance(box, dict) else box,
        "links": row.get("links") or [],
        "assets": {name: _without_none(asset) for name, asset in dict(assets).items() if asset},
        "properties": _without_none({key: value for key, value in row.items() if key not in own}),
    }


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def outline_of(item: Mapping[str, Any]) -> Any:
    """Return the footprint of an item as a shapely geometry in longitudes -180 to 180, or None if it has none."""
    from shapely import make_valid, transform, union_all
    from shapely.geometry import box, shape

    geometry, extent = item.get("geometry"), item.get("bbox")
    if geometry:
        found = shape(geometry)
    elif extent:
        found = box(extent[0], extent[1], extent[len(extent) // 2], extent[len(extent) // 2 + 1])
    else:
        return None
    found = found if found.is_valid else make_valid(found)
    left, _, right, _ = found.bounds
    if right - left > 180:  # across the antimeridian: use longitudes from 0 to 360 and cut at 180
        around = make_valid(transform(found, lambda points: points + [[360, 0]] * (points[:, :1] < 0)))
        west = transform(around.intersection(box(180, -90, 360, 90)), lambda points: points - [[360, 0]])
        found = union_all([around.intersection(box(0, -90, 180, 90)), west])
    return found


def _is_in(item: Mapping[str, Any], area: Any, dates: DateRange | None) -> bool:
    """Return whether an item's extent touches that of an area and its time is in a range of dates."""
    outline = outline_of(item)
    if outline is None or not outline.intersects(area.envelope):
        return False
    if dates is None:
        return True
    properties = item.get("properties") or {}
    try:
        if properties.get("datetime"):
            return dates.start <= read_time(properties["datetime"]) <= dates.end
        first, last = (read_time(properties.get(f"{name}_datetime")) for name in ("start", "end"))
    except ValueError:
        return True  # the item has no time, which `make_scene` reports
    return first <= dates.end and last >= dates.start


def find_scenes(catalogue: Catalogue, rules: list[CollectionRule], modality: str, area: Any, dates: DateRange) -> Found:
    """Return the scenes of a modality that touch an area, sorted by time and name.

    Args:
        catalogue: Catalogue to search.
        rules: Rows of the table for this catalogue.
        modality: Name of the modality.
        area: Shapely geometry in longitude and latitude.
        dates: Range of dates; elevation and land cover are searched at all dates.

    Raises:
        ConfigError: The catalogue lacks the modality, or has no usable scene there.
        DataError: An API does not answer.
    """
    span = None if modality in STATIC else dates
    chosen = choose_rules(rules, modality, catalogue.collections)
    found = Found()
    for rule in chosen:
        for item in catalogue.items(rule.collection, area, span):
            outline = outline_of(item)
            try:
                if outline is None:
                    raise DataError("it has no footprint")
                if outline.intersects(area):
                    found.scenes.append(make_scene(item, rule, outline.wkb))
            except DataError as error:
                found.left_out[item["id"]] = one_line(error)
        if found.scenes or catalogue.collections is None:
            break
    if not found.scenes:
        raise ConfigError(_explain_nothing(catalogue, chosen, modality, dates, found))
    found.scenes.sort(key=lambda scene: (scene.start, scene.key))
    return found


def _explain_nothing(
    catalogue: Catalogue, rules: list[CollectionRule], modality: str, dates: DateRange, found: Found
) -> str:
    names = " or ".join(rule.collection for rule in rules)
    when = "" if modality in STATIC else f" from {dates.first} to {dates.last}"
    if found.left_out:
        (reason, count), *_ = Counter(found.left_out.values()).most_common(1)
        example = next(name for name, why in found.left_out.items() if why == reason)
        return (
            f"{catalogue.address}: none of {counted(len(found.left_out), 'scene')} of {names} in the area{when} can be "
            f"used. {example}: {reason} ({count} of them)."
        )
    others = rules[1:]
    advice = "" if modality in STATIC else " Widen --date, or move the area."
    known = sorted(catalogue.days(rules[0].collection))
    if known and modality not in STATIC:
        advice = f" It has scenes from {known[0]} to {known[-1]}.{advice}"
    if catalogue.collections is None and others:
        advice += f" Other collections: --collection {modality}={others[0].collection}."
    return f"{catalogue.address} has no scene of {modality} ({names}) in the area{when}.{advice}"
