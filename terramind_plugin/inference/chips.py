"""Scenes that consist of one window, computed several in a batch."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from terramind_plugin.inference.blend import RollingBlend
from terramind_plugin.inference.job import Job
from terramind_plugin.inference.options import Options
from terramind_plugin.inference.processes import Processes
from terramind_plugin.inference.resume import Finished
from terramind_plugin.inference.stream import ahead, prepare_model, run_windows
from terramind_plugin.inference.transfer import finish_rows
from terramind_plugin.raster.missing import warn_of_undeclared
from terramind_plugin.raster.reader import Source
from terramind_plugin.raster.series import Series
from terramind_plugin.system.process import Stopped, StopSignals

logger = logging.getLogger("terramind_plugin")


def group_chips(model: nn.Module, jobs: Sequence[Job], batch_size: int) -> list[list[Job]]:
    """Return batches of scenes that consist of one window of the same size, so that a model computes them together.

    The batches depend on all jobs of a command, so that a resumed command gives the same numbers.

    Args:
        model: A `SceneModel`. Without `mixes_scenes` there are no batches of several scenes.
        jobs: All scenes of a command.
        batch_size: Maximum number of windows in a batch.
    """
    if batch_size == 1 or not getattr(model, "mixes_scenes", False):
        return []
    alike: dict[Any, list[Job]] = {}
    for job in jobs:
        if len(job.plan) == 1:
            alike.setdefault((job.plan.window, tuple(job.dates.items()), tuple(job.inputs)), []).append(job)
    groups = [same[at : at + batch_size] for same in alike.values() for at in range(0, len(same), batch_size)]
    return [group for group in groups if len(group) > 1]


class Window(NamedTuple):
    """The only window of a scene."""

    job: Job
    images: dict[str, NDArray[np.float32]]
    """Values by modality, gaps filled."""
    valid: NDArray[np.bool_]
    undeclared: dict[Any, int]
    """Number of undeclared missing pixels of each file."""


class ChipRun:
    """A run over scenes of one window, shared by several processes.

    Results are written as soon as their batch is computed, so that no unfinished rows need to be kept on disk.

    Args:
        model: A `SceneModel` that accepts windows of several scenes in a batch.
        groups: Scenes of each batch.
        open_: Scenes whose results must still be written.
        options: How the model goes through them.
        processes: Processes of the run.
        signals: Requests to stop; the run stops after the present batch.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Sequence[Job]],
        open_: Collection[Job],
        options: Options,
        processes: Processes,
        signals: StopSignals,
    ) -> None:
        self.model = model
        self.groups = list(groups)[processes.rank :: processes.count]
        self.open = {id(job) for job in open_}
        self.options = options.for_batches(len(self.groups))
        self.processes = processes
        self.signals = signals

    @torch.no_grad()
    def work(self) -> None:
        """Compute the share of this process, and write the files of its scenes.

        Raises:
            DataError: A file cannot be read or written.
            Stopped: A signal has stopped the run.
        """
        self.signals.check()
        prepare_model(self.model, self.processes.device, self.options.compile)
        progress = make_progress(self.processes)
        task = progress.add_task("Chips", total=sum(map(len, self.groups)))
        progress.start()
        try:
            # Closed before the progress bar, because a thread reads files until then.
            with ThreadPoolExecutor(1) as pool, closing(ahead(self._read())) as groups:
                written: Future[None] | None = None
                for group in groups:
                    with self.signals.later(), self.processes.autocast():
                        results = self._compute(group)
                    if written is not None:
                        written.result()  # at most one batch waits
                    if any(window.job.draws for window in group):
                        self._write(group, results)  # pictures are drawn in the main thread
                    else:
                        written = pool.submit(self._write, group, results)
                    progress.advance(task, len(group))
                    if self.signals.number is not None:
                        break
                if written is not None:
                    written.result()
        except Stopped:
            self.processes.meet(self.signals)
            raise
        finally:
            progress.stop()
        with self.signals.later():
            self.processes.meet(self.signals)
        self.signals.check()

    def _read(self) -> Iterator[list[Window]]:
        """Yield the windows of each batch."""
        for group in self.groups:
            windows = []
            for job in group:
                with job.open() as sources:
                    parts = {name: one.read(0, 0, *job.plan.window) for name, one in sources.items()}
                    undeclared = {one.path: one.undeclared for one in sources.values()}
                valid = np.logical_or.reduce([part.valid for part in parts.values()])
                windows.append(Window(job, {name: part.values for name, part in parts.items()}, valid, undeclared))
            yield windows

    def _compute(self, group: Sequence[Window]) -> list[tuple[list[NDArray[Any]], int]]:
        """Return the layers of each scene, and the number of its pixels without a finite result."""
        model: Any = self.model
        device = self.processes.device
        known = [window for window in group if window.valid.any()]
        results: dict[int, Tensor] = {}
        if known:
            names = list(known[0].images)
            images = {name: np.stack([window.images[name] for window in known]) for name in names}
            tensors = {name: torch.from_numpy(image).to(device) for name, image in images.items()}
            least = self.options.batch_size if self.options.compiles() else 0
            made = run_windows(model, tensors, [(0, 0)] * len(known), least)
            results = {id(window.job): result for window, result in zip(known, made, strict=True)}
        finished = []
        for window in group:
            plan = window.job.plan
            blend = RollingBlend(plan, plan.blocks(), model.channels, 0, device)
            blend.mark(0, 0, plan.shrink(window.valid))
            if id(window.job) in results:
                blend.add(0, 0, plan.gather(results[id(window.job)], window.valid))
            finished.append(finish_rows(model, *blend.done(plan.rows.length)))
        return finished

    def _write(self, group: Sequence[Window], results: Sequence[tuple[list[NDArray[Any]], int]]) -> None:
        for window, (arrays, not_finite) in zip(group, results, strict=True):
            job = window.job
            if id(job) not in self.open:
                continue
            job.partial.discard()  # left by a run of this scene alone
            say_not_finite(job, not_finite)
            for path, count in window.undeclared.items():
                warn_of_undeclared(path, count)
            rows = Finished(job.layers, arrays)
            if not job.draws:
                job.finish(rows, job.record, {})
                continue
            with job.open(warn=False) as sources, rasterio.Env():
                job.finish(rows, job.record, sources)


def say_what_was_wrong(job: Job, not_finite: int, sources: Collection[Source | Series]) -> None:
    """Warn of results that are not finite, and of missing pixels that files do not declare.

    Args:
        job: The scene.
        not_finite: Number of pixels with data whose result is not finite.
        sources: The opened inputs.
    """
    say_not_finite(job, not_finite)
    for source in sources:
        warn_of_undeclared(source.path, source.undeclared)


def say_not_finite(job: Job, count: int) -> None:
    """Warn of pixels with data whose result is not finite."""
    if count:
        said = (
            "1 pixel has no finite result and holds" if count == 1 else f"{count} pixels have no finite result and hold"
        )
        logger.warning("%s: %s no data. Check the values of inputs and weights.", job.stem, said)


def make_progress(processes: Processes) -> Progress:
    """Return a progress bar for the first process, shown only on a terminal."""
    # Some batches take longer than others. Standard output is reserved for paths, which other programs may read.
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        speed_estimate_period=120, console=Console(stderr=True),
        disable=processes.rank > 0 or not sys.stderr.isatty(),
    )  # fmt: skip
