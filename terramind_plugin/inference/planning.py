"""Planning of jobs from the headers of the scenes' files, and checks that refuse scenes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from terramind_plugin.errors import ConfigError, DataError, counted
from terramind_plugin.inference.job import Job
from terramind_plugin.inference.options import Options
from terramind_plugin.inference.windows import Plan, plan_windows
from terramind_plugin.model.dates import DatesTaken
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.raster.reader import Expected
from terramind_plugin.raster.series import open_input

logger = logging.getLogger("terramind_plugin")

Planner = Callable[[tuple[int, int], Options, int], Plan]
"""Function that plans windows from the shape of a scene, settled options and the model's patch size."""


def plan_jobs(
    scenes: Sequence[Mapping[str, Path | tuple[Path, ...]]],
    expected: Mapping[str, Expected],
    options: Options,
    patch: int,
    *,
    align: bool = False,
    planner: Planner | None = None,
    kind: Callable[..., Job] | None = None,
) -> list[Job]:
    """Return scenes with their plans, after a look at the headers of their files.

    Args:
        scenes: For each scene the file of each modality, or its files in the order of time. The first modality gives
            the grid.
        expected: Bands and units that the files must have, by modality.
        options: Settled options of the run.
        patch: Patch size of the model in pixels: heights and widths of windows are multiples of it.
        align: Whether windows also start at multiples of the patch size.
        planner: Planner of windows for results that are coarser than the scene; None for results in pixels.
        kind: Class of the jobs, for results other than GeoTIFFs.

    Raises:
        ConfigError: The windows are not possible.
        DataError: A file cannot be used, or results of two scenes would have one name.
    """
    options.check()
    planner = planner or functools.partial(_plan_pixels, align=patch if align else 1)
    jobs = [_plan(inputs, expected, options, patch, planner, kind or Job) for inputs in scenes]
    seen: dict[str, Path] = {}
    for job in jobs:
        if job.stem in seen:
            raise DataError(
                f"{seen[job.stem]} and {job.path} would both be written to {job.folder / job.stem}_*. "
                "Give them to two commands with another --out each."
            )
        seen[job.stem] = job.path
        for name in job.warped:
            logger.info("%s is warped to the grid of the first input.", job.inputs[name])
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"Cannot write into {options.out}: it is a file. Give a folder.")
    return jobs


def _plan_pixels(shape: tuple[int, int], options: Options, patch: int, *, align: int) -> Plan:
    crop, stride = options.crop, options.stride
    if crop is None or stride is None:
        raise ConfigError("crop and stride must be numbers. Call Options.settle first.")
    return plan_windows(*shape, crop, stride, options.margin, multiple=patch, align=align)


def _plan(
    inputs: Mapping[str, Path | tuple[Path, ...]],
    expected: Mapping[str, Expected],
    options: Options,
    patch: int,
    planner: Planner,
    kind: Callable[..., Job],
) -> Job:
    grid: Grid | None = None
    warped, dates = [], {}
    files = {name: paths if isinstance(paths, tuple) else (paths,) for name, paths in inputs.items()}
    for name, paths in files.items():
        source = open_input(paths, expected[name], grid)
        grid = grid or source.grid
        warped += [name] if source.warped else []
        if expected[name].dated:
            dates[name] = source.dates
        source.close()
    _check_dates(files, dates)
    assert grid is not None  # there is at least one input
    plan = planner(grid.shape, options, patch)
    first = {name: paths[0] for name, paths in files.items()}
    later = {name: paths[1:] for name, paths in files.items() if len(paths) > 1}
    return kind(first, dict(expected), grid, plan, options.out, warped=tuple(warped), later=later, dates=dates)


def _check_dates(files: Mapping[str, tuple[Path, ...]], dates: Mapping[str, int]) -> None:
    """Raise a DataError if the series of a scene have different numbers of dates, other than one date."""
    if any(count not in (1, max(dates.values())) for count in dates.values()):
        listed = ", ".join(f"{name} has {counted(count, 'date')} ({files[name][0]})" for name, count in dates.items())
        raise DataError(
            f"The modalities of a scene have different numbers of dates: {listed}. Give each as many dates, or one "
            "date, which is repeated."
        )


def refuse_dates(jobs: Sequence[Job], taken: DatesTaken | None) -> None:
    """Raise a DataError if a scene has another number of dates than the model takes.

    Args:
        jobs: The scenes.
        taken: Number of dates that the model expects; None for any.
    """
    for job in jobs:
        count = max(job.dates.values(), default=None)
        if taken is not None and count is not None and count != taken.count:
            name = max(job.dates, key=lambda name: job.dates[name])
            raise DataError(taken.refuse(f"{', '.join(map(str, job.files_of(name)))}: {name}", count))


def refuse_nowhere(jobs: Sequence[Job], positions: str | None) -> None:
    """Raise a DataError if a scene has no georeference and a model takes its position.

    Args:
        jobs: The scenes.
        positions: Name of the input that is the position; None if there is none.
    """
    for job in jobs:
        if positions is not None and job.grid.centre() is None:
            raise DataError(f"{job.path} has no georeference, which the model's input {positions} comes from.")


def refuse_empty(jobs: Sequence[Job]) -> None:
    """Raise a DataError if the only scene is one window without data, or with values that are not possible."""
    if len(jobs) > 1 or len(jobs[0].plan) > 1:
        return  # rows without data become rows without results
    with jobs[0].open(warn=False) as sources:
        for source in sources.values():
            if not source.read(0, 0, *source.grid.shape).valid.any():
                raise DataError(f"{source.path} holds no data: every pixel is missing.")
