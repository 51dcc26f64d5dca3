"""Chips of Sentinel-2 from a catalogue, beside plain rasterio and odc-stac: CPU time, bytes, requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from bench.report import table
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.simulation.catalogue import simulate_catalogue
from terramind_plugin.sources import engine
from terramind_plugin.sources.area import read_area
from terramind_plugin.sources.datasets import close_datasets, with_dataset
from terramind_plugin.sources.grids import Place, make_utm_grid
from terramind_plugin.sources.plan import make_request, plan_scenes
from terramind_plugin.sources.reading import read_modality, window_in
from terramind_plugin.sources.scenes import Scene
from terramind_plugin.sources.volume import block_sizes
from tests.sources.server import Server, serve

BANDS = MODALITIES["S2L2A"].band_names
SIZE = 64
"""Pixels per side of a chip; the simulated scenes are small."""
DATE = "2021-09-08"
"""A date whose scenes all have an offset."""
MIB = 2**20


@dataclass(frozen=True)
class SourceRow:
    """What one way of reading costs."""

    who: str
    cpu: float
    """Seconds of the processor a chip, median of the rounds."""
    ratio: float
    """Median of the ratios to plain rasterio in the same round."""
    bytes: int
    requests: int
    share: float
    """Bytes served over the compressed bytes of the file blocks that the chips touch."""
    apart: int
    """Largest difference to plain rasterio in digital numbers."""


@dataclass(frozen=True)
class Work:
    """Chips of one block, and the scenes of each."""

    places: Sequence[Place]
    scenes: Sequence[Scene]
    block: Grid
    """Grid that holds all chips."""


Reader = Callable[[Work], list[NDArray[Any]]]


def read_ours(work: Work) -> list[NDArray[Any]]:
    """Return the chips by this package: the block is read at once."""
    pixels = read_modality(work.block, "S2L2A", work.scenes)
    t = work.block.transform
    return [
        pixels.crop(round((t.f - one.top) / 10), round((one.left - t.c) / 10), one.height, one.width).values
        for one in work.places
    ]


def read_plainly(work: Work) -> list[NDArray[Any]]:
    """Return the chips by rasterio alone, one WarpedVRT a chip, band and scene; scenes are fused in order."""
    chips = []
    for place in work.places:
        grid = place.grid
        chip = np.zeros((len(BANDS), *grid.shape), np.uint16)
        for scene in work.scenes:
            if (chip > 0).all():
                break
            numbers = np.stack([_warp(scene.assets[band], grid) for band in BANDS])
            values = np.where(numbers > 0, np.maximum(numbers.astype(np.int32) - scene.offset, 1), 0).astype(np.uint16)
            np.copyto(chip, values, where=(chip == 0).all(axis=0) & (values > 0).all(axis=0))
        chips.append(chip)
    return chips


def _warp(address: str, grid: Grid) -> NDArray[Any]:
    with rasterio.open(address) as file, WarpedVRT(
        file, crs=grid.crs, transform=grid.transform, width=grid.width, height=grid.height,
        resampling=Resampling.bilinear, src_nodata=0, nodata=0,
    ) as warped:  # fmt: skip
        return np.asarray(warped.read(1))


def read_by_odc(items: Mapping[str, Any]) -> Reader:
    """Return a reader by odc-stac, one load a chip."""
    from affine import Affine
    from odc.geo.geobox import GeoBox
    from odc.stac import load

    def read(work: Work) -> list[NDArray[Any]]:
        chips = []
        for place in work.places:
            grid = place.grid
            box = GeoBox(grid.shape, Affine(*grid.transform[:6]), str(grid.crs))
            own = [items[scene.id] for scene in work.scenes]
            found = load(own, bands=list(BANDS), geobox=box, resampling="bilinear", nodata=0, dtype="uint16",
                         groupby="solar_day")  # fmt: skip
            numbers = np.stack([found[band].values[0] for band in BANDS]).astype(np.int32)
            chips.append(np.where(numbers > 0, np.maximum(numbers - work.scenes[0].offset, 1), 0))
        return chips

    return read


def plan_work(catalogue: str, aoi: Path) -> list[Work]:
    """Return the chips of an area by block."""
    request = make_request(["S2L2A"], DATE, [catalogue], ["planetary_computer"])
    plan = plan_scenes(request, make_utm_grid(read_area(aoi), SIZE))
    works = []
    for chips in plan.blocks().values():
        places = [chip.place for chip in chips]
        left, top = min(one.left for one in places), max(one.top for one in places)
        right, bottom = max(one.bounds[2] for one in places), min(one.bounds[1] for one in places)
        first = places[0].grid
        block = Grid(
            round((top - bottom) / 10), round((right - left) / 10), first.crs,
            rasterio.Affine(10, 0, left, 0, -10, top),
        )  # fmt: skip
        keys = dict.fromkeys(key for chip in chips for key in chip.scenes)
        own = str(first.crs.to_epsg())
        scenes = sorted((plan.scenes[key] for key in keys), key=lambda scene: (str(scene.epsg) != own, scene.key))
        works.append(Work(places, scenes, block))
    return works


def touched(works: Sequence[Work]) -> int:
    """Return the compressed bytes of all file blocks that chips touch."""
    blocks: dict[tuple[str, int, int], int] = {}
    for work in works:
        for scene in work.scenes:
            for band in BANDS:

                def measure(dataset: Any, work: Work = work) -> Mapping[tuple[int, int], int]:
                    window = window_in(dataset, work.block)
                    return {} if window is None else block_sizes(dataset, window)

                sizes = with_dataset(scene, band, measure)
                blocks |= {(scene.assets[band], *where): size for where, size in sizes.items()}
    close_datasets()
    return sum(blocks.values())


def measure_sources(folder: Path, rounds: int) -> list[SourceRow]:
    """Return a row for each way of reading: CPU time from local files, bytes and requests over HTTP.

    Args:
        folder: Folder for the catalogue.
        rounds: Number of rounds, in each of which all ways take turns.
    """
    import pystac

    simulate_catalogue(folder, 528)
    works = plan_work(f"{folder}/catalog.json", folder / "aoi.geojson")
    items = {item.id: item for item in pystac.Catalog.from_file(str(folder / "catalog.json")).get_items(recursive=True)}
    for item in items.values():
        item.make_asset_hrefs_absolute()
    readers = {"rasterio alone": read_plainly, "this package": read_ours, "odc-stac": read_by_odc(items)}
    count = sum(len(work.places) for work in works)
    times: dict[str, list[float]] = {name: [] for name in readers}
    chips: dict[str, list[NDArray[Any]]] = {}
    for _ in range(rounds):
        for name, read in readers.items():
            with rasterio.Env(**engine.GDAL):
                begun = time.process_time()
                chips[name] = [chip for work in works for chip in read(work)]
                close_datasets()
                times[name].append((time.process_time() - begun) / count)
    whole = touched(works)
    rows = []
    with serve(folder) as server:
        remote = plan_work(f"{server.url}/catalog.json", folder / "aoi.geojson")
        for name, read in readers.items():
            served = _serve_once(
                server, read_by_odc(_moved(items, folder, server)) if name == "odc-stac" else read, remote
            )
            ratios = [own / plain for own, plain in zip(times[name], times["rasterio alone"], strict=True)]
            apart = max(
                int(np.abs(a.astype(int) - b.astype(int)).max())
                for a, b in zip(chips[name], chips["rasterio alone"], strict=True)
            )
            rows.append(
                SourceRow(name, median(times[name]), median(ratios), served[1], served[0], served[1] / whole, apart)
            )
    return rows


def _serve_once(server: Server, read: Reader, works: Sequence[Work]) -> tuple[int, int]:
    server.reset()
    with rasterio.Env(**engine.GDAL, CPL_VSIL_CURL_NON_CACHED=f"/vsicurl/{server.url}"):
        for work in works:
            read(work)
        close_datasets()
    return server.count()


def _moved(items: Mapping[str, Any], folder: Path, server: Server) -> dict[str, Any]:
    """Return items whose files are on a server."""
    moved = {}
    for name, item in items.items():
        copy = item.clone()
        for asset in copy.assets.values():
            asset.href = asset.href.replace(str(folder), server.url)
        moved[name] = copy
    return moved


def source_table(rows: Sequence[SourceRow]) -> list[str]:
    """Return the lines of a Markdown table."""
    head = ["who", "times rasterio's CPU time", "CPU ms a chip", "MiB served", "requests", "bytes / blocks' bytes",
            "largest difference, DN"]  # fmt: skip
    return table(
        head,
        [
            [row.who, f"{row.ratio:.2f}", f"{row.cpu * 1e3:.1f}", f"{row.bytes / MIB:.2f}", str(row.requests),
             f"{row.share:.2f}", str(row.apart)]
            for row in rows
        ],
    )  # fmt: skip
