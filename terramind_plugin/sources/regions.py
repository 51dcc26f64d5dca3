"""The plan of a map: one grid for each UTM zone of an area, its blocks, and the order of passes.

All blocks of a zone use passes in the same order, so that a map has no seam between blocks: the pass that shows most of
the area without clouds comes first, and further passes fill its gaps.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.crs import CRS
from rasterio.transform import Affine

from terramind_plugin.errors import ConfigError
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.sources import engine
from terramind_plugin.sources.area import clean_id, read_area
from terramind_plugin.sources.choice import CLEAR
from terramind_plugin.sources.datasets import SceneError
from terramind_plugin.sources.grids import PIXEL_METRES, Place, outlines, project_area, utm_epsg
from terramind_plugin.sources.plan import SourcePlan, SourceRequest, plan_scenes, read_plan, write_plan
from terramind_plugin.sources.reading import read_mask
from terramind_plugin.sources.scenes import Scene, group_passes, nearest_years
from terramind_plugin.system.files import hash_content, write_text

SNAP = 60.0
"""Distance in metres of which the corners of a map are multiples, so that pixels of 10, 20 and 60 m are aligned."""
LATITUDES = (-80, 0, 56, 64, 72, 84)
"""Latitudes in degrees between which the limits of UTM zones are meridians."""
STRIP = 3
"""Distance in degrees of which the limits of UTM zones are multiples."""
COVERED = 0.99
"""Share of a region that a radar pass must show to count as complete."""
BLOCK_SIDE = 1024
"""Side of a block in pixels: it fits into a worker's memory, and most file blocks of a scene are read only once."""
MOSAIC_NUMERICS = 2
"""Version of the pixels of a region: raise it when the same plan gives other pixels."""
REQUEST, ORDERS = "request.json", "orders.json"
"""Names of the files of a plan."""

Passes = tuple[tuple[str, ...], ...]
"""Keys of the scenes of each pass, in the order of preference."""


@dataclass(frozen=True)
class RegionBlock:
    """A part of a region that is read in one piece."""

    place: Place
    row: int
    """First row of the block in the region."""
    column: int
    passes: Mapping[str, Passes]
    """Passes by modality."""


@dataclass(frozen=True)
class MapRegion:
    """The part of an area in one UTM zone."""

    name: str
    grid: Grid
    blocks: tuple[RegionBlock, ...]
    """Blocks that touch the area, row by row."""
    scenes: Mapping[str, Scene]
    """Scenes by key."""

    @cached_property
    def fingerprint(self) -> str:
        """Return a hash of everything that determines the pixels."""
        content = [
            MOSAIC_NUMERICS, self.name, list(self.grid.transform)[:6], list(self.grid.shape),
            [[block.row, block.column, dict(block.passes)] for block in self.blocks],
            [describe_scene(scene) for scene in self.scenes.values()],
        ]  # fmt: skip
        return hash_content(content)


def describe_scene(scene: Scene) -> dict[str, Any]:
    """Return the properties of a scene that determine its pixels, with addresses without signatures."""
    assets = {band: url.split("?")[0] for band, url in scene.assets.items()}
    return {"key": scene.key, "assets": assets, "offset": scene.offset, "nodata": scene.nodata}


def plan_regions(
    request: SourceRequest,
    aoi: Path,
    folder: Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[MapRegion]:
    """Return the regions of an area, one for each UTM zone, and write the plan. An existing plan is used again.

    Args:
        request: Modalities, dates and catalogues.
        aoi: GeoJSON of the area.
        folder: Folder of the plan.
        workers: Number of processes that measure clouds.
        scheduler: Address of a dask scheduler.
        say: Called with a text before each part of the work.

    Raises:
        ConfigError: The area or the request is not possible, or the folder holds the plan of another request.
        DataError: A catalogue does not answer.
    """
    plan, zones = search_regions(request, aoi, folder, say)
    for note in plan.notes:
        say(note.replace("chip", "block"))
    orders = _read_orders(folder, plan, request, workers, scheduler, say)
    kept = {chip.place.id: chip for chip in plan.chips}
    regions = []
    for epsg, part in zones:
        name = f"{clean_id(aoi.stem)}_{epsg}"
        own = [place for place in _cut(name, epsg, part) if place.id in kept]
        if own:
            grid = _snapped(epsg, part)
            blocks = tuple(_make_block(place, grid, kept[place.id].scenes, orders[name], plan) for place in own)
            used = {key for block in blocks for passes in block.passes.values() for keys in passes for key in keys}
            regions.append(MapRegion(name, grid, blocks, {key: plan.scenes[key] for key in sorted(used)}))
    return regions


def search_regions(
    request: SourceRequest, aoi: Path, folder: Path, say: Callable[[str], None]
) -> tuple[SourcePlan, list[tuple[int, Any]]]:
    """Return the plan of the blocks of an area, and the parts of the area by UTM zone; arguments as `plan_regions`.

    No file of a scene is opened.
    """
    area = read_area(aoi)
    wanted = {
        "version": MOSAIC_NUMERICS, **request.describe(), "aoi": hashlib.sha256(area.wkb).hexdigest()[:16],
    }  # fmt: skip
    zones = list(_zones(area))
    if _is_there(folder, wanted):
        say(f"using the plan in {folder}")
        return read_plan(folder), zones
    places = [place for epsg, part in zones for place in _cut(f"{clean_id(aoi.stem)}_{epsg}", epsg, part)]
    plan = plan_scenes(request, places, prefer_whole=False, say=say)
    folder.mkdir(parents=True, exist_ok=True)
    write_plan(folder, plan)
    write_text(folder / REQUEST, json.dumps(wanted, indent=1) + "\n")
    return plan, zones


def _is_there(folder: Path, wanted: Mapping[str, Any]) -> bool:
    """Return whether a folder holds the plan of a request."""
    if not (folder / REQUEST).is_file():
        return False
    try:
        found = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    except ValueError:
        found = {}
    if found != wanted:
        other = sorted(key for key in wanted if found.get(key) != wanted[key])
        raise ConfigError(
            f"{folder} holds the plan of another request ({other[0]}: {found.get(other[0])}, now {wanted[other[0]]}). "
            "Choose another folder with --out, or delete this one."
        )
    return (folder / "plan.parquet").is_file()


def _zones(area: Any) -> Iterator[tuple[int, Any]]:
    """Yield the EPSG code of each UTM zone of an area, with the part of the area inside its limits."""
    from shapely import box, union_all

    left, bottom, right, top = area.bounds
    strips: dict[int, list[Any]] = {}
    for south, north in pairwise(LATITUDES):
        for west in range(math.floor(left / STRIP) * STRIP, math.ceil(right), STRIP):
            if south < top and north > bottom:
                epsg = utm_epsg(west + STRIP / 2, (south + north) / 2)
                strips.setdefault(epsg, []).append(box(west, south, west + STRIP, north))
    for epsg, boxes in sorted(strips.items()):
        part = area.intersection(union_all(boxes))
        if not part.is_empty and part.area > 0:
            yield epsg, part


def _snapped(epsg: int, part: Any) -> Grid:
    """Return the grid of a map of 10 m pixels around a part of an area."""
    left, bottom, right, top = project_area(part, f"EPSG:{epsg}").bounds
    left, bottom = math.floor(left / SNAP) * SNAP, math.floor(bottom / SNAP) * SNAP
    width, height = (round(math.ceil(x / SNAP) * SNAP / PIXEL_METRES) for x in (right - left, top - bottom))
    return Grid(
        height,
        width,
        CRS.from_epsg(epsg),
        Affine(PIXEL_METRES, 0, left, 0, -PIXEL_METRES, bottom + height * PIXEL_METRES),
    )


def _cut(name: str, epsg: int, part: Any) -> list[Place]:
    """Return the blocks of a region that touch the area, row by row."""
    from shapely import box, intersects, prepare

    grid, projected = _snapped(epsg, part), project_area(part, f"EPSG:{epsg}")
    prepare(projected)
    found = []
    for row in range(0, grid.height, BLOCK_SIDE):
        for column in range(0, grid.width, BLOCK_SIDE):
            height, width = min(BLOCK_SIDE, grid.height - row), min(BLOCK_SIDE, grid.width - column)
            left, top = grid.transform.c + column * PIXEL_METRES, grid.transform.f - row * PIXEL_METRES
            if intersects(projected, box(left, top - height * PIXEL_METRES, left + width * PIXEL_METRES, top)):
                own = f"{name}_{row // BLOCK_SIDE}_{column // BLOCK_SIDE}"
                found.append(
                    Place(own, f"EPSG:{epsg}", left, top, width, height, PIXEL_METRES, PIXEL_METRES, own, name)
                )
    return found


def _make_block(
    place: Place, grid: Grid, scenes: Sequence[str], orders: Mapping[str, Passes], plan: SourcePlan
) -> RegionBlock:
    """Return a block with the passes of its own scenes, in the order of the region."""
    row = round((grid.transform.f - place.top) / PIXEL_METRES)
    column = round((place.left - grid.transform.c) / PIXEL_METRES)
    rank = {key: number for number, key in enumerate(scenes)}
    passes = {
        modality: tuple(
            own for keys in order if (own := tuple(sorted((key for key in keys if key in rank), key=rank.__getitem__)))
        )
        for modality, order in orders.items()
    }
    return RegionBlock(place, row, column, passes)


def _read_orders(
    folder: Path,
    plan: SourcePlan,
    request: SourceRequest,
    workers: int,
    scheduler: str | None,
    say: Callable[[str], None],
) -> dict[str, dict[str, Passes]]:
    """Return the order of passes by region and modality, from the folder or by measuring the clouds."""
    path = folder / ORDERS
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return {
                name: {modality: tuple(map(tuple, passes)) for modality, passes in own.items()}
                for name, own in found.items()
            }
        except ValueError:
            say(f"{path} is damaged, so it is written again")
    shares = _measure(plan, workers, scheduler, say) if "S2L2A" in request.modalities else {}
    orders = {}
    for name in dict.fromkeys(chip.place.group for chip in plan.chips):
        orders[name] = _order_region(name, plan, request, shares)
    write_text(path, json.dumps(orders, indent=1) + "\n")
    return orders


def _order_region(
    name: str, plan: SourcePlan, request: SourceRequest, clear: Mapping[tuple[str, tuple[Any, ...]], int]
) -> dict[str, Passes]:
    """Return the passes of a region by modality, in the order of preference."""
    chips = [chip for chip in plan.chips if chip.place.group == name]
    meridian = chips[0].place.meridian
    scenes = [plan.scenes[key] for key in dict.fromkeys(key for chip in chips for key in chip.scenes)]
    wanted = request.dates.middle
    orders: dict[str, Passes] = {}
    for modality in sorted(request.modalities, key=lambda one: not one.startswith("S2L2A")):
        own = [scene for scene in scenes if scene.modality == modality]
        passes = group_passes(own, meridian)
        if modality == "DEM":
            ranked = [own]
        elif modality == "LULC":
            ranked = nearest_years(own, wanted)
        elif modality == "S1RTC":
            ranked = _rank_radar(list(passes.values()), chips, wanted)
        else:
            key = {one: (-clear.get((name, one), 0), _cloud(found), abs(found[0].start - wanted), one[0])
                   for one, found in passes.items()}  # fmt: skip
            ranked = [passes[one] for one in sorted(passes, key=lambda one: key[one])]
            if modality == "S2L2A":
                wanted = ranked[0][0].start
        orders[modality] = tuple(tuple(scene.key for scene in found) for found in ranked if found)
    return orders


def _cloud(scenes: Sequence[Scene]) -> float:
    """Return the share of clouds according to the items of a pass."""
    return float(np.mean([1.0 if scene.cloud is None else scene.cloud for scene in scenes]))


def _rank_radar(passes: Sequence[list[Scene]], chips: Sequence[Any], wanted: datetime) -> list[list[Scene]]:
    """Return radar passes: the nearest in time that shows the whole region, then others of its direction and orbit."""
    from shapely import from_wkb, union_all

    ground = union_all(outlines([chip.place for chip in chips]))

    def leaves_gaps(found: Sequence[Scene]) -> bool:
        shown = union_all(from_wkb(np.array([scene.outline for scene in found], object)))
        return bool(ground.intersection(shown).area < COVERED * ground.area)

    order = sorted(passes, key=lambda found: (leaves_gaps(found), abs(found[0].start - wanted), found[0].key))
    best = order[0][0]
    return sorted(
        order,
        key=lambda found: (
            found is not order[0], found[0].orbit_state != best.orbit_state, found[0].orbit != best.orbit,
            abs(found[0].start - wanted), found[0].key,
        ),
    )  # fmt: skip


@dataclass(frozen=True)
class _Look:
    """Task that measures the clouds over a block; can be pickled."""

    region: str
    grid: Grid
    passes: tuple[tuple[tuple[Any, ...], tuple[Scene, ...]], ...]


def _measure(
    plan: SourcePlan, workers: int, scheduler: str | None, say: Callable[[str], None]
) -> dict[tuple[str, tuple[Any, ...]], int]:
    """Return the number of clear 20 m pixels for each region and pass of Sentinel-2."""
    looks = []
    for chip in plan.chips:
        own = [plan.scenes[key] for key in chip.scenes if plan.scenes[key].modality == "S2L2A"]
        passes = group_passes(own, chip.place.meridian)
        grid = chip.place.grid
        t = grid.transform
        coarse = Grid(grid.height // 2, grid.width // 2, grid.crs, Affine(2 * t.a, 0, t.c, 0, 2 * t.e, t.f))
        looks.append(_Look(chip.place.group, coarse, tuple((key, tuple(found)) for key, found in passes.items())))
    found: dict[tuple[str, tuple[Any, ...]], int] = {}
    choices: dict[str, set[tuple[Any, ...]]] = {}
    for look in looks:
        choices.setdefault(look.region, set()).update(key for key, _ in look.passes)
    looks = [look for look in looks if len(choices[look.region]) > 1]
    if not looks:
        return found
    say(f"measuring the clouds over {len(looks)} blocks")
    for look, counts in engine.run(looks, _count_clear, workers=workers, scheduler=scheduler):
        if isinstance(counts, Exception):
            raise counts
        for key, count in counts.items():
            found[look.region, key] = found.get((look.region, key), 0) + count
    return found


def _count_clear(look: _Look) -> dict[tuple[Any, ...], int]:
    """Return the number of clear pixels of each pass: 0 for an unreadable pass, which is reported when it is read."""
    counts = {}
    for key, scenes in look.passes:
        try:
            counts[key] = int(np.isin(read_mask(look.grid, scenes).values, CLEAR).sum())
        except SceneError:
            counts[key] = 0
    return counts
