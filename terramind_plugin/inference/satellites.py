"""Scenes from satellite catalogues in place of files: a region for each UTM zone of an area, made while it is read."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from terramind_plugin.errors import ConfigError
from terramind_plugin.inference.job import Job
from terramind_plugin.inference.options import Options, SatelliteArguments
from terramind_plugin.raster.reader import Expected
from terramind_plugin.sources import engine
from terramind_plugin.sources.area import clean_id
from terramind_plugin.sources.mosaic import Feed, refuse_failures
from terramind_plugin.sources.plan import make_request
from terramind_plugin.sources.regions import plan_regions


@contextmanager
def open_satellites(
    arguments: SatelliteArguments, expected: Mapping[str, Expected], options: Options
) -> Iterator[SatelliteScenes]:
    """Give the scenes of an area; the end of the block ends the workers. Arguments as in `SatelliteScenes`."""
    with engine.kept(arguments.workers, arguments.scheduler):
        scenes = SatelliteScenes(arguments, expected, options)
        try:
            yield scenes
        finally:
            for feed in scenes.feeds:
                feed.close()


class SatelliteScenes:
    """The regions of an area as scenes of a run.

    Args:
        arguments: What is asked of catalogues.
        expected: What the inputs of the model have to hold, by modality.
        options: How to go through the regions.

    Raises:
        ConfigError: An argument is missing or not possible, or a modality is not read from catalogues.
        DataError: A catalogue does not answer.
    """

    def __init__(self, arguments: SatelliteArguments, expected: Mapping[str, Expected], options: Options) -> None:
        aoi, date = arguments.where_and_when()
        if options.out.exists() and not options.out.is_dir():
            raise ConfigError(f"Cannot write into {options.out}: it is a file. Give a folder.")
        options.check()
        names = {name: one.name for name, one in expected.items()}
        request = make_request(
            names.values(),
            date,
            [str(one) for one in arguments.stac or ()],
            arguments.catalogue or (),
            arguments.collection,
            arguments.skip_scenes or (),
        )
        self.folder = options.out / f"{clean_id(aoi.stem)}_sources"
        """Folder of the plan and of the blocks that are not needed any more when the maps are finished."""
        regions = plan_regions(
            request,
            aoi,
            self.folder,
            workers=arguments.workers,
            scheduler=arguments.scheduler,
            say=_say,
        )
        self.feeds = [
            Feed(region, self.folder / region.name, arguments.workers, arguments.scheduler) for region in regions
        ]
        self.inputs = [self._prepare(feed, names) for feed in self.feeds]
        """Files of each region by the name of the modality in the configuration."""

    def _prepare(self, feed: Feed, names: Mapping[str, str]) -> dict[str, Path]:
        paths = feed.prepare()
        return {name: paths[modality] for name, modality in names.items()}

    def attach(self, jobs: Sequence[Job]) -> None:
        """Let jobs wait for the rows of their regions."""
        for job, feed in zip(jobs, self.feeds, strict=True):
            job.before = feed.need
            job.identity = {name: {"plan": feed.region.fingerprint} for name in job.inputs}

    def describe(self, number: int) -> dict[str, str]:
        """Return the tags of a region's maps that say where its pixels come from."""
        scenes = self.feeds[number].region.scenes.values()
        return {
            "scenes": " ".join(scene.id for scene in scenes),
            "offsets_removed": " ".join(f"{scene.id}={scene.offset}" for scene in scenes if scene.offset),
        }

    def finish(self) -> None:
        """Delete the blocks, and raise a DataError that lists scenes which could not be read, if there are any."""
        failed: dict[str, str] = {}
        for feed in self.feeds:
            failed |= feed.failed
            feed.remove()
        with suppress(OSError):  # what a user has put there stays
            self.folder.rmdir()
        refuse_failures(failed)


def _say(text: str) -> None:
    print(f"terramind map: {text}", file=sys.stderr, flush=True)
