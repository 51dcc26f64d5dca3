"""Blocks of a region on a local disk, written ahead of their reader, and a VRT that joins them.

The files serve as a queue: workers write further blocks when few unread blocks are left.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import DataError, counted
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.raster.writer import TILE, write_geotiff
from terramind_plugin.sources import engine
from terramind_plugin.sources.block import DONE, chip_path, done_path
from terramind_plugin.sources.choice import CLEAR
from terramind_plugin.sources.datasets import SceneError
from terramind_plugin.sources.reading import NO_DEM, ScenePixels, read_mask, read_modality
from terramind_plugin.sources.regions import MapRegion, RegionBlock
from terramind_plugin.sources.scenes import Scene, is_same_pass
from terramind_plugin.system.files import write_text

DTYPES = {"S2L2A": "UInt16", "S2L1C": "UInt16", "S1RTC": "Float32", "DEM": "Int16", "LULC": "Byte"}
"""GDAL's name for the type of each modality's blocks."""
NODATA: dict[str, float] = {"S2L2A": 0, "S2L1C": 0, "S1RTC": float("nan"), "DEM": NO_DEM, "LULC": 0}
"""Nodata value of each modality's blocks."""
SHOWN = 5
"""Maximum number of scenes that a message lists."""


@dataclass(frozen=True)
class MosaicTask:
    """A block to write; can be pickled."""

    block: RegionBlock
    scenes: Mapping[str, Scene]
    """Scenes of the block by key."""
    folder: str
    """Folder of the region's blocks."""
    fingerprint: str
    """Hash of everything that determines the pixels of the region."""


@dataclass
class MosaicRecord:
    """Result of the work on a block; its file is written last."""

    block: str
    fingerprint: str
    failed: dict[str, str] = field(default_factory=dict)
    """Reason for each scene that was left out because it could not be read."""


def read_block_record(folder: Path, block: str, fingerprint: str) -> MosaicRecord | None:
    """Return the record of a finished block; None if there is none, or if its plan differs or scenes are missing."""
    try:
        found = MosaicRecord(**json.loads(done_path(folder, block).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.fingerprint == fingerprint and not found.failed else None


def make_mosaic_block(task: MosaicTask) -> MosaicRecord:
    """Write the files of a block, and return its record. A finished block is not written again.

    Raises:
        DataError: A file cannot be written.
    """
    folder, name = Path(task.folder), task.block.place.id
    known = read_block_record(folder, name, task.fingerprint)
    if known is not None:
        return known
    record = MosaicRecord(name, task.fingerprint)
    grid = task.block.place.grid
    choice: _Choice | None = None
    for modality in sorted(task.block.passes, key=lambda one: one != "S2L2A"):  # its clouds also decide for S2L1C
        passes = [[task.scenes[key] for key in keys] for keys in task.block.passes[modality]]
        fusion = _Fusion(grid, modality, passes, record.failed)
        if modality == "S2L2A":
            choice = fusion.choose()
        write_geotiff(
            chip_path(folder, modality, name),
            fusion.fuse(choice if modality in ("S2L2A", "S2L1C") else None),
            crs=grid.crs,
            transform=grid.transform,
            descriptions=MODALITIES[modality].band_names,
            nodata=NODATA[modality],
        )
    write_text(done_path(folder, name), json.dumps(asdict(record), indent=1) + "\n")
    return record


class _Choice(NamedTuple):
    """The preferred pass of Sentinel-2 at each pixel."""

    times: list[datetime]
    """Time of each pass."""
    passes: NDArray[np.int16]
    """Number of the pass at each pixel, [H, W]; -1 where none has data."""


class _Fusion:
    """The passes over a block, each of which is read only where it is needed.

    Args:
        grid: Grid of the block.
        modality: Name of the modality.
        passes: Scenes of each pass, in the order of preference.
        failed: Mapping to which the reason is added for each scene that cannot be read; such scenes are left out.
    """

    def __init__(self, grid: Grid, modality: str, passes: Sequence[Sequence[Scene]], failed: dict[str, str]) -> None:
        self.grid = grid
        self.modality = modality
        self.passes = passes
        self.failed = failed

    def choose(self) -> _Choice:
        """Return the pass to use for each pixel: the first that is clear there, else the first that has data."""
        chosen = np.full(self.grid.shape, -1, np.int16)
        cloudy = chosen.copy()
        for number, scenes in enumerate(self.passes):
            found = self._attempt(scenes, partial(read_mask, self.grid))
            if found is not None:
                mask = found.values[0]
                chosen[np.isin(mask, CLEAR) & (chosen < 0)] = number
                cloudy[(mask > 0) & (cloudy < 0)] = number
            if (chosen >= 0).all():
                break
        return _Choice([scenes[0].start for scenes in self.passes], np.where(chosen < 0, cloudy, chosen))

    def fuse(self, choice: _Choice | None) -> NDArray[Any]:
        """Return the pixels [bands, H, W], each from the chosen pass, or from the first that has data there."""
        shape = (len(MODALITIES[self.modality].bands), *self.grid.shape)
        values = np.full(shape, NODATA[self.modality], DTYPES[self.modality].lower().replace("byte", "uint8"))
        if self.modality == "DEM":
            found = self._attempt(self.passes[0] if self.passes else [], self._read)
            return values if found is None else found.values
        left = np.ones(self.grid.shape, bool)
        for only_chosen in (True, False) if choice is not None else (False,):
            for number, scenes in enumerate(self.passes):
                where = left & self._wanted(choice, number, only_chosen=only_chosen)
                pixels = self._attempt(scenes, self._read) if where.any() else None
                if pixels is not None:
                    here = where & pixels.valid
                    np.copyto(values, pixels.values, where=here)
                    left &= ~here
        return values

    def _wanted(self, choice: _Choice | None, number: int, *, only_chosen: bool) -> NDArray[np.bool_]:
        """Return where a pass may be used, [H, W]."""
        if choice is None:
            return np.ones(self.grid.shape, bool)
        if not only_chosen:  # a pixel at the edge of a swath, where a band of the chosen pass has no data
            return choice.passes >= 0
        start = self.passes[number][0].start
        same = [k for k, time in enumerate(choice.times) if is_same_pass(time, start)]
        return np.isin(choice.passes, same)

    def _read(self, scenes: Sequence[Scene]) -> ScenePixels:
        return read_modality(self.grid, self.modality, scenes)

    def _attempt(self, scenes: Sequence[Scene], read: Callable[[Sequence[Scene]], ScenePixels]) -> ScenePixels | None:
        """Return the pixels of scenes, without those that cannot be read; None if nothing can be read."""
        while True:
            whole = [scene for scene in scenes if scene.key not in self.failed]
            if not whole and self.modality != "DEM":  # where the DEM has no tile, there is sea
                return None
            try:
                return read(whole)
            except SceneError as error:
                self.failed[error.scene] = error.reason


def write_vrt(path: Path, region: MapRegion, modality: str) -> None:
    """Write the VRT that joins a region's blocks of a modality. The blocks need not exist yet.

    Args:
        path: File to write, in the folder of the region.
        region: The region.
        modality: Name of the modality.
    """
    t = region.grid.transform
    nodata = str(NODATA[modality])
    bands = []
    for number, name in enumerate(MODALITIES[modality].band_names, start=1):
        sources = "".join(_source(block, modality, number) for block in region.blocks)
        bands.append(
            f'  <VRTRasterBand dataType="{DTYPES[modality]}" band="{number}" blockXSize="{TILE}" blockYSize="{TILE}">\n'
            f"    <Description>{escape(name)}</Description>\n    <NoDataValue>{nodata}</NoDataValue>\n{sources}"
            "  </VRTRasterBand>\n"
        )
    text = (
        f'<VRTDataset rasterXSize="{region.grid.width}" rasterYSize="{region.grid.height}">\n'
        f"  <SRS>{escape(region.grid.crs.to_wkt())}</SRS>\n"
        f"  <GeoTransform>{t.c!r}, {t.a!r}, {t.b!r}, {t.f!r}, {t.d!r}, {t.e!r}</GeoTransform>\n"
        f"{''.join(bands)}</VRTDataset>\n"
    )
    write_text(path, text)


def _source(block: RegionBlock, modality: str, band: int) -> str:
    place = block.place
    side = (TILE, TILE) if min(place.height, place.width) >= TILE else (place.width, 1)
    size = f'xSize="{place.width}" ySize="{place.height}"'
    return (
        "    <SimpleSource>\n"
        f'      <SourceFilename relativeToVRT="1">{escape(f"{place.id}.tif")}</SourceFilename>\n'
        f"      <SourceBand>{band}</SourceBand>\n"
        f'      <SourceProperties RasterXSize="{place.width}" RasterYSize="{place.height}" '
        f'DataType="{DTYPES[modality]}" BlockXSize="{side[0]}" BlockYSize="{side[1]}"/>\n'
        f'      <SrcRect xOff="0" yOff="0" {size}/>\n'
        f'      <DstRect xOff="{block.column}" yOff="{block.row}" {size}/>\n'
        "    </SimpleSource>\n"
    )


class Feed:
    """Producer of the blocks of a region, in the order in which rows are read, a bounded number ahead.

    Args:
        region: The region.
        folder: Folder of its blocks.
        workers: Number of processes that read scenes.
        scheduler: Address of a dask scheduler.
        name: Name of the rasters that join the blocks, without ending; that of the region by default.
    """

    def __init__(
        self,
        region: MapRegion,
        folder: Path,
        workers: int = 1,
        scheduler: str | None = None,
        name: str | None = None,
    ) -> None:
        self.region = region
        self.folder = folder
        self._name = name or region.name
        self.failed: dict[str, str] = {}
        """Reason for each scene that was left out because it could not be read."""
        self._workers = workers
        self._scheduler = scheduler
        self._ready: set[str] = set()
        self._start = 0
        self._results: Generator[tuple[MosaicTask, MosaicRecord | Exception], None, None] | None = None

    def prepare(self) -> dict[str, Path]:
        """Write the rasters that join the blocks, and return them by modality."""
        paths = {}
        for modality in self.region.blocks[0].passes:
            (self.folder / modality).mkdir(parents=True, exist_ok=True)
            paths[modality] = self.folder / modality / f"{self._name}.vrt"
            write_vrt(paths[modality], self.region, modality)
        (self.folder / DONE).mkdir(exist_ok=True)
        return paths

    def need(self, first: int, last: int) -> None:
        """Wait until the blocks of some rows of the region exist.

        Args:
            first: First row.
            last: Row after the last one.

        Raises:
            DataError: A block cannot be made.
        """
        wanted = {
            block.place.id
            for block in self.region.blocks
            if block.row < last and block.row + block.place.height > first
        }
        if first < self._start:  # rows above those in work
            self.close()
        for _ in range(2):  # the blocks in work may not include them; in the second round they come first
            while wanted - self._ready and self._advance(first):
                pass
        if wanted - self._ready:
            raise DataError(f"Blocks {', '.join(sorted(wanted - self._ready)[:SHOWN])} were not made.")

    def _advance(self, first: int) -> bool:
        """Wait for one more block, and return whether there is one. If none is in work, start from row `first`."""
        if self._results is None:
            self._start = first
            self._results = engine.run(
                self._tasks(first), make_mosaic_block, workers=self._workers, scheduler=self._scheduler
            )
        answer = next(self._results, None)
        if answer is None:
            self._results = None
            return False
        task, record = answer
        if isinstance(record, Exception):
            raise record
        self.failed |= record.failed
        self._ready.add(task.block.place.id)
        return True

    def _tasks(self, first: int) -> Iterator[MosaicTask]:
        """Yield the blocks that are not finished, from some row to the end."""
        mark = self.region.fingerprint
        for block in self.region.blocks:
            name = block.place.id
            if block.row + block.place.height <= first or name in self._ready:
                continue
            if read_block_record(self.folder, name, mark) is not None:
                self._ready.add(name)
                continue
            used = {key for passes in block.passes.values() for keys in passes for key in keys}
            yield MosaicTask(block, {key: self.region.scenes[key] for key in used}, str(self.folder.resolve()), mark)

    def close(self) -> None:
        """End the workers."""
        if self._results is not None:
            self._results.close()
            self._results = None

    def remove(self) -> None:
        """Delete the blocks of a region whose map is finished."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def refuse_failures(failed: Mapping[str, str]) -> None:
    """Raise a DataError that lists the scenes that could not be read, if there are any."""
    if not failed:
        return
    shown = "; ".join(f"{scene}: {reason}" for scene, reason in list(failed.items())[:SHOWN])
    more = f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
    raise DataError(
        f"The maps are written, but without {counted(len(failed), 'scene')} that cannot be read: they show other dates "
        f"there, or no data. {shown}{more}. Run the command with --restart to try again, or leave them out with "
        "--skip_scenes ID."
    )
