"""Chips of Sentinel-2 from a catalogue, beside plain rasterio and odc-stac: CPU time, bytes, requests; the engine."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

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
from terramind_plugin.system.process import read_status
from tests.sources.server import Server, serve

BANDS = MODALITIES["S2L2A"].band_names
TILE = 528
"""Pixels per side of a simulated scene."""
SIZE = 64
"""Pixels per side of a chip; the simulated scenes are small."""
DATE = "2021-09-08"
"""A date whose scenes all have an offset."""
MIB = 2**20
PLAIN = "rasterio, a block at a time"
"""The way that is the measure of the others."""
AIM_CPU, AIM_ENGINE, AIM_MEMORY = 1.2, 0.1, 1.1
"""Times rasterio's CPU time; CPU seconds a block; times the memory after 10 blocks that 1,000 may take."""
FEW, MANY = 10, 1000
"""Numbers of blocks between which memory is compared."""
MEMORY_BLOCK = 128
"""Pixels per side of a block whose memory is measured."""


@dataclass(frozen=True)
class SourceRow:
    """What one way of reading costs."""

    who: str
    cpu: float
    """Seconds of the processor a chip, median of the rounds."""
    ratio: float
    """Median of the ratios to `PLAIN` in the same round."""
    bytes: int
    requests: int
    share: float
    """Bytes served over the compressed bytes of the file blocks that the chips touch."""
    apart: int
    """Largest difference to `PLAIN` in digital numbers."""


@dataclass(frozen=True)
class EngineRow:
    """What the engine adds to the work, and whether memory grows."""

    cpu: dict[int, float]
    """CPU seconds of all processes for a block without work, start-up included, by number of workers."""
    memory: tuple[int, int]
    """Resident bytes after `FEW` and after `MANY` blocks of one process that reads."""


@dataclass(frozen=True)
class Work:
    """Chips of one block, and the scenes of each."""

    places: Sequence[Place]
    scenes: Sequence[Scene]
    block: Grid
    """Grid that holds all chips."""

    def cut(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Return the chips of a block [bands, H, W]."""
        t = self.block.transform
        corners = [(round((t.f - one.top) / 10), round((one.left - t.c) / 10)) for one in self.places]
        return [values[:, row : row + SIZE, column : column + SIZE] for row, column in corners]


Reader = Callable[[Work], list[NDArray[Any]]]


def read_ours(work: Work) -> list[NDArray[Any]]:
    """Return the chips by this package: the block is read at once."""
    return work.cut(read_modality(work.block, "S2L2A", work.scenes).values)


def read_plainly(work: Work, *, by_block: bool) -> list[NDArray[Any]]:
    """Return the chips by rasterio alone: each file is opened once, and read by a WarpedVRT for each grid and scene.

    Args:
        work: What to read.
        by_block: Whether the grid is the block, not each chip.
    """
    grids = [work.block] if by_block else [place.grid for place in work.places]
    found = [np.zeros((len(BANDS), *grid.shape), np.uint16) for grid in grids]
    partly: list[tuple[int, NDArray[np.uint16]]] = []
    for scene in work.scenes:
        waiting = [number for number, image in enumerate(found) if (image == 0).all(axis=0).any()]
        if not waiting:
            break
        with ExitStack() as stack:
            files = [stack.enter_context(rasterio.open(scene.assets[band])) for band in BANDS]
            for number in waiting:
                values = np.stack([_warp(file, grids[number]) for file in files]).astype(np.int32)
                values = np.where(values > 0, np.maximum(values - scene.offset, 1), 0).astype(np.uint16)
                _fill(found[number], values, (values > 0).all(axis=0))
                partly.append((number, values))
    for number, values in partly:  # where bands end at different pixels
        _fill(found[number], values, (values > 0).any(axis=0))
    return work.cut(found[0]) if by_block else found


def _fill(image: NDArray[np.uint16], values: NDArray[np.uint16], where: NDArray[np.bool_]) -> None:
    np.copyto(image, values, where=where & (image == 0).all(axis=0))


def _warp(file: Any, grid: Grid) -> NDArray[Any]:
    with WarpedVRT(
        file, crs=grid.crs, transform=grid.transform, width=grid.width, height=grid.height,
        resampling=Resampling.bilinear, src_nodata=0, nodata=0,
    ) as warped:  # fmt: skip
        return np.asarray(warped.read(1))


def read_by_odc(work: Work, *, items: Mapping[str, Any], by_block: bool) -> list[NDArray[Any]]:
    """Return the chips by odc-stac, one load for the block or for each chip.

    Args:
        work: What to read.
        items: Items of pystac by id.
        by_block: Whether a block is loaded at once.
    """
    from affine import Affine
    from odc.geo.geobox import GeoBox
    from odc.stac import load

    own = [items[scene.id] for scene in work.scenes]
    chips = []
    for grid in [work.block] if by_block else [place.grid for place in work.places]:
        box = GeoBox(grid.shape, Affine(*grid.transform[:6]), str(grid.crs))
        found = load(own, bands=list(BANDS), geobox=box, resampling="bilinear", nodata=0, dtype="uint16",
                     groupby="solar_day")  # fmt: skip
        numbers = np.stack([found[band].values[0] for band in BANDS]).astype(np.int32)
        chips.append(np.where(numbers > 0, np.maximum(numbers - work.scenes[0].offset, 1), 0))
    return work.cut(chips[0]) if by_block else chips


def make_readers(items: Mapping[str, Any]) -> dict[str, Reader]:
    """Return the ways of reading by name."""
    return {
        PLAIN: partial(read_plainly, by_block=True),
        "this package": read_ours,
        "odc-stac, a block at a time": partial(read_by_odc, items=items, by_block=True),
        "rasterio, a chip at a time": partial(read_plainly, by_block=False),
        "odc-stac, a chip at a time": partial(read_by_odc, items=items, by_block=False),
    }


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

    simulate_catalogue(folder, TILE)
    works = plan_work(f"{folder}/catalog.json", folder / "aoi.geojson")
    items = {item.id: item for item in pystac.Catalog.from_file(str(folder / "catalog.json")).get_items(recursive=True)}
    for item in items.values():
        item.make_asset_hrefs_absolute()
    readers = make_readers(items)
    count = sum(len(work.places) for work in works)
    times: dict[str, list[float]] = {name: [] for name in readers}
    chips: dict[str, list[NDArray[Any]]] = {}
    for turn in range(rounds + 1):  # the first round warms up
        for name, read in readers.items():
            with rasterio.Env(**engine.GDAL):
                begun = time.process_time()
                chips[name] = [chip for work in works for chip in read(work)]
                close_datasets()
                if turn:
                    times[name].append((time.process_time() - begun) / count)
    whole = touched(works)
    rows = []
    for name in readers:
        with serve(folder) as server:  # another address each time, of which GDAL has nothing in its cache
            remote = plan_work(f"{server.url}/catalog.json", folder / "aoi.geojson")
            requests, size = _serve_once(server, make_readers(_moved(items, folder, server))[name], remote)
        ratios = [own / plain for own, plain in zip(times[name], times[PLAIN], strict=True)]
        pairs = zip(chips[name], chips[PLAIN], strict=True)
        apart = max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in pairs)
        rows.append(SourceRow(name, median(times[name]), median(ratios), size, requests, size / whole, apart))
    return rows


def _serve_once(server: Server, read: Reader, works: Sequence[Work]) -> tuple[int, int]:
    """Return the numbers of requests and bytes that one pass over all chips asks for."""
    server.reset()
    with rasterio.Env(**engine.GDAL):
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


def measure_engine(folder: Path) -> EngineRow:
    """Return what the engine costs; `folder` holds the catalogue of `measure_sources`."""
    cpu = {workers: _in_process(_engine_seconds, workers) / MANY for workers in (1, 2)}
    return EngineRow(cpu, _in_process(_memory, f"{folder}/catalog.json", folder / "aoi.geojson"))


def _in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _nothing(number: int) -> int:
    return number


def _engine_seconds(workers: int) -> float:
    """Return the CPU seconds of this process and its workers for `MANY` blocks without work."""
    own = time.process_time()
    for _ in engine.run(range(MANY), _nothing, workers=workers):
        pass
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() - own + used.ru_utime + used.ru_stime


def _memory(catalogue: str, aoi: Path) -> tuple[int, int]:
    """Return the resident bytes after `FEW` and `MANY` blocks of `MEMORY_BLOCK` pixels over the same files."""
    works = plan_work(catalogue, aoi)
    sizes = {}
    blocks = _shifted_blocks(works)
    with rasterio.Env(**engine.GDAL):
        for number in range(1, MANY + 1):
            work = next(blocks)
            read_ours(work)
            if number in (FEW, MANY):
                sizes[number] = read_status("VmRSS")
    return sizes[FEW], sizes[MANY]


def _shifted_blocks(works: Sequence[Work]) -> Iterator[Work]:
    """Yield blocks without end, each a window of the largest one at another place."""
    work = max(works, key=lambda one: one.block.height * one.block.width)
    t, rows, columns = (work.block.transform, work.block.height - MEMORY_BLOCK, work.block.width - MEMORY_BLOCK)
    rng = np.random.default_rng(0)
    while True:
        row, column = (int(rng.integers(0, most + 1)) for most in (rows, columns))
        corner = rasterio.Affine(10, 0, t.c + 10 * column, 0, -10, t.f - 10 * row)
        yield Work([], work.scenes, Grid(MEMORY_BLOCK, MEMORY_BLOCK, work.block.crs, corner))


def source_lines(rows: Sequence[SourceRow], spent: EngineRow) -> list[str]:
    """Return the lines of the report."""
    from bench.report import table  # imports torch, which would hide what blocks take in the process that reads them

    ours = next(row for row in rows if row.who == "this package")
    first, last = spent.memory
    worst = max(spent.cpu.values())
    aims = [
        ["CPU time, times that of rasterio", f"{ours.ratio:.2f}", f"{AIM_CPU}", _verdict(ours.ratio <= AIM_CPU)],
        ["engine, CPU s a block", f"{worst:.4f}", f"{AIM_ENGINE}", _verdict(worst <= AIM_ENGINE)],
        [f"memory after {MANY} blocks, times that after {FEW}", f"{last / first:.3f}", f"{AIM_MEMORY}",
         _verdict(last <= AIM_MEMORY * first)],
        ["bytes served / bytes of the blocks touched", f"{ours.share:.2f}", "1.3", _verdict(ours.share <= 1.3)],
    ]  # fmt: skip
    head = ["who", "times rasterio's CPU time", "CPU ms a chip", "MiB served", "requests", "bytes / blocks' bytes",
            "largest difference, DN"]  # fmt: skip
    listed = [
        [row.who, f"{row.ratio:.2f}", f"{row.cpu * 1e3:.1f}", f"{row.bytes / MIB:.2f}", str(row.requests),
         f"{row.share:.2f}", str(row.apart)]
        for row in rows
    ]  # fmt: skip
    return [_versions(), "", *table(["aim", "found", "at most", "verdict"], aims), "", *table(head, listed)]


def _versions() -> str:
    """Return the versions of the libraries that read."""
    from importlib.metadata import version

    return f"rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__}, odc-stac {version('odc-stac')}."


def _verdict(met: bool) -> str:
    return "met" if met else "**missed**"


def as_json(rows: Sequence[SourceRow], spent: EngineRow) -> dict[str, Any]:
    """Return the results as JSON holds them."""
    return {"rows": [asdict(row) for row in rows], "engine": asdict(spent)}
