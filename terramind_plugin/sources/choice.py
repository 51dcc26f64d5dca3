"""Choice of the scenes for each chip of a block, and of the chips that are read together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from rasterio.transform import Affine

from terramind_plugin.raster.georeference import Grid
from terramind_plugin.sources.datasets import SceneError
from terramind_plugin.sources.grids import Place
from terramind_plugin.sources.plan import DATED, ChipPlan
from terramind_plugin.sources.reading import ScenePixels, read_mask
from terramind_plugin.sources.scenes import Scene, group_passes, is_same_pass, nearest_years

CLEAR = (2, 4, 5, 6, 7, 11)
"""Classes of the scene classification that count as clear: dark, vegetation, bare soil, water, unclassified, snow."""
DENSE = 0.6
"""Minimum share of a rectangle that chips must cover for it to be read in one piece."""


@dataclass(frozen=True)
class ChipSettings:
    """Settings that hold for all chips."""

    out: str
    """Folder of the data set."""
    modalities: tuple[str, ...]
    wanted: datetime
    """Preferred date if several are equally clear."""
    max_cloud: float = 0.1
    """Maximum share of a chip without clear data."""
    per_place: int = 1
    """Number of dates for each place."""


@dataclass(frozen=True)
class BlockTask:
    """Chips that are read together; can be pickled."""

    name: str
    chips: tuple[ChipPlan, ...]
    hashes: tuple[str, ...]
    """Hash of everything that determines each chip."""
    scenes: Mapping[str, Scene]
    """Scenes of these chips by key."""
    settings: ChipSettings


@dataclass
class ChipRecord:
    """Result of the work on a chip."""

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
class WorkingChip:
    """A chip that is being made."""

    plan: ChipPlan
    record: ChipRecord
    choice: tuple[str, ...] = ()
    """Keys of the scenes of the pass that was chosen."""
    time: datetime | None = None
    parts: dict[str, tuple[ScenePixels, tuple[str, ...]]] = field(default_factory=dict)
    """Pixels of each modality, with the keys of the scenes from which they were read."""
    known: ChipRecord | None = None
    """Record of an earlier run that finished this chip. The chip still counts when rectangles are chosen, so that an
    interrupted run gives the same pixels."""

    @property
    def alive(self) -> bool:
        """Return whether the chip can still be written."""
        return self.record.status == ""

    @property
    def needed(self) -> bool:
        """Return whether the pixels of the chip are needed."""
        return self.alive and self.known is None

    def fail(self, error: SceneError) -> None:
        """Record that a scene of the chip cannot be read."""
        self.record.status, self.record.reason, self.record.failed_scene = "failed", error.reason, error.scene


def by_pass(task: BlockTask, chips: Iterable[WorkingChip]) -> dict[tuple[str, ...], list[WorkingChip]]:
    """Return the chips by the passes of Sentinel-2 that may show them."""
    found: dict[tuple[str, ...], list[WorkingChip]] = {}
    for chip in chips:
        for keys in passes_of(chip.plan, task.scenes, "S2L2A"):
            found.setdefault(keys, []).append(chip)
    return found


def chip_ids(place: str, count: int) -> list[str]:
    """Return the ids of the chips at a place, one for each date."""
    return [place] if count == 1 else [f"{place}_{number}" for number in range(count)]


def passes_of(chip: ChipPlan, scenes: Mapping[str, Scene], modality: str) -> list[tuple[str, ...]]:
    """Return the passes of a satellite over a chip, each as the keys of its scenes, in the order of preference.

    The scenes of a pass have the same solar date, platform and relative orbit.
    """
    own = [scene for key in chip.scenes if (scene := scenes[key]).modality == modality]
    return [tuple(scene.key for scene in found) for found in group_passes(own, chip.place.meridian).values()]


def choose_passes(task: BlockTask, chips: Sequence[WorkingChip]) -> None:
    """Choose the pass that determines the date of each chip."""
    settings = task.settings
    leading = next((one for one in DATED if one in settings.modalities), None)
    if leading is None:
        for chip in chips:
            chip.time = settings.wanted
        return
    clear = _measure_clear(task, chips) if leading == "S2L2A" else {}
    by_place: dict[str, list[WorkingChip]] = {}
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
                chip.record.reason = f"at most {share:.0%} of it is clear on one date"
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


def _measure_clear(task: BlockTask, chips: Sequence[WorkingChip]) -> dict[tuple[str, tuple[str, ...]], float]:
    """Return the share of clear pixels of each place for each pass of Sentinel-2."""
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    wanted = by_pass(task, {chip.plan.place.id: chip for chip in chips}.values())
    failed: dict[str, SceneError] = {}
    for keys, members in wanted.items():
        for grid, group in group_rectangles(members, coarse=True):
            try:
                raise_known(keys, failed)
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


def raise_known(keys: Iterable[str], failed: Mapping[str, SceneError]) -> None:
    """Raise the earlier error of a scene that has already failed in this block."""
    for key in keys:
        if key in failed:
            raise failed[key]


def reading_options(task: BlockTask, chip: WorkingChip, modality: str) -> list[tuple[str, ...]]:
    """Return the passes or tiles from which a modality of a chip may be read, the preferred one first."""
    assert chip.time is not None
    own = chip.time
    leading = next((one for one in DATED if one in task.settings.modalities), None)
    if modality == leading:
        return [chip.choice]
    if modality == "DEM":
        return [tuple(key for key in chip.plan.scenes if task.scenes[key].modality == "DEM")]
    if modality == "LULC":
        classes = [scene for key in chip.plan.scenes if (scene := task.scenes[key]).modality == "LULC"]
        return [tuple(scene.key for scene in year) for year in nearest_years(classes, own)[:1]]
    found = passes_of(chip.plan, task.scenes, modality)
    found.sort(key=lambda keys: (abs(_time(task, keys) - own), keys))
    if modality == "S2L1C":  # only the pass of S2L2A
        found = [keys for keys in found if is_same_pass(_time(task, keys), own)][:1]
    return found


def group_rectangles(
    chips: Sequence[WorkingChip], *, coarse: bool = False
) -> Iterator[tuple[Grid, list[tuple[WorkingChip, int, int, int, int]]]]:
    """Yield grids to read in one piece, each with its chips and their row, column, height and width in it.

    Args:
        chips: Chips that are read from the same scenes.
        coarse: Use pixels of twice the size, as in the scene classification, if that divides all chips evenly.
    """
    groups: dict[tuple[Any, ...], list[WorkingChip]] = {}
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
    """Return the CRS, the pixel size and the offset of a chip's pixels within the lattice."""
    phases = (place.left / place.pixel_width % 1, place.top / place.pixel_height % 1)
    return place.crs, place.pixel_width, place.pixel_height, *(round(one, 6) % 1 for one in phases)


def _halves(place: Place) -> bool:
    """Return whether a chip of 10 m pixels consists of whole 20 m pixels of Sentinel-2."""
    return (
        place.pixel_width == place.pixel_height == 10
        and place.crs.startswith("EPSG:32")
        and not any(one % 20 for one in (place.left, place.top, place.width * 10, place.height * 10))
    )
