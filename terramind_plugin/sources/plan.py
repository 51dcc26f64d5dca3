"""The plan of chips: the position and split of each chip, and the scenes that may show it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from terramind_plugin._version import __version__
from terramind_plugin.errors import ConfigError, DataError, counted, one_line
from terramind_plugin.sources.area import DateRange
from terramind_plugin.sources.credentials import check_keys
from terramind_plugin.sources.grids import Place, outlines
from terramind_plugin.sources.rules import CollectionRule, catalogue_of, choose_rules, read_modalities, read_rules
from terramind_plugin.sources.scenes import Scene, read_time
from terramind_plugin.sources.search import Catalogue, find_scenes
from terramind_plugin.system.files import hash_content, write_bytes

READING_VERSION = 2
"""Version of the pixels of a plan: raise it when the same plan gives other pixels."""
BESIDE = 0.005
"""Margin in degrees around a chip in which DEM tiles are searched: a few of their pixels, even of wide pixels."""
DATED = ("S2L2A", "S2L1C", "S1RTC")
"""Modalities whose scenes have a date. The first of them in a request determines the date of a chip."""


@dataclass(frozen=True)
class SourceRequest:
    """Request to catalogues."""

    modalities: tuple[str, ...]
    dates: DateRange
    sources: Mapping[str, str]
    """Address of the catalogue of each modality."""
    catalogues: Mapping[str, str | None]
    """Name of the rules of each modality's catalogue; None if the address determines them."""
    collections: Mapping[str, str] = field(default_factory=dict)
    """Collection of a modality, if it is not the first one of the catalogue."""
    skipped: frozenset[str] = frozenset()
    """Ids of scenes that are not used."""

    def describe(self) -> dict[str, Any]:
        """Return what is asked, as JSON holds it."""
        return {
            "modalities": list(self.modalities),
            "date": str(self.dates),
            "stac": dict(self.sources),
            "catalogue": dict(self.catalogues),
            "collection": dict(self.collections),
            "skip_scenes": sorted(self.skipped),
        }

    def rules(self, modality: str) -> list[CollectionRule]:
        """Return the rows of the table for a modality's catalogue.

        Raises:
            ConfigError: There is no such catalogue, or it lacks the collection.
        """
        address = self.sources[modality]
        rules = list(read_rules(self.catalogues[modality] or catalogue_of(address)))
        wanted = self.collections.get(modality)
        if wanted is None:
            return rules
        found = [rule for rule in rules if rule.collection == wanted or rule.modality != modality]
        if not any(rule.collection == wanted for rule in found):
            known = ", ".join(sorted({rule.collection for rule in rules if rule.modality == modality}))
            raise ConfigError(f"Collection {wanted} is not known for {modality}: known are {known or 'none'}.")
        return found


@dataclass(frozen=True)
class ChipPlan:
    """One row of the plan."""

    place: Place
    split: str
    scenes: tuple[str, ...]
    """Keys of the scenes that may show the chip, the preferred ones of each date first."""


@dataclass
class SourcePlan:
    """Chips, and the scenes from which they may be read."""

    chips: list[ChipPlan]
    scenes: dict[str, Scene]
    """Scenes by key."""
    notes: list[str] = field(default_factory=list)
    """Sentences on what was left out and why."""

    def blocks(self) -> dict[str, list[ChipPlan]]:
        """Return the chips of each block. Neighbouring blocks come close to each other."""
        found: dict[str, list[ChipPlan]] = {}
        for chip in self.chips:
            found.setdefault(chip.place.block, []).append(chip)
        return dict(sorted(found.items(), key=lambda pair: _order(pair[1][0].place)))


def _order(place: Place) -> tuple[str, int, str]:
    """Return a key that sorts positions along the Morton curve."""
    column, row = (int(value // (10240 * place.pixel_width / 10)) + 2**20 for value in (place.left, place.top))
    code = sum(((column >> bit & 1) << 2 * bit) | ((row >> bit & 1) << (2 * bit + 1)) for bit in range(22))
    return place.crs, code, place.block


def make_request(
    modalities: Iterable[str],
    dates: str | DateRange,
    sources: Sequence[str],
    catalogues: Sequence[str] = (),
    collections: Mapping[str, str] | None = None,
    skipped: Iterable[str] = (),
) -> SourceRequest:
    """Return a request made from the arguments that users type.

    Args:
        modalities: Names of modalities.
        dates: Day or range of days.
        sources: Addresses; 'MODALITY=ADDRESS' for one modality, one without a name for all others.
        catalogues: Names of catalogues or YAMLs of rules, also with 'MODALITY='.
        collections: Collection by modality.
        skipped: Ids of scenes that are not used.

    Raises:
        ConfigError: An argument is unknown, missing, or not possible.
    """
    names = read_modalities(modalities)
    range_ = dates if isinstance(dates, DateRange) else DateRange.read(dates)
    own, common = _read_pairs("--stac", sources, names)
    rules, rule = _read_pairs("--catalogue", catalogues, names)
    missing = [name for name in names if name not in own]
    if missing and common is None:
        raise ConfigError(f"No source for {', '.join(missing)}: give --stac URL, or --stac {missing[0]}=URL.")
    request = SourceRequest(
        names,
        range_,
        {name: own.get(name, common or "") for name in names},
        {name: rules.get(name, rule) for name in names},
        {read_modalities([name])[0]: collection for name, collection in (collections or {}).items()},
        frozenset(skipped),
    )
    for name in names:
        if any(one.modality == name for one in request.rules(name)) is False:
            choose_rules(request.rules(name), name, None)
        check_keys(name, [request.sources[name]])
    return request


def _read_pairs(option: str, texts: Sequence[str], modalities: Sequence[str]) -> tuple[dict[str, str], str | None]:
    """Return the values for single modalities, and the value for all others."""
    own: dict[str, str] = {}
    common: str | None = None
    for text in texts:
        name, equals, value = text.partition("=")
        if equals and value and name.isidentifier():
            (modality,) = read_modalities([name])
            if modality in own:
                raise ConfigError(f"{option} names {modality} twice.")
            if modality in modalities:
                own[modality] = value
        elif common is None:
            common = text
        else:
            raise ConfigError(
                f"{option} has two values for all modalities, {common} and {text}: write MODALITY={text}."
            )
    return own, common


def plan_scenes(
    request: SourceRequest,
    places: Sequence[Place],
    splits: Sequence[str] = (),
    *,
    prefer_whole: bool = True,
    say: Any = lambda text: None,
) -> SourcePlan:
    """Return the plan for chips at given places. The same arguments and catalogue give the same plan.

    Args:
        request: The request.
        places: Positions of the chips.
        splits: Split of each chip; empty for 'train'.
        prefer_whole: Prefer scenes that show the whole chip. False keeps one order of scenes everywhere, as a map
            without seams needs.
        say: Called with a text before each part of the work.

    Raises:
        ConfigError: A catalogue or its scenes cannot be used.
        DataError: An API does not answer.
    """
    from shapely import union_all

    if not places:
        raise ConfigError("The area holds no chip.")
    shapes = outlines(places)
    area = union_all(shapes)
    scenes: dict[str, list[Scene]] = {}
    notes: list[str] = []
    known: dict[str, Catalogue] = {}
    for modality in request.modalities:
        address = request.sources[modality]
        say(f"searching {modality} in {address}")
        if address not in known:
            known[address] = Catalogue(address)
        wide = area.buffer(BESIDE) if modality == "DEM" else area
        found = find_scenes(known[address], request.rules(modality), modality, wide, request.dates)
        scenes[modality] = [one for one in found.scenes if one.id not in request.skipped]
        notes += [f"scene {name} of {modality} is left out: {reason}." for name, reason in found.left_out.items()]
        if not scenes[modality]:
            raise ConfigError(f"--skip_scenes leaves no scene of {modality}.")
        check_keys(modality, [asset for one in scenes[modality] for asset in one.assets.values()])
    given = list(splits) or ["train"] * len(places)
    chips, used, lacking = _assign_scenes(request, places, given, shapes, scenes, prefer_whole)
    notes += lacking
    if not chips:
        raise ConfigError(f"No chip has a scene of every modality: {' '.join(lacking)}")
    return SourcePlan(chips, used, notes)


def _assign_scenes(
    request: SourceRequest,
    places: Sequence[Place],
    splits: Sequence[str],
    shapes: Any,
    scenes: Mapping[str, Sequence[Scene]],
    prefer_whole: bool,
) -> tuple[list[ChipPlan], dict[str, Scene], list[str]]:
    """Return the chips that have scenes of every modality, the scenes, and notes on the other chips."""
    from shapely import STRtree, buffer, contains_properly, from_wkb, prepare

    own: list[list[Scene]] = [[] for _ in places]
    lacking: dict[str, int] = {}
    kept = np.ones(len(places), bool)
    for modality in request.modalities:
        footprints = from_wkb(np.array([one.outline for one in scenes[modality]], object))
        prepare(footprints)
        # Interpolation at a chip's edge needs heights beyond it, which may lie in the next tile.
        ground = buffer(shapes, BESIDE) if modality == "DEM" else shapes
        rows, columns = STRtree(footprints).query(ground, predicate="intersects")
        whole = contains_properly(footprints[columns], shapes[rows])
        near: dict[int, list[tuple[Any, Scene]]] = {}
        for row, column, all_of_it in zip(rows.tolist(), columns.tolist(), whole.tolist(), strict=True):
            scene = scenes[modality][column]
            near.setdefault(row, []).append((_rank(places[row], scene, all_of_it or not prefer_whole), scene))
        for row, found in near.items():
            own[row] += [scene for _, scene in sorted(found, key=lambda pair: pair[0])]
        if modality != "DEM":  # Copernicus DEM has no tiles of the open sea
            there = np.zeros(len(places), bool)
            there[list(near)] = True
            lacking[modality] = int((~there).sum())
            kept &= there
        elif len(near) < len(places):
            lacking["DEM"] = len(places) - len(near)
    chips = [
        ChipPlan(place, split, tuple(scene.key for scene in found))
        for place, split, found, keep in zip(places, splits, own, kept, strict=True)
        if keep
    ]
    used = {scene.key: scene for found, keep in zip(own, kept, strict=True) if keep for scene in found}
    sea = lacking.pop("DEM", 0)
    notes = [
        f"{counted(count, 'chip', 'has/have')} no scene of {modality} and {'is' if count == 1 else 'are'} left out."
        for modality, count in lacking.items()
        if count
    ]
    if sea:
        notes.append(f"{counted(sea, 'chip', 'lies/lie')} outside all tiles of the DEM, as at sea: the height is 0.")
    return chips, dict(sorted(used.items())), notes


def _rank(place: Place, scene: Scene, whole: bool) -> tuple[Any, ...]:
    """Return a key that sorts the scenes of a chip by time, and within a pass those of the chip's UTM zone first."""
    other_zone = scene.epsg is not None and place.epsg != scene.epsg
    day = scene.day(place.meridian)
    newest = tuple(-int(part) for part in scene.baseline.split(".")) if scene.baseline else (0, 0)
    return day, scene.orbit or 0, scene.platform, other_zone, not whole, newest, scene.key


def hash_scene(scene: Scene) -> str:
    """Return a hash of everything that determines the pixels of a scene, without signatures of addresses."""
    assets = {band: address.split("?")[0] for band, address in scene.assets.items()}
    content = asdict(replace(scene, outline=b"", assets=assets))
    return hash_content(content)


def hash_chip(chip: ChipPlan, scenes: Mapping[str, str], settings: Mapping[str, Any]) -> str:
    """Return a hash of everything that determines the pixels of a chip.

    Args:
        chip: The chip.
        scenes: Hash of each scene by its key.
        settings: Settings that determine the pixels.
    """
    content = [READING_VERSION, asdict(chip.place), [scenes[key] for key in chip.scenes], dict(settings)]
    return hash_content(content)


def write_plan(folder: Path, plan: SourcePlan) -> None:
    """Write plan.parquet, a row for each chip, and scenes.parquet, a row for each scene, into a folder."""
    rows = [
        {
            "id": chip.place.id,
            "crs": chip.place.crs,
            "left": chip.place.left,
            "top": chip.place.top,
            "width": chip.place.width,
            "height": chip.place.height,
            "pixel_width": chip.place.pixel_width,
            "pixel_height": chip.place.pixel_height,
            "block": chip.place.block,
            "split": chip.split,
            "scenes": list(chip.scenes),
            "offsets": [plan.scenes[key].offset for key in chip.scenes],
            "group": chip.place.group,
            "label": chip.place.label,
            "label_row": chip.place.label_row,
            "label_column": chip.place.label_column,
        }
        for chip in plan.chips
    ]
    scenes = [
        asdict(scene)
        | {"assets": json.dumps(dict(scene.assets)), "start": scene.start.isoformat(), "end": scene.end.isoformat()}
        for scene in plan.scenes.values()
    ]
    write_rows_as_parquet(folder / "scenes.parquet", scenes)
    write_rows_as_parquet(folder / "plan.parquet", rows, {"notes": json.dumps(plan.notes), "version": __version__})


def read_plan(folder: Path) -> SourcePlan:
    """Return the plan in a folder.

    Raises:
        DataError: A file is missing or damaged.
    """
    rows, meta = read_rows(folder / "plan.parquet")
    scenes, _ = read_rows(folder / "scenes.parquet")
    try:
        chips = [
            ChipPlan(
                Place(**{name: row[name] for name in Place.__dataclass_fields__}), row["split"], tuple(row["scenes"])
            )
            for row in rows
        ]
        found = [
            Scene(
                **row
                | {"assets": json.loads(row["assets"]), "start": read_time(row["start"]), "end": read_time(row["end"])}
            )
            for row in scenes
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / 'plan.parquet'} has another version ({one_line(error)}). Delete it.") from None
    return SourcePlan(chips, {scene.key: scene for scene in found}, json.loads(meta.get("notes", "[]")))


def write_rows_as_parquet(path: Path, rows: Sequence[Mapping[str, Any]], meta: Mapping[str, str] | None = None) -> None:
    """Write rows as a Parquet file that appears only when it is complete. The same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([dict(row) for row in rows]).replace_schema_metadata(dict(meta or {}))
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    write_bytes(path, memoryview(buffer.getvalue()))


def read_rows(path: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the rows of a Parquet file and its metadata.

    Raises:
        DataError: The file is missing or damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {one_line(error)}. Delete it to make a new plan.") from None
    meta = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    return table.to_pylist(), meta
