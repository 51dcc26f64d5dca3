"""A scene through a model, band of rows after band of rows, in memory that depends on its width alone."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terramind_plugin.inference.blend import RollingBlend
from terramind_plugin.inference.prefetch import Turns, ahead
from terramind_plugin.parallel import usable
from terramind_plugin.raster.reader import Source
from terramind_plugin.raster.windows import Band, Plan
from terramind_plugin.raster.writer import Layer
from terramind_plugin.system import give_back

READ_AHEAD = 2
"""Batches that are read while the model works on another."""
TIDY = 40
"""Windows after which freed memory is given back."""
FINISH_ROWS = 32
"""Blended rows that become layers at once."""


class SceneModel(Protocol):
    """What makes something of windows."""

    channels: int
    """Numbers per pixel that are blended."""
    layers: tuple[Layer, ...]
    """Files that the blended numbers become."""

    def __call__(self, images: Mapping[str, Tensor], corners: Sequence[tuple[int, int]]) -> Tensor:
        """Return [B, channels, h, w].

        Args:
            images: By modality [B, bands, h, w] in its units, gaps filled.
            corners: Row and column of the first pixel of each window.
        """
        ...

    def finish(self, blended: Tensor) -> Sequence[Tensor]:
        """Return for each layer [bands, rows, W].

        Args:
            blended: [channels, rows, W].
        """
        ...


class Batch(NamedTuple):
    """Windows for the model at once, or the end of a band."""

    images: dict[str, Tensor]
    places: list[tuple[int, int]]
    """Row and column number of each window."""
    marks: list[tuple[int, int, NDArray[np.bool_]]]
    """Where windows have data, those without any included."""
    band: Band
    ends: bool
    """Whether the band ends here."""
    ready: Any = None
    """CUDA event after which the images are on the device."""


@dataclass
class Streamer:
    """Runs a model over bands of one scene.

    Memory holds a band of rows of results, a few batches of windows, and GDAL's blocks.
    """

    model: SceneModel
    sources: Mapping[str, Source]
    """By modality, all on one grid."""
    plan: Plan
    batch_size: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    on_windows: Callable[[int], object] = lambda count: None
    """Called with the number of windows that are done."""
    on_band: Callable[[], object] = lambda: None
    """Called when a band has been handed to `write`; what it raises ends the run after the band is written."""
    not_finite: int = 0
    """Number of pixels with data so far of which the model made something that is not finite."""

    def run(
        self, bands: Sequence[Band], finished: Sequence[tuple[int, int]], write: Callable[[int, list[NDArray]], object]
    ) -> None:
        """Compute bands that are not finished.

        Args:
            bands: Some of `plan.bands(batch_size)`, one after the other.
            finished: First and last-plus-one row of what is finished.
            write: Gets the number of the first row and for each layer [bands, rows, W], in the order of rows.
        """
        every = self.plan.bands(self.batch_size)
        numbers = [every.index(band) for band in bands]
        done = set(finished)
        open_ = [number for number in numbers if (every[number].first, every[number].last) not in done]
        for band in (every[number] for number in numbers if number not in open_):
            self.on_windows(self._count(band))
        with ThreadPoolExecutor(max_workers=1) as pool:
            written: Future[object] | None = None
            for start, stop in _runs(open_):
                # Closed before anything else is: a thread reads the sources until then.
                with closing(self._blend(every, start, stop)) as blended:
                    for first, arrays in blended:
                        if written is not None:
                            written.result()  # one band waits at most
                        written = pool.submit(write, first, arrays)
                        self.on_band()
            if written is not None:
                written.result()

    def _count(self, band: Band) -> int:
        return len(band.rows) * len(self.plan.columns.starts)

    def _blend(self, every: list[Band], start: int, stop: int) -> Generator[tuple[int, list[NDArray]]]:
        """Yield first row and the layers of each band from one number to before another."""
        # Windows of bands above reach into the first rows: computed again, in the same batches, for the same bytes.
        begin = next(number for number in range(start + 1) if self.plan.reach(every[number]) > every[start].first)
        blend = RollingBlend(self.plan, every, self.model.channels, every[begin].first, self.device)
        windows = 0
        turns = Turns(self.device.type == "cpu" and torch.get_num_threads() >= usable())
        with ahead(self._read(every[begin:stop], turns), READ_AHEAD) as batches:
            for batch in batches:
                for row, column, valid in batch.marks:
                    blend.mark(row, column, valid)
                windows += len(batch.marks)
                if batch.places:
                    with turns.work():
                        self._compute(batch, blend)
                is_new = batch.band.first >= every[start].first
                if is_new:
                    self.on_windows(len(batch.marks))
                if batch.ends:
                    if is_new:
                        yield batch.band.first, self._finish(*blend.done(batch.band.last))
                    blend.move(batch.band.last)
                    if windows >= TIDY:
                        give_back()
                        windows = 0

    def _compute(self, batch: Batch, blend: RollingBlend) -> None:
        if batch.ready is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(batch.ready)
            for image in batch.images.values():
                image.record_stream(stream)
        rows, columns = self.plan.rows.starts, self.plan.columns.starts
        results = self.model(batch.images, [(rows[row], columns[column]) for row, column in batch.places])
        for (row, column), result in zip(batch.places, results, strict=True):
            blend.add(row, column, result)

    def _read(self, bands: Sequence[Band], turns: Turns) -> Iterator[Batch]:
        """Yield the batches of some bands; windows without data are left out, for there is nothing to see."""
        stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        # Used in turn: one is filled, some wait, one is worked on. New memory for each would cost as much as reading.
        rooms: Iterator[dict[str, Tensor]] = cycle([{} for _ in range(READ_AHEAD + 2)])
        for band in bands:
            batch, room = Batch({}, [], [], band, False), next(rooms)
            for row, column in self.plan.windows(band):
                with turns.read():
                    values, valid = self._read_window(row, column)
                batch.marks.append((row, column, valid))
                if valid.any():
                    for name, image in values.items():
                        if name not in room:
                            room[name] = torch.empty(self.batch_size, *image.shape)
                        # By NumPy: Torch would start threads for this one, beside those of the model.
                        room[name].numpy()[len(batch.places)] = image
                    batch.places.append((row, column))
                if len(batch.places) == self.batch_size:
                    yield self._send(batch, room, stream)
                    batch, room = Batch({}, [], [], band, False), next(rooms)
            yield self._send(batch._replace(ends=True), room, stream)

    def _read_window(self, row: int, column: int) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
        window = self.plan.rows.starts[row], self.plan.columns.starts[column], *self.plan.window
        parts = {name: source.read(*window) for name, source in self.sources.items()}
        valid = np.logical_or.reduce([part.valid for part in parts.values()])
        return {name: part.values for name, part in parts.items()}, valid

    def _send(self, batch: Batch, room: Mapping[str, Tensor], stream: torch.cuda.Stream | None) -> Batch:
        """Add the images; copied to the device on a stream of its own, so that the model's does not wait."""
        images = {name: image[: len(batch.places)] for name, image in room.items()} if batch.places else {}
        if stream is None:
            return batch._replace(images=images)
        with torch.cuda.stream(stream):
            images = {name: image.pin_memory().to(self.device, non_blocking=True) for name, image in images.items()}
            ready = torch.cuda.Event()
            ready.record(stream)
        return batch._replace(images=images, ready=ready)

    @torch.no_grad()
    def _finish(self, blended: Tensor, valid: NDArray[np.bool_]) -> list[NDArray]:
        """Return the layers of finished rows, with their own value where there is no data or no finite result.

        Models see to classes: they know where probabilities are not finite, see `choose_classes`.
        """
        layers = self.model.layers
        arrays = [np.empty((len(layer.descriptions), *valid.shape), layer.dtype) for layer in layers]
        for first in range(0, len(valid), FINISH_ROWS):  # a few at once: models need room for what they make of them
            rows = slice(first, first + FINISH_ROWS)
            finite = blended[:, rows].isfinite().all(dim=0).cpu().numpy()
            wrong = int((valid[rows] & ~finite).sum())
            self.not_finite += wrong
            for layer, array, result in zip(layers, arrays, self.model.finish(blended[:, rows]), strict=True):
                array[:, rows] = result.cpu().numpy()
                array[:, rows][:, ~valid[rows]] = layer.nodata
                if wrong and layer.dtype.startswith("float"):
                    array[:, rows][~np.isfinite(array[:, rows])] = layer.nodata
        return arrays


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first and last-plus-one of numbers that follow one another."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs
