"""The table of modalities: all numbers about the model's inputs in one place.

Source of bands, statistics, vocabulary sizes and checkpoint keys: the registration of TerraMind 1.0 in TerraTorch
(terratorch/models/backbones/terramind) and the TerraMind paper, arXiv:2504.11171, section 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from terramind_plugin.errors import ConfigError, suggest


@dataclass(frozen=True)
class Band:
    """One band of an image modality."""

    name: str
    """Name in the product, e.g. 'B04' or 'VV'."""
    common_name: str
    """Name in TerraTorch's configurations, e.g. 'RED'; equal to `name` if there is none."""
    mean: float
    """Mean of the pre-training data, in the modality's units."""
    std: float
    """Standard deviation of the pre-training data, in the modality's units."""


@dataclass(frozen=True)
class Modality:
    """Names, bands, units and tokens of a modality."""

    name: str
    """Name for users, e.g. 'S2L2A'."""
    kind: Literal["image", "classes", "sequence"]
    """'image' for numbers per pixel, 'classes' for one class id per pixel, 'sequence' for a sequence of tokens."""
    units: str
    valid_range: tuple[float, float]
    """Smallest and largest physically meaningful value, in `units`."""
    bands: tuple[Band, ...] = ()
    patch_key: str | None = None
    """Checkpoint key of the embedding of pixels; None if the published models take only tokens."""
    token_key: str | None = None
    """Checkpoint key of the embedding of token ids; None if there are no tokens of this modality."""
    vocab_size: int | None = None
    """Number of token ids in the published weights."""
    max_length: int | None = None
    """Maximum number of tokens, for kind 'sequence'."""
    rgb: tuple[int, ...] = (0,)
    """Indices of the bands to draw as red, green, blue, or of the one band to draw in grey."""
    class_names: tuple[str, ...] = ()
    class_colors: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    """Further names of the modality among users and in data sets."""

    @property
    def band_names(self) -> tuple[str, ...]:
        """Return the product names of the bands, in the order of the pre-training data."""
        return tuple(band.name for band in self.bands)

    @property
    def mean(self) -> tuple[float, ...]:
        """Return the pre-training mean of each band."""
        return tuple(band.mean for band in self.bands)

    @property
    def std(self) -> tuple[float, ...]:
        """Return the pre-training standard deviation of each band."""
        return tuple(band.std for band in self.bands)

    def find_band(self, name: object) -> int | None:
        """Return the position of a band, or None if the modality has no band of that name.

        Args:
            name: Product name ('B04', also 'B4' or 'b04'), TerraTorch's name ('RED') or an enum member whose value is
                such a name.
        """
        wanted = _band_key(getattr(name, "value", name))
        for index, band in enumerate(self.bands):
            if wanted in (_band_key(band.name), _band_key(band.common_name)):
                return index
        return None

    def band_index(self, name: object) -> int:
        """Return the position of a band in the pre-training data.

        Args:
            name: As in `find_band`.

        Raises:
            ConfigError: The modality has no such band.
        """
        index = self.find_band(name)
        if index is None:
            spellings = [band.name for band in self.bands] + [band.common_name for band in self.bands]
            known = ", ".join(
                band.name if band.name == band.common_name else f"{band.name} ({band.common_name})"
                for band in self.bands
            )
            raise ConfigError(
                f"Unknown band '{name}' for modality {self.name}. Its bands are: {known}."
                f"{suggest(str(getattr(name, 'value', name)), spellings)}"
            )
        return index


def _band_key(name: object) -> str:
    """Normalise case and the leading zero of Sentinel-2 names, so that b4, B4 and B04 are the same band."""
    return re.sub(r"^B0(\d)$", r"B\1", str(name).strip().upper())


def _bands(rows: Sequence[tuple[str, str, float, float]]) -> tuple[Band, ...]:
    return tuple(Band(*row) for row in rows)


_S2L1C = _bands(
    [
        ("B01", "COASTAL_AEROSOL", 2357.089, 1624.683),
        ("B02", "BLUE", 2137.385, 1675.806),
        ("B03", "GREEN", 2018.788, 1557.708),
        ("B04", "RED", 2082.986, 1833.702),
        ("B05", "RED_EDGE_1", 2295.651, 1823.738),
        ("B06", "RED_EDGE_2", 2854.537, 1733.977),
        ("B07", "RED_EDGE_3", 3122.849, 1732.131),
        ("B08", "NIR_BROAD", 3040.560, 1679.732),
        ("B8A", "NIR_NARROW", 3306.481, 1727.26),
        ("B09", "WATER_VAPOR", 1473.847, 1024.687),
        ("B10", "CIRRUS", 506.070, 442.165),
        ("B11", "SWIR_1", 2472.825, 1331.411),
        ("B12", "SWIR_2", 1838.929, 1160.419),
    ]
)
_S2L2A = _bands(
    [
        ("B01", "COASTAL_AEROSOL", 1390.458, 2106.761),
        ("B02", "BLUE", 1503.317, 2141.107),
        ("B03", "GREEN", 1718.197, 2038.973),
        ("B04", "RED", 1853.910, 2134.138),
        ("B05", "RED_EDGE_1", 2199.100, 2085.321),
        ("B06", "RED_EDGE_2", 2779.975, 1889.926),
        ("B07", "RED_EDGE_3", 2987.011, 1820.257),
        ("B08", "NIR_BROAD", 3083.234, 1871.918),
        ("B8A", "NIR_NARROW", 3132.220, 1753.829),
        ("B09", "WATER_VAPOR", 3162.988, 1797.379),
        ("B11", "SWIR_1", 2424.884, 1434.261),
        ("B12", "SWIR_2", 1857.648, 1334.311),
    ]
)
_LULC = (
    ("no data", "#000000"), ("water", "#419bdf"), ("trees", "#397d49"), ("flooded vegetation", "#7a87c6"),
    ("crops", "#e49635"), ("built", "#c4281b"), ("bare", "#a59b8f"), ("snow/ice", "#a8ebff"), ("clouds", "#616161"),
    ("rangeland", "#e3e2c3"),
)  # fmt: skip
"""Name and colour of each class id."""

_TABLE = (
    Modality(
        name="S2L2A",
        kind="image",
        units="surface reflectance x 10000",
        valid_range=(0, 20000),
        bands=_S2L2A,
        patch_key="untok_sen2l2a@224",
        token_key="tok_sen2l2a@224",
        vocab_size=15360,
        rgb=(3, 2, 1),
        aliases=("sen2l2a",),
    ),
    Modality(
        name="S2L1C",
        kind="image",
        units="top-of-atmosphere reflectance x 10000",
        valid_range=(0, 20000),
        bands=_S2L1C,
        patch_key="untok_sen2l1c@224",
        rgb=(3, 2, 1),
        aliases=("sen2l1c",),
    ),
    Modality(
        name="RGB",
        kind="image",
        units="8-bit colour of S2L2A",
        valid_range=(0, 255),
        bands=_bands([("R", "RED", 87.271, 58.767), ("G", "GREEN", 80.931, 47.663), ("B", "BLUE", 66.667, 42.631)]),
        patch_key="untok_sen2rgb@224",
        rgb=(0, 1, 2),
        aliases=("S2RGB", "sen2rgb"),
    ),
    Modality(
        name="S1GRD",
        kind="image",
        units="dB",
        valid_range=(-60, 20),
        bands=_bands([("VV", "VV", -12.599, 5.195), ("VH", "VH", -20.293, 5.890)]),
        patch_key="untok_sen1grd@224",
        token_key="tok_sen1grd@224",
        vocab_size=15360,
        aliases=("sen1grd",),
    ),
    Modality(
        name="S1RTC",
        kind="image",
        units="dB",
        valid_range=(-60, 20),
        bands=_bands([("VV", "VV", -10.93, 4.391), ("VH", "VH", -17.329, 4.459)]),
        patch_key="untok_sen1rtc@224",
        token_key="tok_sen1rtc@224",
        vocab_size=15360,
        aliases=("sen1rtc",),
    ),
    Modality(
        name="DEM",
        kind="image",
        units="m",
        valid_range=(-500, 9000),
        bands=_bands([("DEM", "DEM", 670.665, 951.272)]),
        patch_key="untok_dem@224",
        token_key="tok_dem@224",
        vocab_size=15360,
        aliases=("elevation", "CopernicusDEM"),
    ),
    Modality(
        name="LULC",
        kind="classes",
        units="class id",
        valid_range=(0, 9),
        bands=_bands([("LULC", "LULC", 0.0, 1.0)]),
        token_key="tok_lulc@224",
        vocab_size=4375,
        class_names=tuple(name for name, _ in _LULC),
        class_colors=tuple(color for _, color in _LULC),
        aliases=("landcover",),
    ),
    Modality(
        name="NDVI",
        kind="image",
        units="1",
        valid_range=(-1, 1),
        bands=_bands([("NDVI", "NDVI", 0.327, 0.322)]),
        token_key="tok_ndvi@224",
        vocab_size=15360,
    ),
    Modality(
        name="coords",
        kind="sequence",
        units="degree (longitude, latitude), on a 0.25 degree grid",
        valid_range=(-180, 180),
        token_key="coords",
        vocab_size=30000,
        max_length=4,
        aliases=("coordinates", "location"),
    ),
)

MODALITIES: dict[str, Modality] = {modality.name: modality for modality in _TABLE}
"""The table, by the user's name."""
RADAR = tuple(modality.name for modality in _TABLE if modality.units == "dB")
OPTICAL = tuple(modality.name for modality in _TABLE if "reflectance" in modality.units)


def _name_key(name: str) -> str:
    """Normalise case and separators, so that s2l2a, S2-L2A and S2_L2A are the same name."""
    return re.sub(r"[^a-z0-9@]", "", name.lower())


_BY_KEY: dict[str, Modality] = {
    _name_key(spelling): modality
    for modality in _TABLE
    for spelling in (modality.name, *modality.aliases, modality.patch_key, modality.token_key)
    if spelling is not None
}
_FAMILIES = {
    "s1": ("S1GRD", "S1RTC"),
    "sen1": ("S1GRD", "S1RTC"),
    "sentinel1": ("S1GRD", "S1RTC"),
    "sar": ("S1GRD", "S1RTC"),
    "s2": ("S2L1C", "S2L2A"),
    "sen2": ("S2L1C", "S2L2A"),
    "sentinel2": ("S2L1C", "S2L2A"),
    "optical": ("S2L1C", "S2L2A", "RGB"),
}


_PRODUCTS = {key: modality for key, modality in _BY_KEY.items() if re.match(r"(s|sen)[12]", key) and "@" not in key}
"""Satellite products by normalised name, which may be a part of longer names."""
_LAYERS = {key: modality for key, modality in _BY_KEY.items() if "@" not in key and key not in (*_PRODUCTS, "location")}
"""Other modalities by normalised name, which may be a word of longer names."""


def find_exact(name: str) -> Modality | None:
    """Return the modality of exactly this name, or None if there is none or more than one.

    Args:
        name: A user's name in any case and with or without separators, a known alias, or a checkpoint key.
    """
    return _BY_KEY.get(_name_key(name))


def find(name: str) -> Modality | None:
    """Return the modality of a name or of a part of it, or None if there is none or more than one.

    Args:
        name: As in `find_exact`, or a name that holds a satellite product, such as S2L2A_before or S2L1C_L8. A name
            with another modality as well, such as S2L2A_NDVI, stands for none.
    """
    exact = find_exact(name)
    if exact is not None:
        return exact
    found = _held(name, _PRODUCTS, whole_words=False)
    return found[0] if len(found) == 1 and not _held(name, _LAYERS, whole_words=True) else None


def find_layer(name: str) -> Modality | None:
    """Return the modality of a name as TerraTorch interprets names of pre-trained data, or None.

    Args:
        name: As in `find`, or a name with DEM, RGB, LULC, NDVI or coords as one of its words, such as LULC_2020.
    """
    known = find(name)
    if known is not None:
        return known
    found = _held(name, _PRODUCTS, whole_words=False) + _held(name, _LAYERS, whole_words=True)
    return found[0] if len(found) == 1 else None


def _held(name: str, spellings: Mapping[str, Modality], *, whole_words: bool) -> list[Modality]:
    """Return the modalities whose normalised name is a part of a name, or one of its words."""
    words = {_name_key(word) for word in re.split(r"[^A-Za-z0-9]+", name)}
    key = _name_key(name)
    held = [modality for spelling, modality in spellings.items() if spelling in (words if whole_words else key)]
    return list({modality.name: modality for modality in held}.values())


def find_family(name: str) -> tuple[str, ...]:
    """Return the names of the modalities that an ambiguous name, such as 'S1', may mean; none for other names."""
    return () if find_layer(name) is not None else _FAMILIES.get(_name_key(name), ())


def band_text(band: object) -> str:
    """Return the name of a band, given as text or as a member of TerraTorch's enums."""
    return str(getattr(band, "value", band))


def is_position(name: str) -> bool:
    """Return whether an input is a position, i.e. coords or another name for it."""
    modality = find_exact(name)
    return modality is not None and modality.kind == "sequence"


def resolve(name: str) -> Modality:
    """Return the modality of a name.

    Args:
        name: As in `find_layer`.

    Raises:
        ConfigError: The name is ambiguous ('S1'), unknown, or 'caption'; the message lists possible names.
    """
    modality = find_layer(name)
    if modality is not None:
        return modality
    if _name_key(name) in ("caption", "captions"):
        raise ConfigError(f"{name} is not supported by the TerraMind 1.0 weights: they have no captions.")
    family = find_family(name)
    if family:
        raise ConfigError(
            f"Modality '{name}' is ambiguous: write {' or '.join(family)}. They have different statistics and weights."
        )
    spellings = [spelling for m in _TABLE for spelling in (m.name, *m.aliases)]
    raise ConfigError(f"Unknown modality '{name}'. Known: {', '.join(MODALITIES)}.{suggest(name, spellings)}")


def statistics(modality: Modality, bands: Iterable[object]) -> tuple[list[float], list[float]]:
    """Return pre-training means and standard deviations of some bands, in the given order.

    Args:
        modality: Entry of the table.
        bands: Band names as in `Modality.find_band`.

    Raises:
        ConfigError: The modality has no such band.
    """
    chosen = [modality.bands[modality.band_index(band)] for band in bands]
    return [band.mean for band in chosen], [band.std for band in chosen]


def token_key(modality: Modality) -> str:
    """Return the checkpoint key of a modality's tokens.

    Raises:
        ConfigError: The published models have no tokens of this modality.
    """
    if modality.token_key is None:
        raise ConfigError(
            f"{modality.name} has no tokens in TerraMind 1.0, so it can be an input but not an output. "
            f"Outputs are {', '.join(m.name for m in _TABLE if m.token_key)}."
        )
    return modality.token_key
