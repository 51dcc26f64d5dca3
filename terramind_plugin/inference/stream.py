"""Running a model over a scene, row block by row block, in memory that depends only on the width of the scene."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terramind_plugin.inference.blend import RollingBlend
from terramind_plugin.inference.transfer import TakenRows, WindowMemory
from terramind_plugin.inference.windows import Plan, RowBlock
from terramind_plugin.raster.reader import Source
from terramind_plugin.raster.series import Series
from terramind_plugin.raster.writer import Layer
from terramind_plugin.system.process import give_back

Read = TypeVar("Read")

READ_AHEAD = 2
"""Number of batches that are read while the model computes another one."""
TIDY = 40
"""Number of windows after which freed memory is returned to the system."""


class SceneModel(Protocol):
    """A model of windows of a scene."""

    channels: int
    """Number of blended values per pixel."""
    layers: tuple[Layer, ...]
    """Files that hold the results."""

    def __call__(self, images: Mapping[str, Tensor], corners: Sequence[tuple[int, int]]) -> Tensor:
        """Return the results of windows, [B, channels, h, w].

        Args:
            images: Images by modality, [B, bands, h, w] or series [B, bands, dates, h, w], in their units, with gaps
                filled.
            corners: Row and column of the first pixel of each window.
        """
        ...

    def finish(self, blended: Tensor) -> Sequence[Tensor]:
        """Return the values of each layer, [bands, rows, W].

        Args:
            blended: Blended results [channels, rows, W].
        """
        ...

    # Optional attributes of a model: `mixes_scenes`, True if windows of several scenes may be in one batch;
    # `begin(grid)`, called with the grid of the scene whose windows come next; `prepare(mode)`, called once on the
    # device of the run with a mode of `compile_model`. All later batches have windows of one size.


class Batch(NamedTuple):
    """A batch of windows for the model, or the end of a row block."""

    images: dict[str, Tensor]
    windows: list[tuple[int, int]]
    """Row and column number of each window."""
    marks: list[tuple[int, int, NDArray[np.bool_]]]
    """Position and cells with data of each window, including windows without any data."""
    valid: list[NDArray[np.bool_]]
    """Pixels with data of each of `windows`."""
    block: RowBlock
    ends: bool
    """Whether the row block ends with this batch."""
    ready: Any = None
    """CUDA event after which the images are on the device."""


@dataclass
class Streamer:
    """Runner of a model over the row blocks of one scene.

    It keeps the results of a row block, a few batches of windows and GDAL's blocks in memory.
    """

    model: SceneModel
    sources: Mapping[str, Source | Series]
    """Inputs by modality, all on one grid."""
    plan: Plan
    batch_size: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    whole_batches: bool = False
    """Whether all batches have `batch_size` windows, as compiled models need; the last one repeats windows."""
    on_windows: Callable[[int], object] = lambda count: None
    """Called with the number of windows that were finished."""
    on_block: Callable[[], object] = lambda: None
    """Called when a row block was passed to `write`. An exception ends the run after the block is written."""
    not_finite: int = 0
    """Number of pixels so far that have data but no finite result."""

    def run(
        self,
        blocks: Sequence[RowBlock],
        finished: Sequence[tuple[int, int]],
        write: Callable[[int, list[NDArray[Any]]], object],
    ) -> None:
        """Compute row blocks that are not finished.

        Args:
            blocks: Consecutive blocks of `plan.blocks(batch_size)`.
            finished: First row, and row after the last one, of each finished block.
            write: Called in the order of rows with the number of the first row and the values of each layer, [bands,
                rows, W].
        """
        every = self.plan.blocks(self.batch_size)
        numbers = [every.index(block) for block in blocks]
        done = set(finished)
        open_ = [number for number in numbers if (every[number].first, every[number].last) not in done]
        across = len(self.plan.columns.starts)
        self.on_windows(sum(len(every[number].rows) * across for number in numbers if number not in open_))

        def put(first: int, rows: TakenRows) -> None:
            arrays, wrong = rows.finish()
            self.not_finite += wrong
            write(first, arrays)

        with ThreadPoolExecutor(max_workers=1) as pool:
            written: Future[None] | None = None
            for start, stop in _runs(open_):
                # Closed before anything else, because a thread reads the sources until then.
                with closing(self._blend(every, start, stop)) as blended:
                    for first, rows in blended:
                        if written is not None:
                            written.result()  # at most one block waits
                        written = pool.submit(put, first, rows)
                        self.on_block()
            if written is not None:
                written.result()

    def _blend(self, every: list[RowBlock], start: int, stop: int) -> Generator[tuple[int, TakenRows]]:
        """Yield the first row and the layers of each row block, from block `start` to before block `stop`."""
        # Windows of earlier blocks reach into the first rows. In the same batches they give the same bytes.
        begin = next(number for number in range(start + 1) if self.plan.reach(every[number]) > every[start].first)
        blend = RollingBlend(self.plan, every, self.model.channels, every[begin].first, self.device)
        windows = 0
        back = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        with closing(ahead(self._read(every[begin:stop]), READ_AHEAD)) as batches:
            for batch in batches:
                for row, column, valid in batch.marks:
                    blend.mark(row, column, valid)
                windows += len(batch.marks)
                if batch.windows:
                    self._compute(batch, blend)
                is_new = batch.block.first >= every[start].first
                if is_new:
                    self.on_windows(len(batch.marks))
                if batch.ends:
                    if is_new:
                        yield batch.block.first, TakenRows(self.model, *blend.done(batch.block.last), back)
                    blend.move(batch.block.last)
                    if windows >= TIDY:
                        give_back()
                        windows = 0

    def _compute(self, batch: Batch, blend: RollingBlend) -> None:
        if batch.ready is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(batch.ready)
            for image in batch.images.values():
                image.record_stream(stream)
        corners = [self.plan.corner(row, column) for row, column in batch.windows]
        results = run_windows(self.model, batch.images, corners, self.batch_size if self.whole_batches else 0)
        for (row, column), valid, result in zip(batch.windows, batch.valid, results, strict=True):
            blend.add(row, column, self.plan.gather(result, valid))

    def _read(self, blocks: Sequence[RowBlock]) -> Iterator[Batch]:
        """Yield the batches of some row blocks, without windows that have no data."""
        with ThreadPoolExecutor(len(self.sources), thread_name_prefix="reading inputs") as readers:
            yield from self._read_batches(blocks, readers)

    def _read_batches(self, blocks: Sequence[RowBlock], readers: Executor) -> Iterator[Batch]:
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        # Used in turn: one is being filled, some wait, one is in use by the model.
        memories = cycle([WindowMemory(self.batch_size, self.device) for _ in range(READ_AHEAD + 2)])
        for block in blocks:
            batch, memory = Batch({}, [], [], [], block, False), next(memories)
            memory.begin()
            for row, column in self.plan.windows(block):
                values, valid = self._read_window(row, column, readers)
                batch.marks.append((row, column, self.plan.shrink(valid)))
                if valid.any():
                    batch.valid.append(valid)
                    for name, image in values.items():
                        memory.put(name, len(batch.windows), image)
                    batch.windows.append((row, column))
                if len(batch.windows) == self.batch_size:
                    yield self._send(batch, memory, stream)
                    batch, memory = Batch({}, [], [], [], block, False), next(memories)
                    memory.begin()
            yield self._send(batch._replace(ends=True), memory, stream)

    def _read_window(
        self, row: int, column: int, readers: Executor
    ) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
        window = *self.plan.corner(row, column), *self.plan.window
        first, *others = self.sources.items()  # each modality in a thread of its own, the first in this one
        waiting = {name: readers.submit(source.read, *window) for name, source in others}
        try:
            parts = {first[0]: first[1].read(*window)}
        finally:
            wait(waiting.values())  # after an error, no thread may still read a file that is about to be closed
        parts |= {name: one.result() for name, one in waiting.items()}
        valid = np.logical_or.reduce([part.valid for part in parts.values()])
        return {name: part.values for name, part in parts.items()}, valid

    def _send(self, batch: Batch, memory: WindowMemory, stream: torch.cuda.Stream | None) -> Batch:
        """Add the images, copied to the device on a stream of their own, so that the model's stream does not wait."""
        if not batch.windows:
            return batch
        images, ready = memory.send(len(batch.windows), stream)
        return batch._replace(images=images, ready=ready)


def run_windows(
    model: SceneModel, images: Mapping[str, Tensor], corners: Sequence[tuple[int, int]], least: int = 0
) -> Tensor:
    """Return the results of windows [B, channels, h, w].

    Args:
        model: Model of the scene.
        images: As in `SceneModel`.
        corners: As in `SceneModel`.
        least: Minimum number of windows in a batch of the model; the first window is repeated to reach it.
    """
    lacking = least - len(corners)
    if lacking <= 0:
        return model(images, corners)
    filled = {name: torch.cat([image, image[:1].expand(lacking, *image.shape[1:])]) for name, image in images.items()}
    return model(filled, [*corners, *[corners[0]] * lacking])[: len(corners)]


def prepare_model(model: Any, device: torch.device, mode: str) -> None:
    """Prepare a model for the windows of a run, on its device.

    Args:
        model: A `SceneModel`.
        device: Device of the run.
        mode: See `compile_model`.
    """
    model.to(device).eval()
    prepare = getattr(model, "prepare", None)
    if prepare is not None:
        prepare(mode)


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first number of each run of consecutive numbers, and the number after its last one."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


def ahead(items: Iterable[Read], count: int = 2) -> Generator[Read]:
    """Yield the items of an iterable that a thread reads in advance. Exceptions of the thread are raised here.

    Args:
        items: Iterable, used only in the thread.
        count: Maximum number of items that are read in advance.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="reading ahead") as pool:
        waiting = deque(pool.submit(next, iterator, end) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, iterator, end))
                yield cast(Read, item)
        finally:
            pool.shutdown(cancel_futures=True)
