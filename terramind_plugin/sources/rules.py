"""The table of collections: the content of each catalogue's assets, and their conversion to a modality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints
from urllib.parse import urlsplit

from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.model.modalities import MODALITIES, resolve
from terramind_plugin.system.files import read_yaml

SOURCE_MODALITIES = ("S2L2A", "S2L1C", "S1RTC", "DEM", "LULC")
"""Modalities that are read from catalogues."""
MASK = "SCL"
"""Name of Sentinel-2's scene classification among the assets of a scene."""
HOSTS = {
    "planetary_computer": "planetarycomputer.microsoft.com",
    "earth_search": "earth-search.aws.element84.com",
    "cdse": "stac.dataspace.copernicus.eu",
}
"""Host of each catalogue's API."""
ESRI_TO_LULC = {0: 0, 1: 1, 2: 2, 4: 3, 5: 4, 7: 5, 8: 6, 9: 7, 10: 8, 11: 9}
"""TerraMind's class id for each id of Esri's annual land cover (nine classes)."""

Units = Literal["reflectance", "power", "metres", "esri"]
OffsetRule = Literal["baseline", "none", "earth_search_l2a"]


@dataclass(frozen=True)
class CollectionRule:
    """Rule for converting the items of one collection of a catalogue to a modality."""

    catalogue: str
    collection: str
    modality: str
    assets: Mapping[str, str]
    """Asset of each band; for S2L2A also of 'SCL'."""
    units: Units
    """'reflectance': digital numbers, 10000 for reflectance 1; 'power': linear gamma0; 'metres'; 'esri': class ids."""
    offset: OffsetRule = "none"
    """'baseline': 1000 is subtracted from processing baseline 04.00 on; 'none': nothing is subtracted;
    'earth_search_l2a': nothing is subtracted, and scenes that may or may not have the offset are left out."""
    nodata: float | None = None
    """Value of a pixel without data, whatever the file declares; None for the file's own nodata value."""
    gdal: Mapping[str, str] = field(default_factory=dict)
    """Options of GDAL for reading the files."""


_S2_BANDS = MODALITIES["S2L2A"].band_names
_L1C_BANDS = MODALITIES["S2L1C"].band_names
_EARTH_SEARCH_NAMES = {
    "B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge1", "B06": "rededge2",
    "B07": "rededge3", "B08": "nir", "B8A": "nir08", "B09": "nir09", "B10": "cirrus", "B11": "swir16", "B12": "swir22",
}  # fmt: skip
_METRES = {"B02": 10, "B03": 10, "B04": 10, "B08": 10, "B01": 60, "B09": 60, "B10": 60}
_PUBLIC = {"AWS_NO_SIGN_REQUEST": "YES", "AWS_REGION": "us-west-2"}
_CDSE_S3 = {"AWS_S3_ENDPOINT": "eodata.dataspace.copernicus.eu", "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_HTTPS": "YES"}
_SAME = {band: band for band in (*_S2_BANDS, MASK)}
_NAMED = {band: _EARTH_SEARCH_NAMES[band] for band in _S2_BANDS} | {MASK: "scl"}
_SIZED = {band: f"{band}_{_METRES.get(band, 20)}m" for band in (*_S2_BANDS, MASK)}
_VV_VH = {"VV": "vv", "VH": "vh"}

RULES = (
    CollectionRule("planetary_computer", "sentinel-2-l2a", "S2L2A", _SAME, "reflectance", "baseline", 0),
    CollectionRule("planetary_computer", "sentinel-1-rtc", "S1RTC", _VV_VH, "power", nodata=-32768),
    CollectionRule("planetary_computer", "cop-dem-glo-30", "DEM", {"DEM": "data"}, "metres"),
    CollectionRule("planetary_computer", "io-lulc-annual-v02", "LULC", {"LULC": "data"}, "esri", nodata=0),
    CollectionRule("earth_search", "sentinel-2-c1-l2a", "S2L2A", _NAMED, "reflectance", "baseline", 0, _PUBLIC),
    CollectionRule("earth_search", "sentinel-2-l2a", "S2L2A", _NAMED, "reflectance", "earth_search_l2a", 0, _PUBLIC),
    CollectionRule(
        "earth_search", "sentinel-2-l1c", "S2L1C", {band: _EARTH_SEARCH_NAMES[band] for band in _L1C_BANDS},
        "reflectance", "baseline", 0, {"AWS_REQUEST_PAYER": "requester", "AWS_REGION": "eu-central-1"},
    ),
    CollectionRule("earth_search", "cop-dem-glo-30", "DEM", {"DEM": "data"}, "metres", gdal=_PUBLIC),
    CollectionRule("cdse", "sentinel-2-l2a", "S2L2A", _SIZED, "reflectance", "baseline", 0, _CDSE_S3),
    CollectionRule(
        "cdse", "sentinel-2-l1c", "S2L1C", {band: band for band in _L1C_BANDS},
        "reflectance", "baseline", 0, _CDSE_S3,
    ),
    CollectionRule("cdse", "cop-dem-glo-30-dged-cog", "DEM", {"DEM": "data"}, "metres", gdal=_CDSE_S3),
)  # fmt: skip
"""A row for each collection and catalogue. If a catalogue has several rows for a modality, the first is the default."""

GRD = (
    "S1GRD is not read from catalogues: their Sentinel-1 GRD files hold uncalibrated amplitudes in radar geometry, "
    "which need calibration and terrain correction (SNAP, pyroSAR) before they are the model's dB. Ask for S1RTC, "
    "which is terrain-corrected gamma0."
)
"""Message that GRD is refused, with advice."""


def read_modalities(names: Iterable[str]) -> tuple[str, ...]:
    """Return the modalities to read, in the order of the names.

    Raises:
        ConfigError: A modality is unknown, named twice, or cannot be read from catalogues.
    """
    found: list[str] = []
    for name in names:
        modality = resolve(name).name
        if modality == "S1GRD":
            raise ConfigError(GRD)
        if modality not in SOURCE_MODALITIES:
            hint = " terramind generate makes it from S2L2A." if modality == "NDVI" else ""
            raise ConfigError(f"{modality} is not read from catalogues, only {', '.join(SOURCE_MODALITIES)}.{hint}")
        if modality in found:
            raise ConfigError(f"--modalities names {modality} twice.")
        found.append(modality)
    if not found:
        raise ConfigError(f"--modalities is empty: give some of {', '.join(SOURCE_MODALITIES)}.")
    return tuple(found)


def catalogue_of(address: str) -> str | None:
    """Return the catalogue that an address belongs to, or None for any other."""
    host = (urlsplit(address).hostname or "").lower()
    return next((name for name, known in HOSTS.items() if host == known), None)


def read_rules(name: str | None) -> tuple[CollectionRule, ...]:
    """Return the rows of one catalogue, or all of them.

    Args:
        name: Name of a catalogue, path of a YAML with rows of the same format, or None for the whole table.

    Raises:
        ConfigError: There is no such catalogue, or a row in the file is wrong.
    """
    if name is None:
        return RULES
    if name in HOSTS:
        return tuple(rule for rule in RULES if rule.catalogue == name)
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"There is no catalogue '{name}'.{suggest(name, HOSTS)} Known: {', '.join(HOSTS)}; for another one, write "
            "its rules to a YAML: --catalogue rules.yaml."
        )
    rows = read_yaml(path)
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{path} must hold a list of collections, each with {', '.join(_required())}.")
    return tuple(_read_row(path, number, row) for number, row in enumerate(rows, start=1))


def _required() -> list[str]:
    return ["collection", "modality", "assets", "units"]


def _read_row(path: Path, number: int, row: Any) -> CollectionRule:
    """Return a row of a YAML; the name of its catalogue is the file."""
    where = f"{path}, collection {number}"
    if not isinstance(row, dict):
        raise ConfigError(f"{where} must be a mapping with {', '.join(_required())}.")
    known = {one.name for one in fields(CollectionRule)} - {"catalogue"}
    for key in row:
        if key not in known:
            raise ConfigError(f"{where}: there is no key '{key}'.{suggest(str(key), known)}")
    missing = [key for key in _required() if key not in row]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}.")
    (modality,) = read_modalities([str(row["modality"])])
    kinds = get_type_hints(CollectionRule)
    for key in ("units", "offset"):
        if key in row and row[key] not in get_args(kinds[key]):
            raise ConfigError(f"{where}: {key} is one of {', '.join(get_args(kinds[key]))}, got '{row[key]}'.")
    assets = row["assets"]
    names = MODALITIES[modality].band_names
    if not isinstance(assets, dict) or not set(names) <= set(assets):
        lacking = sorted(set(names) - set(assets if isinstance(assets, dict) else ()))
        raise ConfigError(f"{where}: assets must name the asset of each band; {', '.join(lacking)} is missing.")
    try:
        nodata = None if row.get("nodata") is None else float(row["nodata"])
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: nodata is a number, got '{row['nodata']}'.") from None
    gdal = row.get("gdal") or {}
    if not isinstance(gdal, dict):
        raise ConfigError(f"{where}: gdal is a mapping of GDAL's options.")
    return CollectionRule(
        str(path),
        str(row["collection"]),
        modality,
        {str(band): str(asset) for band, asset in assets.items()},
        row["units"],
        row.get("offset", "none"),
        nodata,
        {str(key): str(value) for key, value in gdal.items()},
    )


def choose_rules(rules: Sequence[CollectionRule], modality: str, there: set[str] | None) -> list[CollectionRule]:
    """Return the rows that may be used for a modality, the preferred one first.

    Args:
        rules: Rows of the catalogue, or of all catalogues if the catalogue is unknown.
        modality: Name of the modality.
        there: Collections that the catalogue has; None if that is not known before a search.

    Raises:
        ConfigError: The catalogue lacks the modality, or the rows of several catalogues differ.
    """
    own = [rule for rule in rules if rule.modality == modality]
    names = {rule.catalogue for rule in rules}
    if not own:
        where = names.pop() if len(names) == 1 else "No catalogue"
        others = ", ".join(sorted({rule.catalogue for rule in RULES if rule.modality == modality}))
        raise ConfigError(
            f"{where} has no {modality}. It is in {others}: give the address with --stac {modality}=URL."
            if others
            else f"{where} has no {modality}."
        )
    found = [rule for rule in own if there is None or rule.collection in there]
    if not found:
        listed = ", ".join(sorted(there or ())) or "none"
        raise ConfigError(
            f"The catalogue has no collection of {modality}: it has {listed}; known collections are "
            f"{', '.join(sorted({rule.collection for rule in own}))}. Leave {modality} out, give a source that has it "
            f"with --stac {modality}=URL, or describe the collection in a YAML: --catalogue rules.yaml."
        )
    first = found[0]
    same = [rule for rule in found if rule.collection == first.collection]
    if any((rule.assets, rule.offset, rule.units) != (first.assets, first.offset, first.units) for rule in same):
        meanings = ", ".join(rule.catalogue for rule in same)
        raise ConfigError(
            f"Collection {first.collection} differs between {meanings}, in names of assets or offsets. Choose one, "
            f"e.g. --catalogue {first.catalogue}."
        )
    return found
