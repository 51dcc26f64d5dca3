"""STAC items as public catalogues write them: ids, properties, assets. Source: STAC 1.0 and its extensions.

Names and properties are those of Planetary Computer, and of Earth Search's sentinel-2-c1-l2a.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rasterio.warp import transform as transform_positions
from shapely.geometry import Polygon, box, mapping

from terramind_plugin.raster.georeference import Grid, apply_affine
from terramind_plugin.simulation.overpasses import TILT, Edge, OpticalPass, RadarPass, Tile

Item = dict[str, Any]
COG = "image/tiff; application=geotiff; profile=cloud-optimized"
STAC = "1.0.0"
EXTENSIONS = (
    "https://stac-extensions.github.io/eo/v1.1.0/schema.json",
    "https://stac-extensions.github.io/sat/v1.0.0/schema.json",
    "https://stac-extensions.github.io/projection/v1.1.0/schema.json",
)
COMMON = {
    "B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge", "B06": "rededge",
    "B07": "rededge", "B08": "nir", "B8A": "nir08", "B09": "nir09", "B11": "swir16", "B12": "swir22",
}  # fmt: skip
"""Common name of each band."""
EARTH_SEARCH = {
    **COMMON,
    "B05": "rededge1",
    "B06": "rededge2",
    "B07": "rededge3",
    "SCL": "scl",
}
"""Asset of each band in Earth Search."""
COLLECTIONS = {
    "sentinel-2-l2a": "Sentinel-2 Level-2A",
    "sentinel-1-rtc": "Sentinel 1 Radiometrically Terrain Corrected (RTC)",
    "cop-dem-glo-30": "Copernicus DEM GLO-30",
    "io-lulc-annual-v02": "10m Annual Land Use Land Cover (9-class) V2",
    "sentinel-2-c1-l2a": "Sentinel-2 Collection 1 Level-2A",
}
"""Titles of the collections."""


def footprint(grid: Grid, edge: Edge | None, ground: Grid) -> Polygon:
    """Return the outline of the part of a grid that a swath covers, in longitude and latitude."""
    corners = [(0, 0), (grid.width, 0), (grid.width, grid.height), (0, grid.height)]
    here = Polygon(_move(grid, corners, ground))
    if edge is not None:
        reach = ground.width * 4
        line = [
            (edge.position * ground.width - TILT * (row - ground.height / 2), row)
            for row in (-reach, ground.height + reach)
        ]
        far = reach * (1 if edge.east else -1) * 4
        side = [*line, (line[1][0] + far, line[1][1]), (line[0][0] + far, line[0][1])]
        here = here.intersection(Polygon(_move(ground, side, ground)))
    x, y = zip(*list(here.exterior.coords)[:-1], strict=True)
    return Polygon(zip(*transform_positions(ground.crs, "EPSG:4326", x, y), strict=True))


def _move(grid: Grid, pixels: Sequence[tuple[float, float]], ground: Grid) -> list[tuple[float, float]]:
    """Return positions (column, row) on a grid as coordinates in the CRS of the ground."""
    places = [apply_affine(grid.transform, column, row) for column, row in pixels]
    if grid.crs == ground.crs:
        return places
    moved = transform_positions(grid.crs, ground.crs, *map(list, zip(*places, strict=True)))
    return list(zip(*moved, strict=True))


def asset(href: str, grid: Grid, title: str, **properties: Any) -> Item:
    """Return an asset: a Cloud-Optimized GeoTIFF on a grid."""
    t = grid.transform
    return {
        "href": href,
        "type": COG,
        "title": title,
        "roles": ["data"],
        "proj:shape": list(grid.shape),
        "proj:transform": [t.a, t.b, t.c, t.d, t.e, t.f],
        "proj:bbox": list(grid.bounds),
        **properties,
    }


def _item(
    name: str, collection: str, shape: Polygon, properties: Mapping[str, Any], assets: Mapping[str, Item]
) -> Item:
    return {
        "type": "Feature",
        "stac_version": STAC,
        "stac_extensions": list(EXTENSIONS),
        "id": name,
        "collection": collection,
        "geometry": mapping(shape),
        "bbox": list(shape.bounds),
        "properties": dict(properties),
        "assets": dict(assets),
        "links": [],
    }


def optical_item(
    one: OpticalPass, tile: Tile, shape: Polygon, assets: Mapping[str, Item], shares: Mapping[str, float]
) -> Item:
    """Return the item of a Sentinel-2 product, as Planetary Computer writes it.

    Args:
        one: The pass.
        tile: The tile.
        shape: Footprint in longitude and latitude.
        assets: Assets by band.
        shares: Percentages: 'eo:cloud_cover', 's2:nodata_pixel_percentage'.
    """
    seen = datetime.fromisoformat(one.time)
    stamp = f"{seen:%Y%m%dT%H%M%S}"
    processed = one.processed.get(tile.name, stamp)
    satellite = one.platform[-2:]
    name = f"S{satellite}_MSIL2A_{stamp}_R{one.orbit:03d}_T{tile.name}_{processed}"
    baseline = one.baselines[tile.name]
    properties = {
        "datetime": one.time,
        "platform": one.platform,
        "instruments": ["msi"],
        "constellation": "Sentinel 2",
        "proj:epsg": tile.grid.crs.to_epsg(),
        "s2:mgrs_tile": tile.name,
        "s2:processing_baseline": baseline,
        "s2:product_type": "S2MSI2A",
        "s2:product_uri": name.replace("_R", f"_N{baseline.replace('.', '')}_R", 1) + ".SAFE",
        "s2:datatake_type": "INS-NOBS",
        "sat:orbit_state": "descending",
        "sat:relative_orbit": one.orbit,
        **shares,
    }
    return _item(name, "sentinel-2-l2a", shape, properties, assets)


def as_earth_search(item: Item, tile: Tile) -> Item:
    """Return the item of Earth Search's collection of reprocessed products for an item of Planetary Computer."""
    seen = datetime.fromisoformat(item["properties"]["datetime"])
    name = f"{item['id'][:3]}_T{tile.name}_{seen:%Y%m%dT%H%M%S}_L2A"
    properties = {
        **item["properties"],
        "constellation": "sentinel-2",
        "platform": item["properties"]["platform"].lower(),
        "proj:code": f"EPSG:{item['properties']['proj:epsg']}",
        "grid:code": f"MGRS-{tile.name}",
    }
    for gone in ("proj:epsg", "s2:mgrs_tile"):
        del properties[gone]
    assets = {}
    for band, found in item["assets"].items():
        scaled = {} if band == "SCL" else {"scale": 0.0001, "offset": -0.1}
        raster = {"nodata": 0, "data_type": "uint8" if band == "SCL" else "uint16", "spatial_resolution": found["gsd"]}
        common = {"eo:bands": [{"name": band, "common_name": COMMON[band]}]} if band in COMMON else {}
        kept = {key: value for key, value in found.items() if key != "eo:bands"}
        assets[EARTH_SEARCH[band]] = {**kept, **common, "raster:bands": [{**raster, **scaled}]}
    return {
        **item,
        "id": name,
        "collection": "sentinel-2-c1-l2a",
        "properties": properties,
        "assets": assets,
    }


def radar_item(one: RadarPass, shape: Polygon, assets: Mapping[str, Item]) -> Item:
    """Return the item of a Sentinel-1 product, as Planetary Computer writes it."""
    seen = datetime.fromisoformat(one.time)
    satellite = one.platform[-2:]
    properties = {
        "datetime": one.time,
        "platform": one.platform,
        "constellation": "Sentinel-1",
        "proj:epsg": one.epsg,
        "sar:instrument_mode": "IW",
        "sar:frequency_band": "C",
        "sar:polarizations": ["VV", "VH"],
        "sar:product_type": "RTC",
        "sat:orbit_state": one.state,
        "sat:relative_orbit": one.orbit,
    }
    name = f"S{satellite}_IW_GRDH_1SDV_{seen:%Y%m%dT%H%M%S}_{seen:%Y%m%dT%H%M%S}_{one.orbit:06d}_rtc"
    return _item(name, "sentinel-1-rtc", shape, properties, assets)


def elevation_item(name: str, shape: Polygon, assets: Mapping[str, Item]) -> Item:
    """Return the item of a tile of the elevation model, as Planetary Computer writes it."""
    properties = {"datetime": "2021-04-22T00:00:00Z", "platform": "TanDEM-X", "gsd": 30, "proj:epsg": 4326}
    return _item(name, "cop-dem-glo-30", shape, properties, assets)


def landcover_item(year: int, grid: Grid, shape: Polygon, assets: Mapping[str, Item]) -> Item:
    """Return the item of a year of the land-cover map, as Planetary Computer writes it."""
    properties = {
        "datetime": None,
        "start_datetime": f"{year}-01-01T00:00:00Z",
        "end_datetime": f"{year + 1}-01-01T00:00:00Z",
        "proj:epsg": grid.crs.to_epsg(),
        "io:supercell_id": f"{grid.crs.to_epsg() % 100}U",
    }
    return _item(f"{properties['io:supercell_id']}-{year}", "io-lulc-annual-v02", shape, properties, assets)


def collection(name: str, items: Sequence[Item]) -> Item:
    """Return a STAC collection of items that lie beside it in items/."""
    times = sorted(
        text
        for item in items
        for key in ("datetime", "start_datetime", "end_datetime")
        if (text := item["properties"].get(key)) is not None
    )
    every = [box(*item["bbox"]) for item in items]
    bounds = [min(x) if i < 2 else max(x) for i, x in enumerate(zip(*(one.bounds for one in every), strict=True))]
    return {
        "type": "Collection",
        "stac_version": STAC,
        "id": name,
        "title": COLLECTIONS[name],
        "description": f"Simulated scenes in the form of the collection {COLLECTIONS[name]}.",
        "license": "proprietary",
        "extent": {"spatial": {"bbox": [bounds]}, "temporal": {"interval": [[times[0], times[-1]]]}},
        "links": [
            {"rel": "root", "href": "../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "../catalog.json", "type": "application/json"},
            *({"rel": "item", "href": f"items/{item['id']}.json", "type": "application/geo+json"} for item in items),
        ],
    }


def catalog(name: str, collections: Sequence[str]) -> Item:
    """Return a STAC catalogue of collections that lie in folders beside it."""
    links = [{"rel": "root", "href": "catalog.json", "type": "application/json"}]
    links += [
        {"rel": "child", "href": f"{one}/collection.json", "type": "application/json", "title": COLLECTIONS[one]}
        for one in collections
    ]
    return {
        "type": "Catalog",
        "stac_version": STAC,
        "id": name,
        "description": "Simulated satellite scenes in the form of a public catalogue.",
        "links": links,
    }
