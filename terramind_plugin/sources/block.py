"""The work on one block: choose the clearest date of each chip, read its scenes once, write its files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC
from pathlib import Path

import numpy as np

from terramind_plugin._version import __version__
from terramind_plugin.errors import one_line
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.raster.writer import parse_color, write_geotiff
from terramind_plugin.sources.choice import (
    BlockTask,
    ChipRecord,
    WorkingChip,
    chip_ids,
    choose_passes,
    group_rectangles,
    raise_known,
    reading_options,
)
from terramind_plugin.sources.datasets import SceneError
from terramind_plugin.sources.plan import DATED
from terramind_plugin.sources.reading import NO_DEM, ScenePixels, read_modality
from terramind_plugin.sources.scenes import Scene
from terramind_plugin.system.files import SOFTWARE, write_text

WHOLE = 0.99
"""Share of a chip that a radar pass must show. If it shows less, further passes are tried."""
MOST_PASSES = 3
"""Maximum number of radar passes that are tried for a chip."""
DONE = "done"
"""Folder of the records of finished chips."""


def done_path(out: Path, chip: str) -> Path:
    """Return the file that records a finished chip."""
    return out / DONE / f"{chip}.json"


def chip_path(out: Path, modality: str, chip: str) -> Path:
    """Return the file of a modality of a chip."""
    return out / modality / f"{chip}.tif"


def read_record(out: Path, chip: str, own_hash: str | None = None) -> ChipRecord | None:
    """Return the record of a finished chip, or None if there is none or it has other settings or scenes."""
    try:
        found = ChipRecord(**json.loads(done_path(out, chip).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if own_hash in (None, found.hash) else None


def make_block(task: BlockTask) -> list[ChipRecord]:
    """Write the chips of a block and return their records. Finished chips are not written again.

    Raises:
        DataError: A file cannot be written.
    """
    out = Path(task.settings.out)
    chips = [
        WorkingChip(plan, ChipRecord(name, plan.place.id, plan.split, "", hash=own), known=read_record(out, name, own))
        for plan, own in zip(task.chips, task.hashes, strict=True)
        for name in chip_ids(plan.place.id, task.settings.per_place)
    ]
    if any(chip.known is None for chip in chips):
        choose_passes(task, chips)
        for modality in task.settings.modalities:
            _read(task, chips, modality)
        for chip in chips:
            _finish(task, chip, out)
    return [chip.known or chip.record for chip in chips]


def _read(task: BlockTask, chips: Sequence[WorkingChip], modality: str) -> None:
    """Read a modality for all chips that have a date."""
    radar = modality == "S1RTC"
    if not any(chip.needed for chip in chips):
        return
    waiting = [chip for chip in chips if chip.time is not None and chip.record.status in ("", "failed")]
    failed: dict[str, SceneError] = {}
    for attempt in range(MOST_PASSES if radar else 1):
        groups: dict[tuple[str, ...], list[WorkingChip]] = {}
        for chip in waiting:
            options = reading_options(task, chip, modality)
            if attempt < len(options):
                groups.setdefault(options[attempt], []).append(chip)
        for keys, members in groups.items():
            for grid, group in group_rectangles(members):
                if radar or any(chip.needed for chip, *_ in group):
                    _read_group(task, modality, keys, grid, group, failed)
        waiting = [chip for chip in waiting if not _is_covered(chip, modality)]
    for chip in chips:
        if chip.needed:
            _check_cover(task, chip, modality)


def _read_group(
    task: BlockTask,
    modality: str,
    keys: tuple[str, ...],
    grid: Grid,
    group: Sequence[tuple[WorkingChip, int, int, int, int]],
    failed: dict[str, SceneError],
) -> None:
    """Read a modality for the chips in one rectangle. An error affects only these chips."""
    try:
        raise_known(keys, failed)
        pixels = read_modality(grid, modality, [task.scenes[key] for key in keys])
    except SceneError as error:
        failed[error.scene] = error
        for chip, *_ in group:
            if chip.alive:
                chip.fail(error)
        return
    for chip, row, column, height, width in group:
        part = pixels.crop(row, column, height, width)
        before = chip.parts.get(modality)
        if before is None or part.valid.mean() > before[0].valid.mean():
            chip.parts[modality] = part, keys


def _is_covered(chip: WorkingChip, modality: str) -> bool:
    part = chip.parts.get(modality)
    return part is not None and bool(part[0].valid.mean() >= WHOLE)


def _check_cover(task: BlockTask, chip: WorkingChip, modality: str) -> None:
    """Mark a chip as uncovered if a modality shows too little of it."""
    part = chip.parts.get(modality)
    share = 0.0 if part is None else float(part[0].valid.mean())
    least = 1 - task.settings.max_cloud
    if share < least:
        chip.record.status = "uncovered"
        chip.record.reason = f"{modality} shows {share:.0%} of it, at least {least:.0%} are needed"


def _finish(task: BlockTask, chip: WorkingChip, out: Path) -> None:
    """Write the files of a chip, and finally its record."""
    if chip.known is not None:
        return
    if chip.alive:
        for modality, (pixels, keys) in chip.parts.items():
            numbers = [number for number in np.unique(pixels.origin).tolist() if number]
            used = list(keys) if modality == "DEM" else [keys[number - 1] for number in numbers]
            chip.record.scenes[modality] = used
            _write(task, chip, modality, pixels, used, out)
        chip.record.status = "written"
        assert chip.time is not None
        dated = any(one in DATED for one in task.settings.modalities)
        chip.record.date = chip.time.astimezone(UTC).isoformat(timespec="seconds") if dated else ""
    if chip.record.status != "failed":
        write_text(done_path(out, chip.record.id), json.dumps(asdict(chip.record), indent=1) + "\n")


def _write(
    task: BlockTask, chip: WorkingChip, modality: str, pixels: ScenePixels, used: Sequence[str], out: Path
) -> None:
    entry = MODALITIES[modality]
    grid = chip.plan.place.grid
    scenes = [task.scenes[key] for key in used]
    colors = {i: parse_color(color) for i, color in enumerate(entry.class_colors)} if entry.class_names else None
    nodata = {"S2L2A": 0, "S2L1C": 0, "S1RTC": float("nan"), "DEM": NO_DEM}.get(modality)
    write_geotiff(
        chip_path(out, modality, chip.record.id),
        np.ascontiguousarray(pixels.values),
        crs=grid.crs,
        transform=grid.transform,
        descriptions=entry.band_names,
        units=(entry.units,) * len(entry.bands),
        nodata=nodata,
        colormap=colors,
        tags=provenance(scenes, chip.record.clear_share if modality in ("S2L2A", "S2L1C") else None),
    )


def provenance(scenes: Sequence[Scene], clear_share: float | None = None) -> dict[str, str]:
    """Return the tags of a file that describe the sources of its pixels."""
    tags = {
        "scenes": " ".join(scene.id for scene in scenes),
        "collection": " ".join(dict.fromkeys(scene.collection for scene in scenes)),
        "datetime": " ".join(scene.start.isoformat(timespec="seconds") for scene in scenes),
        "software": f"{SOFTWARE} {__version__}",
    }
    if any(scene.baseline for scene in scenes):
        tags["baseline"] = " ".join(scene.baseline or "unknown" for scene in scenes)
        tags["offset_removed"] = " ".join(str(scene.offset) for scene in scenes)
    orbits = dict.fromkeys(scene.orbit for scene in scenes if scene.orbit is not None)
    if orbits:
        tags["relative_orbit"] = " ".join(map(str, orbits))
        tags["orbit_state"] = " ".join(dict.fromkeys(one_line(scene.orbit_state) for scene in scenes))
    if clear_share is not None:
        tags["clear_share"] = f"{clear_share:.4f}"
    return tags
