"""Content of the files of a modality: bands, dates, units, offset, sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from terramind_plugin.errors import ConfigError, DataError, counted
from terramind_plugin.model.modalities import OPTICAL, RADAR, Modality
from terramind_plugin.model.units import is_eight_bit, other_unit
from terramind_plugin.raster.bands import band_key
from terramind_plugin.samples.checks.dates import is_other_date_order
from terramind_plugin.samples.checks.findings import some
from terramind_plugin.samples.checks.headers import Header
from terramind_plugin.samples.checks.order import find_order
from terramind_plugin.samples.checks.sample import Summary
from terramind_plugin.samples.checks.values import DN_OFFSET, has_offset
from terramind_plugin.samples.plan import ImagePlan

USUAL = {
    13: "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12",
    12: "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12",
    10: "B02 B03 B04 B05 B06 B07 B08 B8A B11 B12",
    6: "BLUE GREEN RED NIR_NARROW SWIR_1 SWIR_2",
    4: "BLUE GREEN RED NIR_BROAD",
    3: "RED GREEN BLUE",
}
"""Usual bands of Sentinel-2 files by number of bands: all (L1C, L2A), 10 and 20 m, HLS, visible and near infrared."""
MOST_DATES = 60


@dataclass
class ImageSet:
    """The images of one modality, as a configuration describes them."""

    name: str
    modality: Modality | None
    file_bands: tuple[str, ...] = ()
    """Names of the bands of one date in the files; empty if they are those of the modality."""
    read: tuple[str, ...] = ()
    """Names of the bands that the model gets; empty for all bands of the files."""
    scale: float | None = None
    offset: float | None = None
    dates: int = 1
    """Number of dates of each sample."""
    in_files: int = 1
    """Number of dates in each file."""
    by_band: bool = False
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    """Number of files by height and width."""
    notes: list[str] = field(default_factory=list)
    """Assumptions and findings, one sentence each."""

    @property
    def model_bands(self) -> tuple[str, ...]:
        """Return the names of the model's bands; empty for all bands of the modality."""
        bands = self.read or self.file_bands
        own = self.modality.band_names if self.modality is not None else ()
        return () if [*bands] == [*own] else bands

    @property
    def plan(self) -> ImagePlan:
        """Return the plan by which the checks read the files."""
        own = self.modality.band_names if self.modality is not None else ()
        bands = self.file_bands or own
        return ImagePlan(
            name=self.name,
            modality=self.modality,
            file_bands=bands,
            read=(),
            means=(),
            stds=(),
            scale=self.scale or 1.0,
            offset=self.offset,
            dates=self.in_files > 1,
            by_band=self.by_band,
            binding=bool(self.file_bands),
        )


def fits_modality(modality: Modality, header: Header) -> bool:
    """Return whether the bands of a file may be those of a modality, judged by their names or their number."""
    named = [band_key(modality.name, name) for name in header.descriptions if name]
    if named and None not in named:
        own = {band.common_name for band in modality.bands}
        return bool(own & set(named)) and (len(named) == 1) == (len(modality.bands) == 1)
    if modality.name in OPTICAL:
        return header.bands in USUAL
    return header.bands == len(modality.bands)


def describe_bands(
    name: str, modality: Modality | None, headers: Sequence[Header], given: Sequence[str], *, listed: int
) -> ImageSet:
    """Return bands and dates of the images of a modality.

    Args:
        name: Name of the input.
        modality: The known modality; None for a new one.
        headers: Headers of its files, at least one.
        given: Names of the bands that the user has typed.
        listed: Number of dates that have files of their own.

    Raises:
        DataError: A file cannot be read, files differ in bands, or their bands cannot be told.
    """
    broken = [header for header in headers if header.problem]
    if broken:
        raise DataError(
            f"{name}: {len(broken)} of {counted(len(headers), 'file')} cannot be read, e.g. {broken[0].path}: "
            f"{broken[0].problem}. Copy or download them again."
        )
    counts = Counter(header.bands for header in headers)
    if len(counts) > 1:
        shown = some([f"{count} with {counted(bands, 'band')}" for bands, count in counts.most_common()])
        odd = next(h for h in headers if h.bands == counts.most_common()[-1][0])
        raise DataError(f"{name}: files differ in bands: {shown}, e.g. {odd.path}. Give files with the same bands.")
    found = ImageSet(name, modality, sizes=Counter(header.shape for header in headers), dates=listed)
    bands = headers[0].bands
    if given:
        return _take_given(found, bands, given)
    if modality is None:
        raise ConfigError(f"{name} is not a modality of TerraMind: terramind new knows only those.")
    described = [band_key(name, text) for text in headers[0].descriptions if text]
    if len(described) == bands and None not in described:
        return _take_described(found, modality, [str(one) for one in described])
    return _take_number(found, modality, bands, headers[0].path)


def _take_given(found: ImageSet, bands: int, given: Sequence[str]) -> ImageSet:
    dates = bands // len(given)
    if dates < 1 or bands % len(given):
        raise ConfigError(
            f"--bands names {len(given)} bands of {found.name}, but its files have {bands}. Name all of them."
        )
    found.file_bands = tuple(given)
    own = set(map(str, found.modality.band_names)) if found.modality else set()
    known = [found.modality.find_band(one) for one in given] if found.modality else []
    if own and all(place is not None for place in known) and len(own) == len(given) and known != sorted(known):  # type: ignore[type-var]
        found.read = found.modality.band_names if found.modality else ()
    lacking = [one for one, place in zip(given, known, strict=False) if place is None]
    if lacking and len(lacking) == len(given):
        raise ConfigError(
            f"--bands {found.name}: none of {some(lacking)} is a band of {found.name}: {some([*own], 13)}."
        )
    if lacking:
        found.read = tuple(one for one in given if one not in lacking)
        found.notes.append(
            f"no band of {found.name}, so the model does not get it: {some(lacking)} (to train it from random weights, "
            "name it in output_bands, backbone_bands and backbone_new_bands)"
        )
    return _set_dates(found, dates)


def _take_described(found: ImageSet, modality: Modality, described: list[str]) -> ImageSet:
    """Take the bands that the descriptions name."""
    names = list(dict.fromkeys(described))
    dates = len(described) // len(names)
    if len(described) % len(names) or any(described.count(name) != dates for name in names):
        raise DataError(f"{found.name}: the files describe some bands more often than others: {some(described, 20)}.")
    own = [band.common_name for band in modality.bands]
    products = {band.common_name: band.name for band in modality.bands}
    if dates > 1:
        found.by_band = described[:dates] == [described[0]] * dates
        found.notes.append(f"bands of {counted(dates, 'date')} named in the files")
    if not set(names) & set(own):
        raise DataError(f"{found.name}: the files describe their bands as {some(names, 13)}, none of {some(own, 13)}.")
    if not set(own) <= set(names):  # the model gets the bands that exist
        found.file_bands = tuple(products.get(name, name) for name in names)
        found.read = tuple(products[name] for name in names if name in products)
        found.read = () if found.read == found.file_bands else found.read
    elif dates > 1 and names != own:
        found.file_bands = tuple(products.get(name, name) for name in names)
        found.read = modality.band_names
    elif names != own:
        found.notes.append("bands read by name")
    return _set_dates(found, dates)


def _take_number(found: ImageSet, modality: Modality, bands: int, example: Path) -> ImageSet:
    """Take the bands that files with this number of bands usually have."""
    full = len(modality.bands)
    if bands == full:
        return found
    options = USUAL if modality.name in OPTICAL else {full: ""} if full else {}
    if modality.name in OPTICAL and bands in options:
        found.file_bands = tuple(USUAL[bands].split())
        dates = 1
    else:
        size = next((n for n in (full, 12, 13, 10, 6, 4) if n in options and bands % n == 0), None)
        dates = 0 if size is None else bands // size
        if size is None or dates > MOST_DATES:
            raise DataError(
                f"{example} has {counted(bands, 'band')} without names, {modality.name} has {full}. Name them in the "
                f"order of the files: --bands {found.name}=BLUE,GREEN,RED,..."
            )
        found.file_bands = tuple(USUAL[size].split()) if size != full else ()
    known = modality.band_names
    if found.file_bands:
        lacking = [name for name in found.file_bands if modality.find_band(name) is None]
        found.read = tuple(name for name in found.file_bands if name not in lacking) if lacking else ()
        if set(found.read) == set(known):
            found.read = known
        found.notes.append(
            f"{counted(len(found.file_bands), 'band')} without names taken as {', '.join(found.file_bands)}; if that "
            f"is wrong, write the YAML again with --bands {found.name}=NAME,NAME,..."
        )
    return _set_dates(found, dates)


def _set_dates(found: ImageSet, dates: int) -> ImageSet:
    if dates > 1 and found.dates > 1:
        raise DataError(
            f"{found.name}: files of {found.dates} dates, whose bands look like {dates} dates in each file. If a file "
            f"is one date, name its bands: --bands {found.name}=NAME,NAME,... Otherwise give one file for all dates."
        )
    found.in_files = dates
    found.dates = max(found.dates, dates)
    if dates > 1:
        found.notes.append(f"{counted(dates, 'date')} in each file")
    return found


def settle_values(found: ImageSet, summaries: Sequence[Summary]) -> ImageSet:
    """Return the images with the factor, the offset, and the order of bands and dates that follow from their values.

    Args:
        found: Bands and dates.
        summaries: Values of some files, read as `found.plan` says.

    Raises:
        DataError: The values are in a unit that a factor does not correct.
    """
    filled = [summary for summary in summaries if summary.pixels.size]
    modality = found.modality
    if modality is None or not filled:
        return found
    if found.in_files > 1 and found.by_band is False and is_other_date_order(found.plan, filled):
        found.by_band = True
        found.notes.append("by their values, files hold all dates of a band together")
    guesses = [guess for s in filled if (guess := other_unit(modality, s.pixels)) is not None]
    pixels = np.concatenate([summary.pixels for summary in filled], axis=1)
    if modality.name not in ("DEM", "LULC") and guesses:
        if guesses[0].scale is None or len(guesses) < len(filled):
            mixed = f"{len(guesses)} of {len(filled)} files" if len(guesses) < len(filled) else "the files"
            raise DataError(f"{found.name}: {mixed} look like {guesses[0]}. {guesses[0].advice}")
        found.scale = guesses[0].scale
        found.notes.append(f"they look like {guesses[0]}: multiplied by {found.scale:g} while reading")
        return found
    if is_eight_bit(modality, pixels):
        raise DataError(f"{found.name}: no value above {pixels.max():g}: pictures of 8 bits. Use the original product.")
    if modality.name in OPTICAL:
        _settle_optical(found, filled)
    elif modality.name in RADAR and not found.file_bands and len(filled[0].median) == 2:
        swapped = [summary for summary in filled if summary.median[0] < summary.median[1] - 1]
        if len(swapped) > len(filled) / 2:
            found.file_bands, found.read = ("VH", "VV"), ("VV", "VH")
            found.notes.append("the first band is darker: taken as VH, VV")
    return found


def _settle_optical(found: ImageSet, filled: Sequence[Summary]) -> None:
    plan = found.plan
    marks = [has_offset(plan, summary) for summary in filled]
    if True in marks and False not in marks:
        found.offset = float(-DN_OFFSET)
        found.notes.append(f"they have the offset of +{DN_OFFSET} of products since 2022, which is removed")
    elif True in marks:
        found.notes.append(f"some files have the offset of +{DN_OFFSET} and others do not: see terramind check")
    order = find_order(plan, filled) if found.in_files == 1 else None
    if order is not None and not found.read:
        text, bands = order
        found.read = tuple(plan.file_bands)
        found.file_bands = tuple(bands)
        found.notes.append(f"the bands look like {text}")


def check_same_size(
    name: str, shapes: Mapping[str, tuple[int, int]], first: str, others: Mapping[str, tuple[int, int]]
) -> None:
    """Raise a DataError if files of one sample differ in height or width.

    Args:
        name: Name of the files of `shapes`.
        shapes: Height and width by sample id.
        first: Name of the files of `others`.
        others: Height and width by sample id.
    """
    wrong = [one for one in shapes if one in others and shapes[one] != others[one]]
    if wrong:
        one = wrong[0]
        raise DataError(
            f"Sizes differ in {counted(len(wrong), 'sample')}, e.g. {one}: {first} has {_size(others[one])}, {name} "
            f"{_size(shapes[one])} pixels. Resample them to one grid: pixels are matched by row and column."
        )


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[0]} x {shape[1]}"
