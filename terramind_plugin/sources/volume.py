"""Estimate of the work in a plan: chips with a clear date, and compressed bytes of the file blocks to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rasterio
from rasterio.windows import Window
from shapely import from_wkb, union_all
from shapely.geometry import MultiPoint

from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.georeference import Grid, apply_affine
from terramind_plugin.sources import engine
from terramind_plugin.sources.choice import (
    BlockTask,
    ChipRecord,
    WorkingChip,
    by_pass,
    chip_ids,
    choose_passes,
    group_rectangles,
    reading_options,
)
from terramind_plugin.sources.datasets import SceneError, with_dataset
from terramind_plugin.sources.grids import to_degrees
from terramind_plugin.sources.reading import read_mask, window_in
from terramind_plugin.sources.rules import MASK
from terramind_plugin.sources.scenes import Scene

HEADER = 16384
"""Number of bytes read when a file is opened, see GDAL_INGESTED_BYTES_AT_OPEN."""
RUN = 4
"""Number of neighbouring blocks that are sampled together, because they share file blocks."""
MOST_BLOCKS = 16
"""Maximum number of sampled blocks."""
OTHER = 0.5
"""Approximate compressed size per byte in files other than GeoTIFFs."""


@dataclass
class Volume:
    """Estimate of the work in a plan."""

    chips: float = 0.0
    """Number of chips with a date that is clear enough."""
    bytes: float = 0.0
    exact: bool = True
    """Whether all blocks were counted, not only a sample."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Scenes of the sample that cannot be read, with the reason."""


def sample_blocks(tasks: Sequence[BlockTask]) -> list[BlockTask]:
    """Return a sample of blocks in runs of neighbours, or all blocks if there are few."""
    if len(tasks) <= MOST_BLOCKS:
        return list(tasks)
    runs = MOST_BLOCKS // RUN
    starts = [round(number * (len(tasks) - RUN) / (runs - 1)) for number in range(runs)]
    return [tasks[position] for position in sorted({start + k for start in starts for k in range(RUN)})]


def estimate(tasks: Sequence[BlockTask]) -> Volume:
    """Return the estimate, after reading the scene classification of some blocks and headers of files."""
    chosen = sample_blocks(tasks)
    volume = Volume(exact=len(chosen) == len(tasks))
    files: dict[str, dict[tuple[int, int], int]] = {}
    for task in chosen:
        with rasterio.Env(**engine.GDAL):
            volume.chips += _add_block(task, files, volume.unreadable)
    scale = len(tasks) / max(1, len(chosen))
    volume.chips *= scale
    volume.bytes = scale * sum(HEADER + sum(blocks.values()) for blocks in files.values())
    return volume


def _add_block(task: BlockTask, files: dict[str, dict[tuple[int, int], int]], unreadable: dict[str, str]) -> int:
    """Add the file blocks that a block of chips needs, and return the number of its chips that have a date."""
    chips, reads = plan_reads(task)
    for scene, bands, grid in reads:
        for band in bands:
            try:
                _count(scene, band, grid, files.setdefault(scene.assets[band], {}))
            except SceneError as error:
                unreadable[error.scene] = error.reason
    return chips


def _count(scene: Scene, band: str, grid: Grid, blocks: dict[tuple[int, int], int]) -> None:
    """Add the compressed bytes of the file blocks that a grid needs."""

    def measure(dataset: Any) -> Mapping[tuple[int, int], int]:
        window = window_in(dataset, grid)
        return {} if window is None else block_sizes(dataset, window)

    blocks.update(with_dataset(scene, band, measure))


def block_sizes(dataset: Any, window: Window) -> dict[tuple[int, int], int]:
    """Return the compressed size in bytes of each file block that a window touches, by row and column."""
    tall, wide = dataset.block_shapes[0]
    rows = range(int(window.row_off) // tall, -(-int(window.row_off + window.height) // tall))
    columns = range(int(window.col_off) // wide, -(-int(window.col_off + window.width) // wide))
    found = {}
    for row in rows:
        for column in columns:
            size = (
                dataset.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", bidx=1)
                if dataset.driver == "GTiff"
                else None
            )
            guess = OTHER * tall * wide * dataset.read(1, window=Window(0, 0, 1, 1)).itemsize if size is None else 0
            found[row, column] = int(size) if size is not None else int(guess) if dataset.driver != "GTiff" else 0
    return found


def plan_reads(task: BlockTask) -> tuple[int, list[tuple[Scene, tuple[str, ...], Grid]]]:
    """Return the number of chips of a block that have a date, and the reads for them: scene, names of files, grid.

    The scene classification is read, because both depend on it.
    """
    chips = [
        WorkingChip(plan, ChipRecord(name, plan.place.id, plan.split, ""))
        for plan in task.chips
        for name in chip_ids(plan.place.id, task.settings.per_place)
    ]
    reads: list[tuple[Scene, tuple[str, ...], Grid]] = []
    choose_passes(task, chips)
    if "S2L2A" in task.settings.modalities:
        for keys, members in by_pass(task, {chip.plan.place.id: chip for chip in chips}.values()).items():
            for grid, _ in group_rectangles(members, coarse=True):
                reads += [(scene, (MASK,), grid) for scene in _needed_scenes(task, keys, grid, "S2L2A")]
    waiting = [chip for chip in chips if chip.alive and chip.time is not None]
    for modality in task.settings.modalities:
        groups: dict[tuple[str, ...], list[WorkingChip]] = {}
        for chip in waiting:
            for keys in reading_options(task, chip, modality)[:1]:
                groups.setdefault(keys, []).append(chip)
        bands = MODALITIES[modality].band_names
        for keys, members in groups.items():
            for grid, _ in group_rectangles(members):
                reads += [(scene, bands, grid) for scene in _needed_scenes(task, keys, grid, modality)]
    return len(waiting), reads


def _needed_scenes(task: BlockTask, keys: Sequence[str], grid: Grid, modality: str) -> list[Scene]:
    """Return the scenes of a pass to read for a grid: the first ones that together cover it."""
    scenes = [task.scenes[key] for key in keys]
    if modality == "DEM":
        return scenes
    if modality == "S2L2A":
        try:
            origin = read_mask(grid, scenes).origin
        except SceneError:
            return scenes
        return scenes[: int(origin.max(initial=1))] if origin.all() else scenes
    ground = _outline(grid)
    for number in range(1, len(scenes)):
        if union_all(from_wkb([scene.outline for scene in scenes[:number]])).covers(ground):
            return scenes[:number]
    return scenes


def _outline(grid: Grid) -> Any:
    """Return the footprint of a grid in longitude and latitude."""
    x, y = apply_affine(grid.transform, np.array([0, grid.width] * 2), np.array([0, 0, grid.height, grid.height]))
    longitudes, latitudes = to_degrees(grid.crs.to_wkt(), x, y)
    return MultiPoint(np.column_stack([longitudes, latitudes])).convex_hull
