"""Scenes from satellite catalogues: one region for each UTM zone of an area, computed while it is read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import chain
from pathlib import Path

from terramind_plugin.errors import ConfigError
from terramind_plugin.inference.job import Job
from terramind_plugin.inference.options import Options, SatelliteArguments
from terramind_plugin.model.dates import DatesTaken
from terramind_plugin.raster.reader import Expected
from terramind_plugin.sources import engine
from terramind_plugin.sources.area import DateRange, clean_id, read_periods
from terramind_plugin.sources.mosaic import Feed, refuse_failures
from terramind_plugin.sources.plan import SourceRequest, make_request
from terramind_plugin.sources.regions import MapRegion, plan_regions, search_regions
from terramind_plugin.sources.scenes import Scene
from terramind_plugin.sources.search import STATIC


@dataclass
class OpenJobs:
    """The jobs of a command, on files or on an area."""

    jobs: list[Job]
    regions: SatelliteScenes | None = None
    """The area; None for files."""

    def describe(self, number: int) -> dict[str, str]:
        """Return the tags of a result that describe the sources of its pixels."""
        return {} if self.regions is None else self.regions.describe(number)

    def finish(self, written: list[Path]) -> list[Path]:
        """Delete temporary files, and return the files written.

        Raises:
            DataError: Satellite scenes could not be read; the message lists them.
        """
        if self.regions is not None:
            self.regions.finish()
        return written


@contextmanager
def open_jobs(
    jobs: list[Job],
    arguments: SatelliteArguments | None,
    expected: Mapping[str, Expected],
    options: Options,
    plan: Callable[[list[dict[str, tuple[Path, ...]]]], list[Job]],
    command: str,
    taken: DatesTaken | None = None,
) -> Iterator[OpenJobs]:
    """Yield the jobs of a command. The workers that read satellite scenes end with the context.

    Args:
        jobs: Jobs of files; ignored if an area is given.
        arguments: Request to catalogues; None for files.
        expected: As for `SatelliteScenes`.
        options: As for `SatelliteScenes`.
        plan: Function that returns the jobs of scenes, which are given as files by modality.
        command: As for `SatelliteScenes`.
        taken: As for `SatelliteScenes`.

    Raises:
        ConfigError: See `SatelliteScenes`.
        DataError: See `SatelliteScenes`.
    """
    if arguments is None:
        yield OpenJobs(jobs)
        return
    with engine.kept(arguments.workers, arguments.scheduler):
        regions = SatelliteScenes(arguments, expected, options, command, taken)
        try:
            jobs = plan(regions.inputs)
            regions.attach(jobs)
            yield OpenJobs(jobs, regions)
        finally:
            for feed in chain(*regions.feeds):
                feed.close()


class SatelliteScenes:
    """The regions of an area as scenes of a run.

    Args:
        arguments: Request to catalogues.
        expected: Bands and units of the model's inputs, by modality.
        options: Options of the run.
        command: Name of the command, for messages.
        taken: Number of dates that the model expects; None for any.

    Raises:
        ConfigError: An argument is missing or not possible, or a modality cannot be read from catalogues.
        DataError: A catalogue does not answer.
    """

    def __init__(
        self,
        arguments: SatelliteArguments,
        expected: Mapping[str, Expected],
        options: Options,
        command: str,
        taken: DatesTaken | None = None,
    ) -> None:
        self.say = partial(_say, command)
        aoi, when = arguments.where_and_when()
        if options.out.exists() and not options.out.is_dir():
            raise ConfigError(f"Cannot write into {options.out}: it is a file. Give a folder.")
        options.check()
        self.periods = choose_periods(when, taken, dated=any(one.dated for one in expected.values()))
        """Range of dates for each image of a series; one range if the model takes no series."""
        names = {name: one.name for name, one in expected.items()}
        self.folder = options.out / f"{clean_id(aoi.stem)}_sources"
        """Folder of the plans and of temporary blocks, which are deleted when the maps are finished."""
        requests = [_ask(arguments, names.values(), period, first=not k) for k, period in enumerate(self.periods)]
        for number, request in enumerate(requests, start=1):
            if len(requests) > 1:  # all dates are searched before anything is read
                self.say(f"date {number} of {len(requests)}: {request.dates}")
                search_regions(request, aoi, self._folder_of(number), self.say)
        regions = [self._plan(arguments, aoi, request, number) for number, request in enumerate(requests, start=1)]
        self.feeds = [
            [self._feed(own[zone], arguments, number) for number, own in enumerate(regions, start=1)]
            for zone in _zones_of_all(regions, self.periods)
        ]
        """Feeds that produce the blocks of each region, one for each date."""
        self.inputs = [_prepare(feeds, names) for feeds in self.feeds]
        """Files of each region in the order of time, by the configuration's name of the modality."""

    def _folder_of(self, number: int) -> Path:
        """Return the folder of the plan of a date, counted from 1."""
        return self.folder if len(self.periods) == 1 else self.folder / f"date_{number}"

    def _plan(
        self, arguments: SatelliteArguments, aoi: Path, request: SourceRequest, number: int
    ) -> dict[str, MapRegion]:
        """Return the regions of a date by name."""
        folder = self._folder_of(number)
        regions = plan_regions(
            request, aoi, folder, workers=arguments.workers, scheduler=arguments.scheduler, say=self.say
        )
        return {region.name: region for region in regions}

    def _feed(self, region: MapRegion, arguments: SatelliteArguments, number: int) -> Feed:
        # The map is named after the first file.
        name = region.name if number == 1 else f"{region.name}_date_{number}"
        folder = self._folder_of(number) / region.name
        return Feed(region, folder, arguments.workers, arguments.scheduler, name)

    def attach(self, jobs: Sequence[Job]) -> None:
        """Make jobs wait for the rows of their regions."""
        for job, feeds in zip(jobs, self.feeds, strict=True):
            job.before = partial(_need, feeds)
            plans = [feed.region.fingerprint for feed in feeds]
            job.identity = {name: {"plan": plans[0] if len(plans) == 1 else plans} for name in job.inputs}
            scenes = [scene for feed in feeds for scene in feed.region.scenes.values()]
            days = _days(scenes)
            job.taken = days[0] if len(days) == 1 else None

    def describe(self, number: int) -> dict[str, str]:
        """Return the tags of a region's maps that describe the sources of the pixels; dates are separated by '; '."""
        regions = [feed.region for feed in self.feeds[number]]
        scenes = {scene.key: scene for region in regions for scene in region.scenes.values()}
        tags = {
            "scenes": "; ".join(" ".join(scene.id for scene in region.scenes.values()) for region in regions),
            "dates": ", ".join(" ".join(map(str, _days(region.scenes.values()))) for region in regions),
            "offsets_removed": " ".join(f"{one.id}={one.offset}" for one in scenes.values() if one.offset),
        }
        return tags if len(regions) == 1 else {**tags, "periods": "; ".join(map(str, self.periods))}

    def finish(self) -> None:
        """Delete the blocks, and raise a DataError that lists the scenes that could not be read, if there are any."""
        failed: dict[str, str] = {}
        for feed in chain(*self.feeds):
            failed |= feed.failed
            feed.remove()
        with suppress(OSError):  # the folder stays if it holds files of the user
            self.folder.rmdir()
        refuse_failures(failed)


def choose_periods(asked: str, taken: DatesTaken | None, *, dated: bool) -> list[DateRange]:
    """Return the range of dates of each image that a model expects.

    Args:
        asked: A range for each date, separated by commas; a single range is divided by the model's number of dates.
        taken: Number of dates that the model expects; None for any number.
        dated: Whether the model takes a series.

    Raises:
        ConfigError: The number of ranges does not fit the model.
    """
    periods = read_periods(asked)
    if not dated:
        if len(periods) > 1:
            raise ConfigError(
                f"--date lists {len(periods)} ranges, but the configuration has one date. Give one range, or set "
                "expand_temporal_dimension: true in the configuration of a series."
            )
        return periods
    if len(periods) > 1:
        if taken is not None and taken.count != len(periods):
            raise ConfigError(taken.refuse(f"--date {asked}", len(periods)))
        return periods
    if taken is None:
        first, second = periods[0].cut(2)
        raise ConfigError(
            "The model takes any number of dates: give a range for each, with commas and in the order of time, e.g. "
            f"--date {first},{second}."
        )
    return periods[0].cut(taken.count)


def _ask(arguments: SatelliteArguments, modalities: Iterable[str], period: DateRange, *, first: bool) -> SourceRequest:
    """Return the request to catalogues for one date. Heights, which do not change, are requested for the first date."""
    names = list(modalities)
    return make_request(
        names if first else [name for name in names if name != "DEM"] or names,
        period,
        [str(one) for one in arguments.stac or ()],
        arguments.catalogue or (),
        arguments.collection,
        arguments.skip_scenes or (),
    )


def _zones_of_all(regions: Sequence[Mapping[str, MapRegion]], periods: Sequence[DateRange]) -> list[str]:
    """Return the names of the regions, each of which needs a scene of every date.

    Raises:
        ConfigError: A date has no scene of a region.
    """
    names = list(dict.fromkeys(name for own in regions for name in own))
    for own, period in zip(regions, periods, strict=True):
        lacking = [name for name in names if name not in own]
        if lacking:
            raise ConfigError(
                f"There is no scene of {', '.join(lacking)} from {period.first} to {period.last}, only of other dates. "
                "Widen that range of --date, or leave this part of the area out."
            )
    return names


def _prepare(feeds: Sequence[Feed], names: Mapping[str, str]) -> dict[str, tuple[Path, ...]]:
    """Write the rasters that join the blocks of a region, and return them by modality in the order of time."""
    made = [feed.prepare() for feed in feeds]
    return {name: tuple(own[modality] for own in made if modality in own) for name, modality in names.items()}


def _days(scenes: Iterable[Scene]) -> list[date]:
    """Return the days of the satellite passes, in order."""
    passes = [scene for scene in scenes if scene.modality not in STATIC]
    return sorted({moment.date() for scene in passes for moment in (scene.start, scene.end)})


def _need(feeds: Sequence[Feed], first: int, last: int) -> None:
    """Wait until rows of a region are available for all dates."""
    for feed in feeds:
        feed.need(first, last)


def _say(command: str, text: str) -> None:
    print(f"terramind {command}: {text}", file=sys.stderr, flush=True)
