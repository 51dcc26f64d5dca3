"""A static STAC catalogue of simulated scenes on disk, for demonstrations and tests without a network.

catalog.json  COLLECTION/collection.json  COLLECTION/items/ID.json   Planetary Computer's names
items.json                                                           the same items in one file
earth_search/catalog.json ...                                        products of baseline 05.00 in Earth Search's names
data/                                                                Cloud-Optimized GeoTIFFs
aoi.geojson  labels/ID.tif  labels.geojson                           area, and water as rasters and as polygons
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.features import shapes
from rasterio.transform import Affine
from rasterio.warp import transform_bounds, transform_geom
from shapely.geometry import box, mapping

from terramind_plugin.errors import ConfigError, check_seed
from terramind_plugin.raster.complete import is_complete
from terramind_plugin.raster.georeference import Grid, apply_affine
from terramind_plugin.raster.writer import Layer, write_geotiff, write_layer
from terramind_plugin.simulation.dataset import claim_folder
from terramind_plugin.simulation.ground import RESOLUTIONS, Ground, coarsen, warp
from terramind_plugin.simulation.items import (
    COMMON,
    Item,
    as_earth_search,
    asset,
    catalog,
    collection,
    elevation_item,
    footprint,
    landcover_item,
    optical_item,
    radar_item,
)
from terramind_plugin.simulation.overpasses import (
    MERIDIAN,
    OPTICAL_PASSES,
    PARALLEL,
    RADAR_PASSES,
    YEARS,
    ZONES,
    Tile,
    make_grid,
    make_tiles,
)
from terramind_plugin.simulation.terrain import PIXEL
from terramind_plugin.system.files import write_text

SIZE = 768
"""Default height and width of a tile of Sentinel-2 in pixels of 10 m; real tiles have 10,980."""
SMALLEST_TILE = 120
"""Smallest height and width of a tile, pixels."""
STEP = 12
"""Sizes are multiples of this number, so that tiles and slices consist of whole pixels of 60 m."""
OFFSET, OFFSET_BASELINE = 1000, "04.00"
"""Number that products of Sentinel-2 add to their digital numbers, and the processing baseline that began to do so."""
REPROCESSED = "05.00"
"""Processing baseline of Sentinel-2's Collection 1."""
RADAR_NODATA = -32768.0
"""Nodata value in Planetary Computer's radar products."""
DEGREE = 3600
"""Number of pixels of the elevation model per degree."""
LABEL_SIDES = (128, 64, 32)
"""Possible sides of label rasters in pixels; the largest of which four fit into the side of a tile is used."""
_VERSION = 1  # raise it when the same parameters give other scenes


@dataclass(frozen=True)
class _Scene:
    """A product to write: an item and its files."""

    files: dict[str, tuple[Path, Grid]]
    """Path below the folder and grid, by asset."""
    make: Callable[[], Mapping[str, NDArray[Any]]]
    """Function that returns the pixels of each asset, [H, W]."""
    item: Callable[[], Item]
    nodata: float | None = None
    tile: Tile | None = None
    """Tile of a product of Sentinel-2."""


def simulate_catalogue(
    out: str | Path, size: int | None = None, seed: int = 0, on_scene: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Write a static STAC catalogue of simulated scenes, and return the number of items of each collection.

    The same arguments give the same bytes. A second call on the same folder writes only missing or damaged files.

    Args:
        out: Folder to write to; created if it does not exist.
        size: Height and width of a tile of Sentinel-2 in pixels of 10 m, a multiple of 12 from 120; None for `SIZE`.
        seed: Seed of the ground and of all scenes.
        on_scene: Called after each scene with the number of finished scenes and of all scenes.

    Raises:
        ConfigError: An argument is out of range, or the folder holds other files.
        DataError: A file cannot be written.
    """
    size = SIZE if size is None else size
    if size < SMALLEST_TILE or size % STEP:
        raise ConfigError(
            f"Tiles of a catalogue have a multiple of {STEP} pixels from {SMALLEST_TILE}, got size {size}."
        )
    check_seed(seed)
    root = Path(out)
    claim_folder(root, {"version": _VERSION, "world": "stac", "size": size, "seed": seed})
    ground = Ground(seed, size)
    scenes = list(_plan(root, ground, size))
    items = []
    for number, scene in enumerate(scenes, start=1):
        _write_scene(root, scene)
        items.append((scene.item(), scene.tile))
        if on_scene is not None:
            on_scene(number, len(scenes))
    _write_labels(root, ground, size)
    own = [item for item, _ in items]
    again = [
        as_earth_search(item, tile)
        for item, tile in items
        if tile is not None and item["properties"]["s2:processing_baseline"] >= REPROCESSED
    ]
    _write_json(root / "items.json", {"type": "FeatureCollection", "features": [_moved(item, "") for item in own]})
    _write_catalogue(root / "earth_search", again, "../../../")
    _write_catalogue(root, own, "../../")
    return {name: sum(item["collection"] == name for item in own) for name in _names(own)}


def _plan(root: Path, ground: Ground, size: int) -> Iterator[_Scene]:
    """Yield all scenes; their pixels are computed when they are written."""
    for number, one in enumerate(OPTICAL_PASSES):
        for tile in make_tiles(size):
            folder = Path("data/S2L2A") / f"{one.time[:10]}_{tile.name}"
            grids = {band: _coarse(tile.grid, RESOLUTIONS.get(band, 20)) for band in (*COMMON, "SCL")}
            files = {band: (folder / f"{band}.tif", grid) for band, grid in grids.items()}
            yield _Scene(
                files,
                partial(_see, ground, number, tile),
                partial(_describe_optical, root, ground, number, tile, files),
                tile=tile,
            )
    for number, radar in enumerate(RADAR_PASSES):
        side = size * PIXEL
        height, width = (2 * size, 2 * size) if radar.epsg == ZONES[1] else (11 * size // 6, 7 * size // 4)
        grid = make_grid(radar.epsg, side, side * height / (2 * size), height, width)
        folder = Path("data/S1RTC") / f"{radar.time[:10]}_{radar.orbit:03d}"
        files = {name: (folder / f"{name}.tif", grid) for name in ("vv", "vh")}
        yield _Scene(
            files,
            partial(_listen, ground, number, grid),
            lambda radar=radar, grid=grid, files=files: radar_item(  # type: ignore[misc]
                radar, footprint(grid, radar.edge, ground.grid), _assets(files, gsd=10)
            ),
            RADAR_NODATA,
        )
    yield from _plan_elevation(ground)
    for epsg in ZONES:
        side = size * PIXEL
        west = side if epsg == ZONES[0] else 0.2 * side
        grid = make_grid(epsg, west, 0.9 * side, 9 * size // 5 // STEP * STEP, 13 * size // 12)
        for year in YEARS:
            files = {"data": (Path("data/LULC") / f"{epsg}_{year}.tif", grid)}
            yield _Scene(
                files,
                lambda grid=grid: {  # type: ignore[misc]
                    "data": ground.put(ground.landcover[None], grid, Resampling.nearest)[0]
                },
                lambda year=year, grid=grid, files=files: landcover_item(  # type: ignore[misc]
                    year, grid, footprint(grid, None, ground.grid), _assets(files)
                ),
                0,
            )


def _plan_elevation(ground: Ground) -> Iterator[_Scene]:
    """Yield the tiles of the elevation model, cut to the ground: whole ones have 3600 x 3600 pixels."""
    grid = ground.grid
    west, south, east, north = transform_bounds(grid.crs, "EPSG:4326", *grid.bounds)
    margin = 8
    for latitude in (int(PARALLEL) - 1, int(PARALLEL)):
        for longitude in (int(MERIDIAN) - 1, int(MERIDIAN)):
            # The centre of the first pixel is at the whole degree, so a tile begins half a pixel outside.
            columns = np.clip(_rounded((west - longitude) * DEGREE, (east - longitude) * DEGREE, margin), 0, DEGREE)
            rows = np.clip(
                _rounded((latitude + 1 - north) * DEGREE, (latitude + 1 - south) * DEGREE, margin), 0, DEGREE
            )
            step = 1 / DEGREE
            corner = longitude + (columns[0] - 0.5) * step, latitude + 1 - (rows[0] - 0.5) * step
            tile = Grid(
                int(rows[1] - rows[0]),
                int(columns[1] - columns[0]),
                CRS.from_epsg(4326),
                Affine(step, 0, corner[0], 0, -step, corner[1]),
            )
            name = f"Copernicus_DSM_COG_10_N{latitude:02d}_00_E{longitude:03d}_00_DEM"
            files = {"data": (Path("data/DEM") / f"{name}.tif", tile)}
            shape = box(longitude, latitude, longitude + 1, latitude + 1)
            yield _Scene(
                files,
                partial(_measure, ground, tile),
                partial(elevation_item, name, shape, _assets(files, gsd=30)),
            )


def _rounded(low: float, high: float, margin: int) -> NDArray[np.int64]:
    return np.array([np.floor(low) - margin, np.ceil(high) + margin], np.int64)


def _coarse(grid: Grid, resolution: int) -> Grid:
    """Return a grid of the same corner whose pixels have another size."""
    factor = round(resolution / PIXEL)
    t = grid.transform
    return Grid(grid.height // factor, grid.width // factor, grid.crs, Affine(resolution, 0, t.c, 0, -resolution, t.f))


def offset_of(baseline: str) -> int:
    """Return the number that products of a processing baseline of Sentinel-2, e.g. '05.09', add to their values."""
    return OFFSET if baseline >= OFFSET_BASELINE else 0


def _see(ground: Ground, number: int, tile: Tile) -> Mapping[str, NDArray[Any]]:
    return coarsen(ground.optical(number), ground, tile.grid, offset_of(OPTICAL_PASSES[number].baselines[tile.name]))


def _listen(ground: Ground, number: int, grid: Grid) -> Mapping[str, NDArray[Any]]:
    """Return the image of a radar pass on a grid."""
    power = ground.put(ground.radar(number), grid, Resampling.bilinear, fill=RADAR_NODATA)
    power = np.where(np.isfinite(power), power, np.float32(RADAR_NODATA))
    return dict(zip(("vv", "vh"), power, strict=True))


def _measure(ground: Ground, grid: Grid) -> Mapping[str, NDArray[Any]]:
    """Return heights on a grid that extends a little beyond the ground; pixels outside have the height of its edge."""
    beyond = ground.grid.width // 4
    padded = np.pad(ground.elevation, beyond, mode="edge")
    x, y = apply_affine(ground.grid.transform, -beyond, -beyond)
    t = ground.grid.transform
    wide = Grid(padded.shape[0], padded.shape[1], ground.grid.crs, Affine(t.a, 0, x, 0, t.e, y))
    return {"data": warp(padded[None], wide, grid, Resampling.bilinear, np.nan)[0]}


def _describe_optical(
    root: Path, ground: Ground, number: int, tile: Tile, files: Mapping[str, tuple[Path, Grid]]
) -> Item:
    """Return the item of a product that has been written, with its share of clouds."""
    one = OPTICAL_PASSES[number]
    with rasterio.open(root / files["SCL"][0]) as file:
        classes = file.read(1)
    seen = classes > 0
    shares = {
        "eo:cloud_cover": round(100 * float(np.isin(classes, (8, 9, 10)).sum() / max(seen.sum(), 1)), 6),
        "s2:nodata_pixel_percentage": round(100 * float(1 - seen.mean()), 6),
    }
    assets = _assets({name: file for name, file in files.items() if name != "SCL"})
    for band, found in assets.items():
        found["gsd"] = RESOLUTIONS.get(band, 20)
        found["eo:bands"] = [{"name": band, "common_name": COMMON[band]}]
    assets |= _assets({"SCL": files["SCL"]}, gsd=20)
    return optical_item(one, tile, footprint(tile.grid, one.edge, ground.grid), assets, shares)


def _assets(files: Mapping[str, tuple[Path, Grid]], **properties: Any) -> dict[str, Item]:
    return {name: asset(path.as_posix(), grid, name, **properties) for name, (path, grid) in files.items()}


def _write_scene(root: Path, scene: _Scene) -> None:
    """Write the missing files of a scene."""
    missing = {name: file for name, file in scene.files.items() if not is_complete(root / file[0])}
    if not missing:
        return
    pixels = scene.make()
    for name, (path, grid) in missing.items():
        values = pixels[name][None]
        layer = Layer("", values.dtype.name, (name,), "", scene.nodata)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        write_layer(root / path, partial(_rows, values), layer, grid, {}, cog=True)


def _rows(values: NDArray[Any], first: int, last: int) -> NDArray[Any]:
    return values[:, first:last]


def _write_labels(root: Path, ground: Ground, size: int) -> None:
    """Write the area of interest, and water as rasters on the grids of both zones and as polygons."""
    side = next(side for side in LABEL_SIDES if size >= 4 * side or side == LABEL_SIDES[-1])
    folder = root / "labels"
    folder.mkdir(exist_ok=True)
    for tile in make_tiles(size):
        water = ground.put(ground.water[None], tile.grid, Resampling.nearest)[0]
        name = tile.name
        for row in range(0, size - side + 1, side):
            for column in range(0, size - side + 1, side):
                t = tile.grid.transform
                x, y = apply_affine(t, column, row)
                here = Grid(side, side, tile.grid.crs, Affine(t.a, 0, x, 0, t.e, y))
                path = folder / f"{name}_{row // side:02d}_{column // side:02d}.tif"
                if _belongs(here, tile, size) and not is_complete(path):
                    label = water[row : row + side, column : column + side].astype(np.int16)
                    write_geotiff(
                        path,
                        label[None],
                        crs=here.crs,
                        transform=here.transform,
                        descriptions=("water",),
                        tags={"class_names": "0 = land, 1 = water"},
                    )
    outlines = [
        {
            "type": "Feature",
            "properties": {"class": 1, "name": "water"},
            "geometry": transform_geom(ground.grid.crs, "EPSG:4326", outline, precision=7),
        }
        for outline, value in shapes(ground.water, transform=ground.grid.transform)
        if value == 1
    ]
    _write_json(root / "labels.geojson", {"type": "FeatureCollection", "features": outlines})
    reach = 0.42 * size * PIXEL
    west, south, east, north = transform_bounds(ground.grid.crs, "EPSG:4326", *_around(ground.grid, reach))
    area = {"type": "Feature", "properties": {}, "geometry": mapping(box(west, south, east, north))}
    _write_json(root / "aoi.geojson", {"type": "FeatureCollection", "features": [area]})


def _around(grid: Grid, reach: float) -> tuple[float, float, float, float]:
    x, y = apply_affine(grid.transform, grid.width / 2, grid.height / 2)
    return x - reach, y - reach, x + reach, y + reach


def _belongs(chip: Grid, tile: Tile, size: int) -> bool:
    """Return whether no other chip has a chip's ground: it is in its own zone, and not in an overlap of tiles."""
    corners = transform_bounds(chip.crs, "EPSG:4326", *chip.bounds)
    west = tile.grid.crs.to_epsg() == ZONES[0]
    own_zone = corners[2] <= MERIDIAN if west else corners[0] >= MERIDIAN
    _, top = apply_affine(tile.grid.transform, 0, 0)
    _, y = apply_affine(chip.transform, 0, 0)
    return own_zone and (tile.name != "33TTN" or top - y >= 0.1 * size * PIXEL)


def _write_catalogue(root: Path, items: Sequence[Item], up: str) -> None:
    """Write a catalogue whose data are some folders above its items."""
    for name in _names(items):
        own = [item for item in items if item["collection"] == name]
        for item in own:
            links = [
                {"rel": "root", "href": "../../catalog.json", "type": "application/json"},
                {"rel": "parent", "href": "../collection.json", "type": "application/json"},
                {"rel": "collection", "href": "../collection.json", "type": "application/json"},
            ]
            _write_json(root / name / "items" / f"{item['id']}.json", {**_moved(item, up), "links": links})
        _write_json(root / name / "collection.json", collection(name, own))
    _write_json(root / "catalog.json", catalog(root.name or "catalogue", _names(items)))


def _names(items: Sequence[Item]) -> list[str]:
    return list(dict.fromkeys(item["collection"] for item in items))


def _moved(item: Item, up: str) -> Item:
    """Return an item whose data are some folders above it."""
    return {**item, "assets": {name: {**one, "href": up + one["href"]} for name, one in item["assets"].items()}}


def _write_json(path: Path, content: Item) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")
