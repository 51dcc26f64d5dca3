"""Running a model over scenes, in one process or in several."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import rasterio
import torch
from numpy.typing import NDArray
from torch import nn

from terramind_plugin.errors import DataError
from terramind_plugin.inference.chips import ChipRun, group_chips, make_progress, say_what_was_wrong
from terramind_plugin.inference.job import Job
from terramind_plugin.inference.options import Options
from terramind_plugin.inference.preview import size_shown
from terramind_plugin.inference.processes import Processes
from terramind_plugin.inference.resume import Partial
from terramind_plugin.inference.stream import Streamer, prepare_model
from terramind_plugin.inference.windows import RowBlock
from terramind_plugin.plotting.pictures import bands_shown
from terramind_plugin.raster.reader import Source
from terramind_plugin.raster.series import Series
from terramind_plugin.system.process import Stopped, StopSignals, refuse_inputs

logger = logging.getLogger("terramind_plugin")

CACHE, CACHE_TO_WARP = 16 * 2**20, 256 * 2**20
"""Minimum sizes of GDAL's block cache in bytes, for reading and for warping; GDAL's default is 5 % of the memory."""
Unit = tuple[int, int, int]
"""Number of the scene, number of its first row block, and number after its last one."""


def plan_units(blocks: Sequence[int], processes: int) -> list[Unit]:
    """Return pieces of work: whole scenes, or consecutive row blocks if there are fewer scenes than processes.

    Args:
        blocks: Number of row blocks of each scene.
        processes: Number of processes that share them.
    """
    parts = max(1, -(-processes // len(blocks)))
    units = []
    for scene, count in enumerate(blocks):
        edges = [count * part // parts for part in range(parts + 1)]
        units += [(scene, first, last) for first, last in pairwise(edges) if first < last]
    return units


class SceneRun:
    """A run of a model over scenes, shared by several processes.

    Args:
        model: A `SceneModel`.
        jobs: The scenes.
        options: How the model goes through them.
        processes: Processes of the run.
        signals: Requests to stop; the run stops after the present row block.
    """

    def __init__(
        self, model: nn.Module, jobs: Sequence[Job], options: Options, processes: Processes, signals: StopSignals
    ) -> None:
        self.model = model
        self.jobs = list(jobs)
        self.options = options
        self.processes = processes
        self.signals = signals
        units = plan_units([len(self._blocks(job)) for job in self.jobs], processes.count)
        self.units = units[processes.rank :: processes.count]
        text = "Windows" if processes.count == 1 else "Windows of this process"
        total = sum(self._count_windows(*unit) for unit in self.units)
        self.options = options.for_batches(total // options.batch_size)
        self._progress = make_progress(processes)
        self._advance = partial(self._progress.advance, self._progress.add_task(text, total=total))
        self._partials: dict[int, tuple[Partial, dict[str, Any]]] = {}
        self._writer: Executor
        self._written: tuple[Future[None], int] | None = None
        """Files of a scene that are being written, and the number of the scene."""

    def _blocks(self, job: Job) -> list[RowBlock]:
        return job.plan.blocks(self.options.batch_size)

    @torch.no_grad()
    def work(self) -> None:
        """Compute the share of this process, and write the files of scenes that are finished."""
        self.signals.on_signal = self.processes.stop_others
        self.signals.check()
        try:
            self._begin()
            # A thread writes the files of a scene while the model computes the next one.
            with ThreadPoolExecutor(1) as self._writer:
                for unit in self.units:
                    self._compute(*unit)
                self._wait_for_files()
            self._complete()
        finally:
            self._progress.stop()
            for rows, _ in self._partials.values():
                rows.release()

    def _begin(self) -> None:
        """Start or resume all scenes."""
        for number, job in enumerate(self.jobs):
            rows, record = job.partial, job.record
            self._partials[number] = rows, record
            if self.processes.rank == 0:
                lost = not all(job.text(ending).is_file() for ending in job.found)  # written before rows are listed
                record = rows.start(record, anew=self.options.restart or lost)
            # All processes use the date of the first one.
            self._partials[number] = rows, self.processes.share(record)
        prepare_model(self.model, self.processes.device, self.options.compile)
        self._progress.start()

    def _count_windows(self, number: int, first: int, last: int) -> int:
        job = self.jobs[number]
        return sum(len(block.rows) for block in self._blocks(job)[first:last]) * len(job.plan.columns.starts)

    def _compute(self, number: int, first: int, last: int) -> None:
        """Compute a piece of work, and write the files of a scene that is one piece."""
        job, blocks = self.jobs[number], self._blocks(self.jobs[number])
        rows, record = self._partials[number]
        model: Any = self.model

        def write(first: int, arrays: list[NDArray[Any]]) -> None:
            if job.found:  # before the rows are listed, because a resumed run does not compute listed rows
                job.write_found(model.found, record)
            rows.write(first, arrays)

        with job.open() as sources, rasterio.Env(GDAL_CACHEMAX=_cache(sources.values(), job.plan.window[0])):
            for source in sources.values():
                expected = source.expected
                shown = bands_shown(expected.name, expected.bands, len(expected.bands))
                source.keep_type = True
                source.keep_rows(job.plan.window[0], size_shown(job.grid) if job.draws else None, shown)
            begin = getattr(model, "begin", None)
            if begin is not None:  # the model uses the position of the scene
                begin(job.grid)
            streamer = Streamer(
                model,
                sources,
                job.plan,
                self.options.batch_size,
                self.processes.device,
                self.options.compiles(),
                self._advance,
                self.signals.check,
            )
            try:
                with self.signals.later(), self.processes.autocast():
                    streamer.run(blocks[first:last], rows.finished(), write)
                self.signals.check()
            except Stopped:
                self.processes.meet(self.signals)
                raise
            say_what_was_wrong(job, streamer.not_finite, sources.values())
            if (first, last) == (0, len(blocks)):
                self._wait_for_files()
                if job.draws:  # in the main thread, while the inputs are open
                    job.finish(rows, record, sources)
                    del self._partials[number]
                else:
                    self._written = self._writer.submit(job.finish, rows, record, {}), number

    def _wait_for_files(self) -> None:
        """Wait for the files of the previous scene, so that at most one scene is being written."""
        if self._written is not None:
            written, number = self._written
            self._written = None
            written.result()
            del self._partials[number]

    def _complete(self) -> None:
        """Write the files of scenes that several processes have worked on."""
        with self.signals.later():
            self.processes.meet(self.signals)
        self.signals.check()
        for number, (rows, record) in self._partials.items():
            if number % self.processes.count == self.processes.rank and rows.folder.exists():
                job = self.jobs[number]
                self._check_all_rows(job, rows)
                with job.open(warn=False) as sources:
                    job.finish(rows, record, sources)
        self.processes.meet(self.signals)

    def _check_all_rows(self, job: Job, rows: Partial) -> None:
        missing = sorted({(block.first, block.last) for block in self._blocks(job)} - set(rows.finished()))
        if missing:
            raise DataError(
                f"{rows.folder} lacks rows {missing[0][0]} to {missing[0][1] - 1}. All processes need one folder: "
                "give one with --out that all machines share, and run the command again."
            )


def run_jobs(model: nn.Module, jobs: Sequence[Job], options: Options) -> list[Path]:
    """Compute the results of scenes that lack them, and return the files of all scenes (in the first process only).

    Args:
        model: A `SceneModel`.
        jobs: Scenes after `Job.decide`.
        options: How the model goes through them.

    Raises:
        ConfigError: An unfinished run has other settings or is still running, or a file of the results is an input.
        DataError: A file cannot be read or written.
        Stopped: A signal has stopped the run. It is resumed when it is started again.
    """
    # The result of one scene may have the path of another scene's input.
    refuse_inputs((path for job in jobs for path in job.written), (path for job in jobs for path in job.files))
    options.out.mkdir(parents=True, exist_ok=True)
    open_ = [job for job in jobs if options.restart or not _is_complete(job)]
    for job in jobs:
        if job not in open_:
            job.partial.discard()
    written = [path for job in jobs for path in job.written]
    if not open_:
        return written
    groups = group_chips(model, jobs, options.batch_size)
    chips = {id(job) for group in groups for job in group}
    with StopSignals() as signals:
        processes = Processes(options)
        signals.on_signal = processes.stop_others
        waiting = [group for group in groups if any(job in open_ for job in group)]
        if waiting:
            ChipRun(model, waiting, open_, options, processes, signals).work()
        scenes = [job for job in open_ if id(job) not in chips]
        if scenes:
            SceneRun(model, scenes, options, processes, signals).work()
    return written if processes.rank == 0 else []


def _is_complete(job: Job) -> bool:
    if not job.is_done():
        return False
    print(f"{job.path}: its results exist. Reading them to check that they are complete.", file=sys.stderr)
    return job.is_whole()


def _cache(sources: Collection[Source | Series], height: int) -> int:
    """Return the size of GDAL's block cache in bytes for windows of the given height; warping rereads some blocks."""
    least = CACHE_TO_WARP if any(source.warped for source in sources) else CACHE
    return max(least, sum(source.cache_bytes(height) for source in sources))
