"""Scenes through a model on one or many processes, by Lightning."""

from __future__ import annotations

import logging
import signal
import time
import warnings
from collections.abc import Collection, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import rasterio
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import distributed, nn
from torch.utils.data import DataLoader

from terramind_plugin.errors import DataError
from terramind_plugin.inference.job import Job, Options
from terramind_plugin.inference.preview import size_shown
from terramind_plugin.inference.resume import Partial
from terramind_plugin.inference.stream import Streamer
from terramind_plugin.plotting import bands_shown
from terramind_plugin.raster.missing import describe_undeclared
from terramind_plugin.raster.reader import Source
from terramind_plugin.raster.rows import BLOCKS
from terramind_plugin.raster.windows import Band
from terramind_plugin.system import Stopped, StopSignals, refuse_inputs

logger = logging.getLogger("terramind_plugin")

CACHE, CACHE_TO_WARP = 16 * 2**20, 256 * 2**20
"""Bytes of blocks that GDAL keeps, at least; by default it keeps a twentieth of all memory."""
PATIENCE = timedelta(days=7)
"""How long a process waits for one that has more to do."""

Unit = tuple[int, int, int]
"""Number of the scene, first and last-plus-one number of its bands."""


def plan_units(bands: Sequence[int], processes: int) -> list[Unit]:
    """Return pieces of work: whole scenes, or bands that follow one another where there are too few scenes.

    There is one for each process at least, if need be with no bands: Lightning's sampler wants it.

    Args:
        bands: Number of bands of each scene.
        processes: How many processes share them.
    """
    parts = max(1, -(-processes // len(bands)))
    units = []
    for scene, count in enumerate(bands):
        edges = [count * part // parts for part in range(parts + 1)]
        units += [(scene, first, last) for first, last in pairwise(edges) if first < last]
    return units + [(0, 0, 0)] * (processes - len(units))


class SceneRun(LightningModule):
    """Lightning's view of scenes and a model: a batch is a piece of work.

    Args:
        model: A `SceneModel`.
        jobs: The scenes.
        options: How to run.
    """

    def __init__(self, model: nn.Module, jobs: Sequence[Job], options: Options) -> None:
        super().__init__()
        self.model = model
        self.jobs = list(jobs)
        self.options = options
        self.signals = StopSignals()
        """Requests to stop, which are followed after the row block at work."""
        self._progress: _Bar | None = None
        self._partials: dict[int, tuple[Partial, dict[str, Any]]] = {}

    def predict_dataloader(self) -> DataLoader[Unit]:
        """Return the pieces of work; Lightning shares them out."""
        return DataLoader(self._units(), batch_size=1, collate_fn=_first)  # type: ignore[arg-type]

    def _units(self) -> list[Unit]:
        return plan_units([len(self._bands(job)) for job in self.jobs], self.trainer.world_size)

    def _bands(self, job: Job) -> list[Band]:
        return job.plan.bands(self.options.batch_size)

    def on_predict_start(self) -> None:
        """Begin all scenes, or go on with them."""
        self.signals.on_signal = self._tell_others
        self.signals.listen()  # Lightning would note SIGTERM and go on to the end
        self.signals.check()
        barrier = self.trainer.strategy.barrier
        for number, job in enumerate(self.jobs):
            partial = job.partial
            record = job.record
            if self.trainer.is_global_zero:
                record = partial.start(job.record, anew=self.options.restart)
            # The others take the date of the first.
            record = self.trainer.strategy.broadcast(record)
            self._partials[number] = partial, record
        barrier()
        if self.options.verbose and self.trainer.is_global_zero:
            mine = self._units()[:: self.trainer.world_size]
            total = sum(self._windows(unit) for unit in mine)
            self._progress = _Bar(total, "Windows" if self.trainer.world_size == 1 else "Windows of this process")

    def _windows(self, unit: Unit) -> int:
        job = self.jobs[unit[0]]
        rows = sum(len(band.rows) for band in self._bands(job)[unit[1] : unit[2]])
        return rows * len(job.plan.columns.starts)

    def predict_step(self, batch: Unit, batch_idx: int) -> Unit:
        """Compute a piece of work and return it."""
        number, first, last = batch
        if first == last:
            return batch
        job, bands = self.jobs[number], self._bands(self.jobs[number])
        partial, record = self._partials[number]
        with job.open() as sources, rasterio.Env(GDAL_CACHEMAX=_cache(sources.values())):
            for source in sources.values():
                expected = source.expected
                shown = bands_shown(expected.name, expected.bands, len(expected.bands))
                source.keep_rows(job.plan.window[0], size_shown(job.grid), shown)
            streamer = Streamer(
                self.model,  # type: ignore[arg-type]
                sources,
                job.plan,
                self.options.batch_size,
                self.device,
                self._progress.advance if self._progress is not None else lambda count: None,
                self.signals.check,
            )
            try:
                with self.signals.later():
                    streamer.run(bands[first:last], partial.finished(), partial.write)
                self.signals.check()
            except Stopped:
                self._meet()
                raise
            if streamer.not_finite:
                logger.warning(
                    "%s: %d pixels have no finite result and hold no data. See the values of inputs and weights.",
                    job.stem,
                    streamer.not_finite,
                )
            for source in sources.values():
                if source.undeclared:
                    logger.warning("%s", describe_undeclared(source.path, source.undeclared))
                source.forget_rows()
            if (first, last) == (0, len(bands)):
                job.finish(partial, record, sources)
                del self._partials[number]
        return batch

    def on_predict_end(self) -> None:
        """Write the files of scenes that several processes have worked on."""
        with self.signals.later():
            self._meet()
        self.signals.check()
        for number, (partial, record) in self._partials.items():
            if number % self.trainer.world_size == self.trainer.global_rank and partial.folder.exists():
                self._check_all_rows(self.jobs[number], partial)
                with self.jobs[number].open() as sources:
                    self.jobs[number].finish(partial, record, sources)
        self._meet()
        self.stop()

    def _meet(self) -> None:
        """Wait for all processes, and stop if one of them was asked to.

        Raises:
            DataError: One has ended.
            Stopped: One was asked to stop.
        """
        if self.trainer.world_size == 1:
            return
        number = torch.tensor([self.signals.number or 0], device=self.device)
        try:
            # A barrier would keep signals waiting until it is over.
            meeting: Any = distributed.all_reduce(number, distributed.ReduceOp.MAX, async_op=True)
            while not meeting.is_completed():
                time.sleep(0.02)
            meeting.wait()
        except RuntimeError as error:
            self.signals.check()
            raise DataError(
                "Another process of this run has ended. See its message, and run the same command again; what is "
                "finished is kept."
            ) from error
        if number.item():
            raise Stopped(self.signals.number or int(number))

    def _tell_others(self, number: int) -> None:
        launcher = self.trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGTERM)

    def _check_all_rows(self, job: Job, partial: Partial) -> None:
        missing = {(band.first, band.last) for band in self._bands(job)} - set(partial.finished())
        if missing:
            raise DataError(
                f"{partial.folder} lacks rows {sorted(missing)[0][0]} to {sorted(missing)[0][1] - 1}. All processes "
                "need one folder: give one with --out that every machine sees, and run the command again."
            )

    def stop(self) -> None:
        """Take the progress bar away and let other runs go on."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        for partial, _ in self._partials.values():
            partial.release()


def run_jobs(model: nn.Module, jobs: Sequence[Job], options: Options) -> list[Path]:
    """Return the files of all scenes, computed where they are not there yet; nothing in further processes.

    Args:
        model: A `SceneModel`.
        jobs: Scenes for which all is decided.
        options: How to run.

    Raises:
        ConfigError: An unfinished run has other settings, or is still going on, or a file of the results is an input.
        DataError: A file cannot be read or written.
        Stopped: A signal has stopped the run, which goes on when it is started again.
    """
    # What one scene becomes may be another scene.
    refuse_inputs(
        (path for job in jobs for path in job.written), (path for job in jobs for path in job.inputs.values())
    )
    options.out.mkdir(parents=True, exist_ok=True)
    open_ = [job for job in jobs if options.restart or not job.is_complete()]
    for job in jobs:
        if job not in open_:
            job.partial.discard()
    if open_:
        several = options.devices * options.nodes > 1
        run = SceneRun(model, open_, options)
        with quiet():
            trainer = Trainer(
                accelerator=options.accelerator,
                devices=options.devices,
                num_nodes=options.nodes,
                precision=options.precision,  # type: ignore[arg-type]
                strategy=DDPStrategy(timeout=PATIENCE) if several else "auto",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                inference_mode=False,
            )
            try:
                with run.signals:
                    trainer.predict(run, return_predictions=False)
            finally:
                run.stop()
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    return [path for job in jobs for path in job.written] if first else []


def _cache(sources: Collection[Source]) -> int:
    """Return the bytes of blocks that GDAL has to keep. Warping needs some again."""
    least = CACHE_TO_WARP if any(source.warped for source in sources) else CACHE
    return max(least, (BLOCKS + 1) * sum(source.block_bytes for source in sources))


def _first(units: list[Unit]) -> Unit:
    return units[0]


@contextmanager
def quiet() -> Any:
    """Hide what Lightning says about loaders, loggers and devices: nobody chose them."""
    names = ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda", "lightning.fabric")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        try:
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


class _Speed(ProgressColumn):
    """Windows per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.2f}/s")


class _Bar:
    """Counts windows where the user can see it."""

    def __init__(self, total: int, text: str) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeRemainingColumn(),
            # Some batches take longer than others. The paths on stdout are for other programs.
            speed_estimate_period=120, console=Console(stderr=True),
        )  # fmt: skip
        self._task = self._bar.add_task(text, total=total)
        self._bar.start()

    def advance(self, count: int) -> None:
        self._bar.advance(self._task, count)

    def stop(self) -> None:
        self._bar.stop()
