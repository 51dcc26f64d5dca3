"""The command `chips`; heavy imports wait until it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from terramind_plugin.errors import counted
from terramind_plugin.raster.paths import RemotePath


def run_chips(
    *,
    stac: list[RemotePath | Path],
    date: str,
    modalities: list[str],
    out: Path,
    aoi: Path | None = None,
    catalogue: list[str] | None = None,
    collection: dict[str, str] | None = None,
    labels: Path | None = None,
    label_field: str | None = None,
    points: Path | None = None,
    grid: Literal["utm", "labels", "majortom"] | None = None,
    size: int | None = None,
    max_cloud: float = 0.1,
    per_place: int = 1,
    skip_scenes: list[str] | None = None,
    model: str = "terramind_sim_nano",
    plan_only: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
) -> None:
    """Make co-registered training chips from satellite catalogues.

    Writes a folder for each modality, labels, split lists and config.yaml for terramind fit. The same command goes on
    with an interrupted run.

    Args:
        stac: STAC API, catalog.json, items.json or items.parquet; MODALITY=ADDRESS for one modality alone.
        date: Day or range of days, e.g. 2023-05-01/2023-09-30.
        modalities: Of S2L2A, S2L1C, S1RTC, DEM, LULC.
        out: Folder to write to.
        aoi: GeoJSON of the area, in longitude and latitude.
        catalogue: planetary_computer, earth_search, cdse, or a YAML of rules, where the address does not tell.
        collection: Collection of a modality, where it is not the usual one; repeatable.
        labels: Folder of label rasters, whose grid the chips take, or a GeoJSON that is burned.
        label_field: Property of the GeoJSON that holds the class.
        points: GeoJSON or table of points; a chip around each.
        grid: Places of chips; majortom makes those of TerraMesh.
        size: Pixels per side of a chip (default: 256; 264 with majortom; those of label rasters).
        max_cloud: Largest share of a chip in cloud, in shadow or without data.
        per_place: Number of dates of each place.
        skip_scenes: Ids of scenes that are not used.
        model: Backbone of config.yaml.
        plan_only: Write plan.parquet and print chips, scenes and bytes alone.
        workers: Processes that read.
        scheduler: Address or file of a running dask scheduler.
    """
    from rich.progress import Progress

    from terramind_plugin.sources import chips, outcome
    from terramind_plugin.sources.plan import make_request
    from terramind_plugin.sources.request import ChipRequest

    source = make_request(modalities, date, [str(one) for one in stac], catalogue or (), collection, skip_scenes or ())
    request = ChipRequest(source, out, aoi, labels, label_field, points, grid, size, max_cloud, per_place, model)
    plan = chips.plan_chips(request, _say)
    for note in plan.notes:
        _say(note)
    splits = ", ".join(f"{sum(one.split == name for one in plan.chips)} {name}" for name in ("train", "val", "test"))
    total = len(plan.chips) * per_place
    print(f"{counted(total, 'chip')} ({splits}) from {counted(len(plan.scenes), 'scene')} in {out / 'plan.parquet'}")
    if plan_only:
        _print_volume(chips.estimate_volume(request, plan))
        return
    with Progress() as progress:
        bar = progress.add_task("Reading blocks", total=None)
        records = chips.write_chips(
            request,
            plan,
            workers=workers,
            scheduler=scheduler,
            on_block=lambda done, blocks: progress.update(bar, completed=done, total=blocks),
        )
    for line in outcome.summarise_chips(request, records):
        print(line)
    recipe = out / "config.yaml"
    if recipe.is_file():
        print(f"terramind check -c {recipe}; terramind fit -c {recipe}")
    else:
        _say("no config.yaml: it needs labels (--labels, or LULC among --modalities) and chips of all three splits.")
    outcome.report_failures(records)


def _say(text: str) -> None:
    print(f"terramind chips: {text}", file=sys.stderr, flush=True)


def _print_volume(volume: Any) -> None:  # a Volume; jsonargparse would import its module for --help
    """Print how many chips have a clear date, and how many bytes are read."""
    about = "" if volume.exact else "about "
    print(f"{about}{volume.chips:.0f} of them have a clear date; {about}{volume.bytes / 2**20:.1f} MiB to read")
    for scene, reason in volume.unreadable.items():
        _say(f"{scene} cannot be read: {reason}.")
