"""The command `chips`; it imports heavy packages only when it runs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from terramind_plugin.errors import counted
from terramind_plugin.raster.paths import RemotePath


@dataclass(frozen=True)
class CatalogueArguments:
    """Satellite catalogues, and the request to them.

    Args:
        stac: STAC API, catalog.json, items.json or items.parquet; MODALITY=ADDRESS for a single modality.
        date: Day or range of days, e.g. 2023-05-01/2023-09-30.
        modalities: Modalities, out of S2L2A, S2L1C, S1RTC, DEM, LULC.
        catalogue: Rules for names of assets and offsets: planetary_computer, earth_search, cdse, or a YAML file
            (default: chosen by the address).
        collection: Collection of a modality, if it is not the usual one; repeatable.
        skip_scenes: Ids of scenes that are not used.
        workers: Number of processes that read scenes.
        scheduler: Address or file of a running dask scheduler.
    """

    stac: list[RemotePath | Path]
    date: str
    modalities: list[str]
    catalogue: list[str] | None = None
    collection: dict[str, str] | None = None
    skip_scenes: list[str] | None = None
    workers: int = 1
    scheduler: str | None = None


@dataclass(frozen=True)
class PlaceArguments:
    """Positions of the chips, and the choice of those that are written.

    Args:
        aoi: GeoJSON of the area, in longitude and latitude.
        labels: Folder of label rasters, whose grids the chips get, or a GeoJSON that is rasterised.
        label_field: Property of the GeoJSON that holds the class.
        points: GeoJSON or table of points; each point gets a chip around it.
        grid: Grid of the chips; majortom gives the chips of TerraMesh.
        size: Height and width of a chip in pixels (default: 256; 264 with majortom; that of label rasters).
        max_cloud: Maximum share of cloud, shadow and missing data in a chip.
        per_place: Number of dates for each place.
    """

    aoi: Path | None = None
    labels: Path | None = None
    label_field: str | None = None
    points: Path | None = None
    grid: Literal["utm", "labels", "majortom"] | None = None
    size: int | None = None
    max_cloud: float = 0.1
    per_place: int = 1


def run_chips(
    *,
    source: CatalogueArguments,
    places: PlaceArguments,
    out: Path,
    model: str = "terramind_sim_nano",
    plan_only: bool = False,
) -> None:
    """Make co-registered training chips from satellite catalogues.

    The command writes a folder for each modality, labels, split lists and config.yaml for terramind fit. Run the same
    command again to resume an interrupted run.

    Args:
        source: Satellite catalogues, and the request to them.
        places: Positions of the chips, and the choice of those that are written.
        out: Folder to write to.
        model: Backbone of config.yaml.
        plan_only: Only write plan.parquet, and print the numbers of chips, scenes and bytes.
    """
    from terramind_plugin.sources import chips
    from terramind_plugin.sources.plan import make_request
    from terramind_plugin.sources.request import ChipRequest

    asked = make_request(
        source.modalities,
        source.date,
        [str(one) for one in source.stac],
        source.catalogue or (),
        source.collection,
        source.skip_scenes or (),
    )
    request = ChipRequest(asked, out, **vars(places), model=model)
    plan = chips.plan_chips(request, _say)
    for note in plan.notes:
        _say(note)
    splits = ", ".join(f"{sum(one.split == name for one in plan.chips)} {name}" for name in ("train", "val", "test"))
    total = len(plan.chips) * places.per_place
    print(f"{counted(total, 'chip')} ({splits}) from {counted(len(plan.scenes), 'scene')} in {out / 'plan.parquet'}")
    if plan_only:
        _print_volume(chips.estimate_volume(request, plan))
    else:
        _write(request, plan, source)


def _say(text: str) -> None:
    print(f"terramind chips: {text}", file=sys.stderr, flush=True)


def _print_volume(volume: Any) -> None:  # a Volume; jsonargparse would import its module for --help
    """Print the number of chips with a clear date, and the number of bytes to read."""
    about = "" if volume.exact else "about "
    print(f"{about}{volume.chips:.0f} of them have a clear date; {about}{volume.bytes / 2**20:.1f} MiB to read")
    for scene, reason in volume.unreadable.items():
        _say(f"{scene} cannot be read: {reason}.")


def _write(request: Any, plan: Any, source: CatalogueArguments) -> None:  # a ChipRequest and a SourcePlan
    """Write the chips of a plan with a progress bar, and print a summary and the next commands."""
    from rich.progress import Progress

    from terramind_plugin.sources import chips, outcome

    with Progress() as progress:
        bar = progress.add_task("Reading blocks", total=None)
        records = chips.write_chips(
            request,
            plan,
            workers=source.workers,
            scheduler=source.scheduler,
            on_block=lambda done, blocks: progress.update(bar, completed=done, total=blocks),
        )
    for line in outcome.summarise_chips(request, records):
        print(line)
    recipe = request.out / "config.yaml"
    if recipe.is_file():
        print(f"terramind check -c {recipe}; terramind fit -c {recipe}")
    else:
        _say("no config.yaml: it needs labels (--labels, or LULC among --modalities) and chips of all three splits.")
    outcome.report_failures(records)
