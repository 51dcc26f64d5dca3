"""The work of one block: the clearest date of each chip is chosen, its scenes are read once, its files are written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.transform import Affine
from shapely import from_wkb, union_all
from shapely.geometry import MultiPoint

from terramind_plugin._version import __version__
from terramind_plugin.errors import one_line
from terramind_plugin.files import SOFTWARE, write_text
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.georeference import Grid, apply_affine
from terramind_plugin.raster.writer import parse_color, write_geotiff
from terramind_plugin.sources.datasets import SceneError
from terramind_plugin.sources.grids import Place, to_degrees
from terramind_plugin.sources.plan import DATED, ChipPlan
from terramind_plugin.sources.reading import NO_DEM, ScenePixels, read_mask, read_modality
from terramind_plugin.sources.rules import MASK
from terramind_plugin.sources.scenes import Scene

CLEAR = (2, 4, 5, 6, 7, 11)
"""Clear values of the scene classification: dark areas, vegetation, bare soil, water, unclassified, snow."""
DENSE = 0.6
"""Smallest share of chips in a rectangle that is read in one piece."""
WHOLE = 0.99
"""Share of a chip that a radar pass must show; of a pass that shows less, the next ones are tried, too."""
MOST_PASSES = 3
"""Largest number of radar passes that are tried for a chip."""
DONE = "done"
"""Folder of the records of finished chips."""


@dataclass(frozen=True)
class ChipSettings:
    """Settings that hold for all chips."""

    out: str
    """Folder of the data set."""
    modalities: tuple[str, ...]
    wanted: datetime
    """Date that is preferred where several are equally clear."""
    max_cloud: float = 0.1
    """Largest share of a chip without clear data."""
    per_place: int = 1
    """Number of dates of each place."""


@dataclass(frozen=True)
class BlockTask:
    """Chips that are read together; can be pickled."""

    name: str
    chips: tuple[ChipPlan, ...]
    hashes: tuple[str, ...]
    """Hash of all that decides on each chip."""
    scenes: Mapping[str, Scene]
    """Scenes of these chips by their key."""
    settings: ChipSettings


@dataclass
class ChipRecord:
    """What became of a chip."""

    id: str
    place: str
    split: str
    status: str
    """'written', 'cloudy' (no date is clear enough), 'uncovered' (a modality has no data there) or 'failed'."""
    reason: str = ""
    hash: str = ""
    date: str = ""
    clear_share: float | None = None
    scenes: dict[str, list[str]] = field(default_factory=dict)
    """Keys of the scenes of each modality."""
    failed_scene: str = ""


@dataclass
class _Chip:
    """A chip at work."""

    plan: ChipPlan
    record: ChipRecord
    choice: tuple[str, ...] = ()
    """Keys of the scenes of the pass that was chosen."""
    time: datetime | None = None
    parts: dict[str, tuple[ScenePixels, tuple[str, ...]]] = field(default_factory=dict)
    """Pixels of each modality, and the keys of the scenes that they were read from."""
    known: ChipRecord | None = None
    """Record of an earlier run that finished this chip. The chip still takes part in the choice of what is read
    together, so that a run that was interrupted gives the same pixels."""

    @property
    def alive(self) -> bool:
        """Return whether nothing speaks against writing the chip."""
        return self.record.status == ""

    @property
    def needed(self) -> bool:
        """Return whether its pixels are needed."""
        return self.alive and self.known is None

    def fail(self, error: SceneError) -> None:
        self.record.status, self.record.reason, self.record.failed_scene = "failed", error.reason, error.scene


def done_path(out: Path, chip: str) -> Path:
    """Return the file that records a finished chip."""
    return out / DONE / f"{chip}.json"


def chip_path(out: Path, modality: str, chip: str) -> Path:
    """Return the file of a modality of a chip."""
    return out / modality / f"{chip}.tif"


def read_record(out: Path, chip: str, own_hash: str | None = None) -> ChipRecord | None:
    """Return the record of a finished chip, or None if there is none or it is of other settings or scenes."""
    try:
        found = ChipRecord(**json.loads(done_path(out, chip).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if own_hash in (None, found.hash) else None


def chip_ids(place: str, count: int) -> list[str]:
    """Return the ids of the chips at a place, one for each date."""
    return [place] if count == 1 else [f"{place}_{number}" for number in range(count)]


def make_block(task: BlockTask) -> list[ChipRecord]:
    """Write the chips of a block and return what became of each; what is finished is not written again.

    Raises:
        DataError: A file cannot be written.
    """
    out = Path(task.settings.out)
    chips = [
        _Chip(plan, ChipRecord(name, plan.place.id, plan.split, "", hash=own), known=read_record(out, name, own))
        for plan, own in zip(task.chips, task.hashes, strict=True)
        for name in chip_ids(plan.place.id, task.settings.per_place)
    ]
    if any(chip.known is None for chip in chips):
        _choose(task, chips)
        for modality in task.settings.modalities:
            _read(task, chips, modality)
        for chip in chips:
            _finish(task, chip, out)
    return [chip.known or chip.record for chip in chips]


def plan_reads(task: BlockTask) -> tuple[int, list[tuple[Scene, tuple[str, ...], Grid]]]:
    """Return how many chips of a block have a date, and what is read for them: scene, names of its files, grid.

    The scene classification is read, since it decides on both.
    """
    chips = [
        _Chip(plan, ChipRecord(name, plan.place.id, plan.split, ""))
        for plan in task.chips
        for name in chip_ids(plan.place.id, task.settings.per_place)
    ]
    reads: list[tuple[Scene, tuple[str, ...], Grid]] = []
    _choose(task, chips)
    if "S2L2A" in task.settings.modalities:
        for keys, members in _by_pass(task, {chip.plan.place.id: chip for chip in chips}.values()).items():
            for grid, _ in _rectangles(members, coarse=True):
                reads += [(scene, (MASK,), grid) for scene in _needed_scenes(task, keys, grid, "S2L2A")]
    waiting = [chip for chip in chips if chip.alive and chip.time is not None]
    for modality in task.settings.modalities:
        groups: dict[tuple[str, ...], list[_Chip]] = {}
        for chip in waiting:
            for keys in _options(task, chip, modality)[:1]:
                groups.setdefault(keys, []).append(chip)
        bands = MODALITIES[modality].band_names
        for keys, members in groups.items():
            for grid, _ in _rectangles(members):
                reads += [(scene, bands, grid) for scene in _needed_scenes(task, keys, grid, modality)]
    return len(waiting), reads


def _needed_scenes(task: BlockTask, keys: Sequence[str], grid: Grid, modality: str) -> list[Scene]:
    """Return the scenes of a pass that a grid is read from: the first ones that show all of it together."""
    scenes = [task.scenes[key] for key in keys]
    if modality == "DEM":
        return scenes
    if modality == "S2L2A":
        try:
            origin = read_mask(grid, scenes).origin
        except SceneError:
            return scenes
        return scenes[: int(origin.max(initial=1))] if origin.all() else scenes
    ground = _outline(grid)
    for number in range(1, len(scenes)):
        if union_all(from_wkb([scene.outline for scene in scenes[:number]])).covers(ground):
            return scenes[:number]
    return scenes


def _outline(grid: Grid) -> Any:
    """Return the footprint of a grid in longitude and latitude."""
    x, y = apply_affine(grid.transform, np.array([0, grid.width] * 2), np.array([0, 0, grid.height, grid.height]))
    longitudes, latitudes = to_degrees(grid.crs.to_wkt(), x, y)
    return MultiPoint(np.column_stack([longitudes, latitudes])).convex_hull


def _by_pass(task: BlockTask, chips: Iterable[_Chip]) -> dict[tuple[str, ...], list[_Chip]]:
    """Return the chips that each pass of Sentinel-2 may show."""
    found: dict[tuple[str, ...], list[_Chip]] = {}
    for chip in chips:
        for keys in passes_of(chip.plan, task.scenes, "S2L2A"):
            found.setdefault(keys, []).append(chip)
    return found


def passes_of(chip: ChipPlan, scenes: Mapping[str, Scene], modality: str) -> list[tuple[str, ...]]:
    """Return the passes of a satellite over a chip, as the keys of their scenes in the order of preference.

    The scenes of a pass have one date by the sun, one platform and one relative orbit.
    """
    found: dict[tuple[Any, ...], list[str]] = {}
    for key in chip.scenes:
        scene = scenes[key]
        if scene.modality == modality:
            found.setdefault((scene.day(chip.place.meridian), scene.orbit, scene.platform), []).append(key)
    return [tuple(keys) for keys in found.values()]


def _choose(task: BlockTask, chips: Sequence[_Chip]) -> None:
    """Choose the pass that decides on the date of each chip."""
    settings = task.settings
    leading = next((one for one in DATED if one in settings.modalities), None)
    if leading is None:
        for chip in chips:
            chip.time = settings.wanted
        return
    clear = _measure_clear(task, chips) if leading == "S2L2A" else {}
    by_place: dict[str, list[_Chip]] = {}
    for chip in chips:
        by_place.setdefault(chip.plan.place.id, []).append(chip)
    for place, members in by_place.items():
        found = passes_of(members[0].plan, task.scenes, leading)
        order = sorted(found, key=lambda keys: _preference(task, leading, keys, clear.get((place, keys))))
        best = order[: len(members)]
        best.sort(key=lambda keys: (_time(task, keys), keys))
        for chip, keys in zip(members, best, strict=False):
            if not chip.alive:
                continue
            chip.choice, chip.time = keys, _time(task, keys)
            share = clear.get((place, keys))
            chip.record.clear_share = None if share is None else round(share, 4)
            if share is not None and share < 1 - settings.max_cloud:
                chip.record.status = "cloudy"
                chip.record.reason = f"at most {share:.0%} of it are clear on one date"
        for chip in members[len(best) :]:
            if chip.alive:
                chip.record.status, chip.record.reason = "uncovered", f"there are {len(best)} dates at this place"


def _preference(task: BlockTask, modality: str, keys: tuple[str, ...], clear: float | None) -> tuple[Any, ...]:
    """Return a key that sorts passes: the clearest first, then the nearest to the wanted date."""
    clouds = [task.scenes[key].cloud for key in keys]
    known = [share for share in clouds if share is not None]
    cloudy = -clear if clear is not None else float(np.mean(known)) if known and modality == "S2L1C" else 0.0
    return cloudy, abs(_time(task, keys) - task.settings.wanted), keys


def _time(task: BlockTask, keys: Iterable[str]) -> datetime:
    return min(task.scenes[key].start for key in keys)


def _measure_clear(task: BlockTask, chips: Sequence[_Chip]) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return the share of clear pixels of each place for each pass of Sentinel-2."""
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    wanted = _by_pass(task, {chip.plan.place.id: chip for chip in chips}.values())
    failed: dict[str, SceneError] = {}
    for keys, members in wanted.items():
        for grid, group in _rectangles(members, coarse=True):
            try:
                _raise_known(keys, failed)
                mask = np.isin(read_mask(grid, [task.scenes[key] for key in keys]).values[0], CLEAR)
            except SceneError as error:
                failed[error.scene] = error
                for chip, *_ in group:
                    for other in chips:
                        if other.plan is chip.plan and other.alive:
                            other.fail(error)
                continue
            for chip, row, column, height, width in group:
                part = mask[row : row + height, column : column + width]
                found[chip.plan.place.id, keys] = float(part.mean())
    return found


def _raise_known(keys: Iterable[str], failed: Mapping[str, SceneError]) -> None:
    """Raise the error of a scene that has failed in this block before."""
    for key in keys:
        if key in failed:
            raise failed[key]


def _read(task: BlockTask, chips: Sequence[_Chip], modality: str) -> None:
    """Read a modality of all chips that have a date."""
    radar = modality == "S1RTC"
    if not any(chip.needed for chip in chips):
        return
    waiting = [chip for chip in chips if chip.time is not None and chip.record.status in ("", "failed")]
    failed: dict[str, SceneError] = {}
    for attempt in range(MOST_PASSES if radar else 1):
        groups: dict[tuple[str, ...], list[_Chip]] = {}
        for chip in waiting:
            options = _options(task, chip, modality)
            if attempt < len(options):
                groups.setdefault(options[attempt], []).append(chip)
        for keys, members in groups.items():
            for grid, group in _rectangles(members):
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
    group: Sequence[tuple[_Chip, int, int, int, int]],
    failed: dict[str, SceneError],
) -> None:
    """Read a modality of chips that lie in one rectangle; what cannot be read costs these chips alone."""
    try:
        _raise_known(keys, failed)
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


def _options(task: BlockTask, chip: _Chip, modality: str) -> list[tuple[str, ...]]:
    """Return the passes, or tiles, that a modality of a chip may be read from, the preferred one first."""
    assert chip.time is not None
    own = chip.time
    leading = next((one for one in DATED if one in task.settings.modalities), None)
    if modality == leading:
        return [chip.choice]
    if modality == "DEM":
        return [tuple(key for key in chip.plan.scenes if task.scenes[key].modality == "DEM")]
    if modality == "LULC":
        years: dict[tuple[datetime, datetime], list[str]] = {}
        for key in chip.plan.scenes:
            scene = task.scenes[key]
            if scene.modality == "LULC":
                years.setdefault((scene.start, scene.end), []).append(key)
        order = sorted(years, key=lambda year: (max(year[0] - own, own - year[1]), year))
        return [tuple(years[year]) for year in order[:1]]
    found = passes_of(chip.plan, task.scenes, modality)
    found.sort(key=lambda keys: (abs(_time(task, keys) - own), keys))
    if modality == "S2L1C":  # the same pass as that of S2L2A, or none
        found = [keys for keys in found if abs((_time(task, keys) - own).total_seconds()) < 3600][:1]
    return found


def _is_covered(chip: _Chip, modality: str) -> bool:
    part = chip.parts.get(modality)
    return part is not None and bool(part[0].valid.mean() >= WHOLE)


def _check_cover(task: BlockTask, chip: _Chip, modality: str) -> None:
    """Mark a chip of which a modality shows too little."""
    part = chip.parts.get(modality)
    share = 0.0 if part is None else float(part[0].valid.mean())
    least = 1 - task.settings.max_cloud
    if share < least:
        chip.record.status = "uncovered"
        chip.record.reason = f"{modality} shows {share:.0%} of it, {least:.0%} are asked for"


def _rectangles(
    chips: Sequence[_Chip], *, coarse: bool = False
) -> Iterator[tuple[Grid, list[tuple[_Chip, int, int, int, int]]]]:
    """Yield grids to read at once, each with the chips in it and their row, column, height and width there.

    Args:
        chips: Chips that are read from the same scenes.
        coarse: Take pixels of twice the size where that divides all chips, as the scene classification has them.
    """
    groups: dict[tuple[Any, ...], list[_Chip]] = {}
    for chip in chips:
        groups.setdefault(_lattice(chip.plan.place), []).append(chip)
    for members in groups.values():
        places = [chip.plan.place for chip in members]
        left, top = min(one.left for one in places), max(one.top for one in places)
        right, bottom = max(one.bounds[2] for one in places), min(one.bounds[1] for one in places)
        first = places[0]
        area = sum({one.id: one.width * one.height for one in places}.values())
        whole = (right - left) / first.pixel_width * ((top - bottom) / first.pixel_height)
        if area >= DENSE * whole:
            parts = [(left, top, right, bottom, members)]
        else:
            parts = [(*_corners(one.plan.place), [one]) for one in members]
        for x, y, end, low, own in parts:
            factor = 2 if coarse and all(_halves(one.plan.place) for one in own) else 1
            wide, tall = first.pixel_width * factor, first.pixel_height * factor
            grid = Grid(
                round((y - low) / tall), round((end - x) / wide), first.grid.crs, Affine(wide, 0, x, 0, -tall, y)
            )
            yield (
                grid,
                [
                    (
                        one,
                        round((y - one.plan.place.top) / tall),
                        round((one.plan.place.left - x) / wide),
                        one.plan.place.height // factor,
                        one.plan.place.width // factor,
                    )
                    for one in own
                ],
            )


def _corners(place: Place) -> tuple[float, float, float, float]:
    left, bottom, right, top = place.bounds
    return left, top, right, bottom


def _lattice(place: Place) -> tuple[Any, ...]:
    """Return CRS, pixel size and phase of a chip's pixels."""
    phases = (place.left / place.pixel_width % 1, place.top / place.pixel_height % 1)
    return place.crs, place.pixel_width, place.pixel_height, *(round(one, 6) % 1 for one in phases)


def _halves(place: Place) -> bool:
    """Return whether a chip of 10 m pixels is made of whole 20 m pixels of Sentinel-2."""
    return (
        place.pixel_width == place.pixel_height == 10
        and place.crs.startswith("EPSG:32")
        and not any(one % 20 for one in (place.left, place.top, place.width * 10, place.height * 10))
    )


def _finish(task: BlockTask, chip: _Chip, out: Path) -> None:
    """Write the files of a chip, and last the record that it is finished."""
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


def _write(task: BlockTask, chip: _Chip, modality: str, pixels: ScenePixels, used: Sequence[str], out: Path) -> None:
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
    """Return the tags of a file that say where its pixels come from."""
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
