"""Estimate of what a plan reads: scenes, chips with a clear date, compressed bytes of the file blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rasterio.windows import Window

from terramind_plugin.raster.georeference import Grid
from terramind_plugin.sources.block import BlockTask, plan_reads
from terramind_plugin.sources.datasets import SceneError, with_dataset
from terramind_plugin.sources.reading import window_in
from terramind_plugin.sources.scenes import Scene

HEADER = 32768
"""Bytes that are read when a file is opened, see GDAL_INGESTED_BYTES_AT_OPEN."""
RUN = 4
"""Neighbouring blocks that are sampled together: they share file blocks."""
MOST_BLOCKS = 16
"""Largest number of blocks that are sampled."""
OTHER = 0.5
"""Compressed bytes of a byte in files other than GeoTIFF, about."""


@dataclass
class Volume:
    """What a plan reads, about."""

    chips: float = 0.0
    """Chips with a date that is clear enough."""
    bytes: float = 0.0
    exact: bool = True
    """Whether all blocks were looked at."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Scenes of the sample that cannot be read, with the reason."""


def sample_blocks(tasks: Sequence[BlockTask]) -> list[BlockTask]:
    """Return some blocks in runs of neighbours, or all if there are few."""
    if len(tasks) <= MOST_BLOCKS:
        return list(tasks)
    runs = MOST_BLOCKS // RUN
    starts = [round(number * (len(tasks) - RUN) / (runs - 1)) for number in range(runs)]
    return [tasks[position] for position in sorted({start + k for start in starts for k in range(RUN)})]


def estimate(tasks: Sequence[BlockTask]) -> Volume:
    """Return what a plan reads; the scene classification of some blocks is read, and headers of files."""
    chosen = sample_blocks(tasks)
    volume = Volume(exact=len(chosen) == len(tasks))
    files: dict[str, dict[tuple[int, int], int]] = {}
    for task in chosen:
        chips, reads = plan_reads(task)
        volume.chips += chips
        for scene, bands, grid in reads:
            for band in bands:
                try:
                    _count(scene, band, grid, files.setdefault(scene.assets[band], {}))
                except SceneError as error:
                    volume.unreadable[error.scene] = error.reason
    scale = len(tasks) / max(1, len(chosen))
    volume.chips *= scale
    volume.bytes = scale * sum(HEADER + sum(blocks.values()) for blocks in files.values())
    return volume


def _count(scene: Scene, band: str, grid: Grid, blocks: dict[tuple[int, int], int]) -> None:
    """Add the compressed bytes of the file blocks that a grid needs."""

    def measure(dataset: Any) -> Mapping[tuple[int, int], int]:
        window = window_in(dataset, grid)
        return {} if window is None else _blocks(dataset, window)

    blocks.update(with_dataset(scene, band, measure))


def _blocks(dataset: Any, window: Window) -> dict[tuple[int, int], int]:
    """Return the compressed bytes of each file block that a window touches, by row and column."""
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


def total_scenes(tasks: Iterable[BlockTask]) -> int:
    """Return the number of different scenes of some blocks."""
    return len({key for task in tasks for key in task.scenes})
