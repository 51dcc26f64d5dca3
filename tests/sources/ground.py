"""A small catalogue of analytic ground: every pixel of every scene is a known function of its position."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from pyproj import Transformer
from rasterio.transform import Affine
from rasterio.warp import transform_bounds
from shapely.geometry import box, mapping

S2_METRES = {"B02": 10, "B03": 10, "B04": 10, "B08": 10, "B01": 60, "B09": 60}
BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
HOME = "EPSG:32632"


def position(crs: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return metres in the home zone."""
    if crs == HOME:
        return x, y
    return Transformer.from_crs(crs, HOME, always_xy=True).transform(x, y)


def reflectance(band: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return digital numbers without offset."""
    k = BANDS.index(band)
    return 1500 + 100 * k + 400 * np.sin(x / (900 + 40 * k)) + 300 * np.cos(y / (1100 - 30 * k))


def power(band: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (0.1 if band == "VV" else 0.03) * (1.5 + np.sin(x / 1300) * np.cos(y / 1700))


def height(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 500 + 200 * np.sin(x / 3000) + 150 * np.cos(y / 2500)


def land_cover(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return ids of Esri's classes."""
    return np.array([1, 2, 5, 7, 11])[((x // 640).astype(int) + 2 * (y // 960).astype(int)) % 5]


def centres(transform: Affine, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return transform.c + transform.a * columns, transform.f + transform.e * rows


def write(
    path: Path, values: np.ndarray, crs: str, transform: Affine, nodata: float | None = None, block: int = 256
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "count": 1, "height": values.shape[0], "width": values.shape[1],
               "dtype": values.dtype.name, "crs": crs, "transform": transform, "nodata": nodata,
               "compress": "deflate", "zlevel": 1, "tiled": True,
               "blockxsize": block, "blockysize": block}  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(values, 1)


@dataclass
class Ground:
    """A static catalogue below a folder."""

    root: Path
    items: list[dict[str, Any]] = field(default_factory=list)

    def _item(self, collection: str, name: str, crs: str, bounds: tuple[float, ...], properties: dict[str, Any],
              assets: dict[str, str]) -> dict[str, Any]:  # fmt: skip
        degrees = transform_bounds(crs, "EPSG:4326", *bounds)
        item = {
            "type": "Feature", "stac_version": "1.0.0", "id": name, "collection": collection,
            "bbox": list(degrees), "geometry": mapping(box(*degrees)), "links": [],
            "properties": properties, "assets": {key: {"href": href} for key, href in assets.items()},
        }  # fmt: skip
        self.items.append(item)
        return item

    def s2(self, name: str, time: str, left: float, top: float, size: int = 1024, *, crs: str = HOME,
           baseline: str = "05.09", orbit: int = 108, cloud: tuple[int, int, int, int] | None = None,
           swath: int | None = None, properties: dict[str, Any] | None = None) -> dict[str, Any]:  # fmt: skip
        """Add a scene; `cloud` is rows and columns, `swath` the first column without data, in pixels of 10 m."""
        added = 1000 if float(baseline) >= 4 else 0
        assets = {}
        for band in (*BANDS, "SCL"):
            step = S2_METRES.get(band, 20)
            side = -(-size * 10 // step)
            transform = Affine(step, 0, left, 0, -step, top)
            x, y = position(crs, *centres(transform, side, side))
            rows, columns = np.meshgrid(np.arange(side) * step / 10, np.arange(side) * step / 10, indexing="ij")
            hidden = np.zeros((side, side), bool)
            if cloud is not None:
                hidden = (rows >= cloud[0]) & (rows < cloud[1]) & (columns >= cloud[2]) & (columns < cloud[3])
            if band == "SCL":
                values = np.where(hidden, 9, 4).astype(np.uint8)
            else:
                values = np.rint(np.where(hidden, 8000, reflectance(band, x, y))) + added
                values = values.astype(np.uint16)
            if swath is not None:
                values[columns >= swath] = 0
            write(self.root / "s2" / name / f"{band}.tif", values, crs, transform)
            assets[band] = f"s2/{name}/{band}.tif"
        bounds = (left, top - size * 10, left + size * 10, top)
        return self._item("sentinel-2-l2a", name, crs, bounds, {
            "datetime": time, "platform": "Sentinel-2B", "proj:epsg": int(crs[5:]), "sat:relative_orbit": orbit,
            "sat:orbit_state": "descending", "s2:processing_baseline": baseline, **(properties or {}),
        }, assets)  # fmt: skip

    def s1(self, name: str, time: str, left: float, top: float, size: int = 1024, *, orbit: int = 15, crs: str = HOME,
           state: str = "ascending", gap: int = 0) -> dict[str, Any]:  # fmt: skip
        assets = {}
        transform = Affine(10, 0, left, 0, -10, top)
        x, y = position(crs, *centres(transform, size, size))
        for band in ("VV", "VH"):
            values = power(band, x, y).astype(np.float32) * (1 + orbit / 1000)
            values[:, :gap] = -32768
            write(self.root / "s1" / name / f"{band}.tif", values, crs, transform)
            assets[band.lower()] = f"s1/{name}/{band}.tif"
        bounds = (left, top - size * 10, left + size * 10, top)
        return self._item("sentinel-1-rtc", name, crs, bounds, {
            "datetime": time, "platform": "SENTINEL-1A", "sat:relative_orbit": orbit, "sat:orbit_state": state,
        }, assets)  # fmt: skip

    def dem(self, west: float, south: float, degrees: float = 0.1, step: float = 1 / 3600) -> dict[str, Any]:
        side = round(degrees / step)
        transform = Affine(step, 0, west - step / 2, 0, -step, south + degrees + step / 2)
        x, y = position("EPSG:4326", *centres(transform, side, side))
        name = f"dem_{west:.2f}_{south:.2f}"
        write(self.root / "dem" / f"{name}.tif", height(x, y).astype(np.float32), "EPSG:4326", transform)
        bounds = (west - step / 2, south + step / 2, west + degrees - step / 2, south + degrees + step / 2)
        return self._item("cop-dem-glo-30", name, "EPSG:4326", bounds, {"datetime": "2021-04-22T00:00:00Z"},
                          {"data": f"dem/{name}.tif"})  # fmt: skip

    def lulc(
        self, name: str, year: int, left: float, top: float, size: int = 1024, *, crs: str = HOME
    ) -> dict[str, Any]:
        transform = Affine(10, 0, left, 0, -10, top)
        values = land_cover(*position(crs, *centres(transform, size, size))).astype(np.uint8)
        write(self.root / "lulc" / f"{name}.tif", values, crs, transform, nodata=0)
        bounds = (left, top - size * 10, left + size * 10, top)
        return self._item("io-lulc-annual-v02", name, crs, bounds, {
            "datetime": None, "start_datetime": f"{year}-01-01T00:00:00Z", "end_datetime": f"{year}-12-31T23:59:59Z",
        }, {"data": f"lulc/{name}.tif"})  # fmt: skip

    def save(self) -> Path:
        """Write catalog.json, a file for each item, and items.json; return catalog.json."""
        links = []
        for item in self.items:
            target = self.root / "items" / f"{item['id']}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            assets = {name: {"href": "../" + asset["href"]} for name, asset in item["assets"].items()}
            target.write_text(json.dumps(item | {"assets": assets}))
            links.append({"rel": "item", "href": f"items/{item['id']}.json"})
        catalogue = self.root / "catalog.json"
        catalogue.write_text(json.dumps(
            {"type": "Catalog", "stac_version": "1.0.0", "id": "ground", "description": "analytic", "links": links}
        ))  # fmt: skip
        (self.root / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": self.items}))
        return catalogue


def aoi(path: Path, crs: str, bounds: tuple[float, ...]) -> Path:
    """Write an area in longitude and latitude that lies within bounds of a CRS."""
    corners = np.array([[0, 1], [2, 1], [2, 3], [0, 3], [0, 1]])
    xs, ys = np.array(bounds)[corners].T
    longitudes, latitudes = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(xs, ys)
    ring = np.column_stack([longitudes, latitudes]).tolist()
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return path
