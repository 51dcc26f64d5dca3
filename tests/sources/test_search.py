"""Catalogues: an API with pages, files of items, and what cannot be read."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import shapely
from shapely.geometry import shape

from terramind_plugin.errors import ConfigError
from terramind_plugin.sources import search
from terramind_plugin.sources.area import DateRange
from terramind_plugin.sources.rules import read_rules
from terramind_plugin.sources.search import Catalogue, find_scenes, join_address, outline_of
from tests.sources.ground import Ground

RULES = list(read_rules("planetary_computer"))
DATES = DateRange.read("2023-05-01/2023-09-30")
AREA = shapely.box(10.2, 47.6, 10.5, 47.9)


@contextmanager
def api(items: list[dict[str, Any]], page: int):
    """Give the address of a STAC API that returns some items a page."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Be quiet."""

        def reply(self, content: Any, status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            root = f"http://127.0.0.1:{self.server.server_address[1]}/"
            self.reply({
                "type": "Catalog", "id": "api", "stac_version": "1.0.0", "description": "items",
                "conformsTo": ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"],
                "links": [{"rel": "self", "href": root}, {"rel": "root", "href": root}, {
                    "rel": "search", "href": f"{root}search", "type": "application/geo+json", "method": "POST"}],
            })  # fmt: skip

        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(query)
            first, last = query["datetime"].split("/") if query.get("datetime") else ("", "9999")
            found = [
                item for item in items
                if item["collection"] in query["collections"]
                and first <= (item["properties"]["datetime"] or "2023") <= last
                and shape(item["geometry"]).intersects(shapely.box(*query["bbox"]))
            ]  # fmt: skip
            start = int(query.get("token", 0))
            links = []
            if start + page < len(found):
                body = query | {"token": start + page}
                links = [{"rel": "next", "href": f"http://127.0.0.1:{self.server.server_address[1]}/search",
                          "method": "POST", "body": body}]  # fmt: skip
            self.reply({"type": "FeatureCollection", "features": found[start : start + page], "links": links})

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/", asked
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def items(ground: Ground) -> list[dict[str, Any]]:
    """Return 30 scenes of one place on 30 days."""
    first = next(item for item in ground.items if item["collection"] == "sentinel-2-l2a")
    return [
        first
        | {"id": f"day_{day:02d}", "properties": first["properties"] | {"datetime": f"2023-06-{day:02d}T10:00:00Z"}}
        for day in range(1, 31)
    ]


def test_all_pages_of_an_api_are_read(items, monkeypatch: pytest.MonkeyPatch):
    with api(items, page=7) as (address, asked):
        found = find_scenes(Catalogue(address), RULES, "S2L2A", AREA, DATES)
        assert [scene.id for scene in found.scenes] == [f"day_{day:02d}" for day in range(1, 31)]
        assert len(asked) == 5
        asked.clear()
        # A query with too many items is made again for each half of its dates.
        monkeypatch.setattr(search, "MOST_ITEMS", 10)
        again = find_scenes(Catalogue(address), RULES, "S2L2A", AREA, DATES)
        assert again.scenes == found.scenes
        assert len({query["datetime"] for query in asked}) > 4


def test_an_api_without_scenes_is_told(items):
    with api(items, page=100) as (address, _):
        for dates, area in ((DateRange.read("2020-01-01"), AREA), (DATES, shapely.box(50, 10, 50.1, 10.1))):
            with pytest.raises(ConfigError, match="has no scene of S2L2A") as caught:
                find_scenes(Catalogue(address), RULES, "S2L2A", area, dates)
            assert "\n" not in str(caught.value)


def test_files_of_items_hold_the_same_scenes(ground: Ground, tmp_path: Path):
    static = find_scenes(Catalogue(str(ground.root / "catalog.json")), RULES, "S2L2A", AREA, DATES)
    assert len(static.scenes) == 3
    as_json = find_scenes(Catalogue(str(ground.root / "items.json")), RULES, "S2L2A", AREA, DATES)
    assert as_json.scenes == static.scenes
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "type": "Feature", "stac_version": "1.0.0", "id": item["id"], "collection": item["collection"],
            "geometry": shape(item["geometry"]).wkb, "links": [],
            "bbox": dict(zip(("xmin", "ymin", "xmax", "ymax"), item["bbox"], strict=True)),
            "assets": item["assets"], **item["properties"],
        }
        for item in ground.items
    ]  # fmt: skip
    path = ground.root / "items.parquet"
    schemas = [pa.Table.from_pylist([row]).schema for row in rows]
    schema = pa.unify_schemas(schemas, promote_options="permissive")
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    as_parquet = find_scenes(Catalogue(str(path)), RULES, "S2L2A", AREA, DATES)
    assert as_parquet.scenes == static.scenes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ({"type": "Point"}, "is not a STAC catalogue"),
        ({"type": "FeatureCollection", "features": []}, "holds no item"),
        ({"type": "Catalog", "links": [{"rel": "item", "href": "gone.json"}]}, "There is no catalogue"),
    ],
)
def test_files_that_are_no_catalogue(tmp_path: Path, content, message):
    path = tmp_path / "catalog.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        Catalogue(str(path))


def test_unknown_collections_are_named(ground: Ground, tmp_path: Path):
    path = tmp_path / "items.json"
    odd = [item | {"collection": "landsat-c2-l2"} for item in ground.items[:1]]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": odd}))
    with pytest.raises(
        ConfigError, match=r"it has landsat-c2-l2; known collections are sentinel.*--catalogue rules.yaml"
    ):
        find_scenes(Catalogue(str(path)), RULES, "S2L2A", AREA, DATES)


def test_scenes_without_an_asset_are_left_out_by_name(ground: Ground, tmp_path: Path):
    path = tmp_path / "items.json"
    ours = [item for item in ground.items if item["collection"] == "sentinel-2-l2a"]
    poor = ours[0] | {"assets": {name: asset for name, asset in ours[0]["assets"].items() if name != "B09"}}
    path.write_text(json.dumps([poor, *ours[1:]]))
    found = find_scenes(Catalogue(str(path)), RULES, "S2L2A", AREA, DATES)
    assert len(found.scenes) == len(ours) - 1
    assert found.left_out == {poor["id"]: "it has no asset B09"}
    path.write_text(json.dumps([poor]))
    with pytest.raises(ConfigError, match=r"none of 1 scene .* can be used.*it has no asset B09"):
        find_scenes(Catalogue(str(path)), RULES, "S2L2A", AREA, DATES)


@pytest.mark.parametrize(
    ("base", "href", "address"),
    [
        ("https://host/a/b.json", "../c.tif", "https://host/c.tif"),
        ("https://host/a/b.json", "https://other/c.tif", "https://other/c.tif"),
        ("/data/a/b.json", "./c.tif", "/data/a/c.tif"),
        ("/data/a/b.json", "s3://bucket/c.tif", "s3://bucket/c.tif"),
        ("/data/a/b.json", "/other/c.tif", "/other/c.tif"),
    ],
)
def test_addresses_become_absolute(base, href, address):
    assert join_address(base, href) == address


def test_footprints_over_the_antimeridian_stay_narrow():
    ring = [[179, 10], [-179, 10], [-179, 11], [179, 11], [179, 10]]
    outline = outline_of({"geometry": {"type": "Polygon", "coordinates": [ring]}})
    assert outline.area == pytest.approx(2)
    assert outline.intersects(shapely.Point(-179.5, 10.5))
    assert not outline.intersects(shapely.Point(0, 10.5))
