"""Bands by name: comparison of the descriptions in a file with the bands to read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import MODALITIES, find

POLARISATIONS = ("VV", "VH", "HH", "HV")
POLARISATION = re.compile(r"(?:(?:SIGMA|GAMMA|BETA)_?0?_|AMPLITUDE_|INTENSITY_)?(VV|VH|HH|HV)(?:_DB)?")
"""Pattern of the names that radar software gives to a polarisation, e.g. 'Sigma0_VV_db'."""
KNOWN = {*POLARISATIONS, *(band.common_name for modality in MODALITIES.values() for band in modality.bands)}
"""All names that `band_key` can return."""
MOST = 3
"""Maximum number of corrections in a message."""


def band_key(modality: str, name: object) -> str | None:
    """Return the common name of a band for all its spellings, or None for an unknown text.

    Args:
        modality: Name of the modality; its own names take precedence over those of others.
        name: A description such as 'B4', 'RED', 'vv', 'Sigma0_VH_db' or 'B4, central wavelength 665 nm'.
    """
    text = str(getattr(name, "value", name)).split(",")[0].strip()
    entry = find(modality)
    for other in (*([entry] if entry is not None else []), *MODALITIES.values()):
        position = other.find_band(text)
        if position is not None:
            return other.bands[position].common_name
    written = POLARISATION.fullmatch(text.upper().replace(" ", "_"))
    return written[1] if written else None


def find_bands(
    path: str | Path,
    modality: str,
    names: Sequence[str | None],
    wanted: Sequence[object],
    stored: Sequence[object] = (),
    *,
    binding: bool = False,
) -> list[int]:
    """Return the position in the file of each band to read, counted from 0.

    The positions follow the descriptions in the file. A file without descriptions is read in the order of `stored`, or
    else of `wanted`.

    Args:
        path: The file, for messages.
        modality: Name of the modality that the file shows.
        names: Descriptions of the file's bands; None for a band without one.
        wanted: Names of the bands to read.
        stored: Names of the file's bands in their order, if the configuration gives them.
        binding: Whether the file must have the bands of `stored`, so that other descriptions are an error.

    Raises:
        DataError: The file lacks a band, or its descriptions contradict the order that was assumed.
    """
    own = {str(getattr(name, "value", name)).strip().upper() for name in (*wanted, *stored)}

    def key(name: object) -> str | None:
        text = str(getattr(name, "value", name)).strip().upper()
        return band_key(modality, name) or (text if text in own else None)

    found = [None if name is None else key(name) for name in names]
    asked = [key(name) or str(name) for name in wanted]
    there = [key(name) or str(name) for name in stored]
    agree = bool(stored) and len(names) == len(stored)
    if not (binding and agree) and set(asked) <= set(found):
        twice = [name for name in asked if found.count(name) > 1]
        if twice:
            raise DataError(
                f"{path} describes its bands as {_shown(names)}, several of them as {twice[0]}. Describe each by its "
                f"own name: rio edit-info --bidx N --description NAME {path}"
            )
        return [found.index(name) for name in asked]
    if agree and set(asked) <= set(there):
        assumed, labels = there, stored
    elif len(names) == len(asked):
        assumed, labels = asked, wanted
    else:
        raise DataError(_other_number(path, modality, names, wanted, found, asked))
    wrong = [
        position
        for position, (name, taken) in enumerate(zip(found, assumed, strict=True))
        if name not in (None, taken) and (name in assumed or taken in KNOWN)
    ]
    if wrong:
        texts = [str(getattr(name, "value", name)) for name in labels]
        raise DataError(_contradiction(path, modality, names, texts, wrong, configured=labels is stored))
    return [assumed.index(name) for name in asked]


def bands_of_date(count: int, dates: int, date: int, *, by_band: bool) -> list[int]:
    """Return the positions of the bands of one date in a file with several dates, counted from 0.

    Args:
        count: Number of bands of a date.
        dates: Number of dates.
        date: Number of the date, counted from 0.
        by_band: Whether all dates of a band are together, not all bands of a date.
    """
    return [band * dates + date if by_band else date * count + band for band in range(count)]


def check_dated_names(
    path: str | Path, modality: str, names: Sequence[str | None], stored: Sequence[object], *, by_band: bool
) -> None:
    """Raise an error if a file of several dates names its bands in another order than the one in which it is read.

    Args:
        path: The file, for messages.
        modality: Name of the modality.
        names: Descriptions of the file's bands; None for a band without one.
        stored: Names of the bands of one date in their order.
        by_band: Whether the file is read as if all dates of a band were together, not all bands of a date.

    Raises:
        DataError: The descriptions contradict the order.
    """
    count = len(stored)
    if not count or not any(names) or len(names) % count:
        return
    dates = len(names) // count
    if dates > 1 and _names_agree(modality, names, stored, by_band=not by_band):
        raise DataError(
            f"{path} describes its bands as {_shown(names[: count + 1])}, ...: "
            + (
                f"all bands of a date are together. Remove {modality} from temporal_channel_major."
                if by_band
                else "all dates of a band are together. Set temporal_channel_major: true."
            )
        )
    for date in range(dates):
        group = [names[band] for band in bands_of_date(count, dates, date, by_band=by_band)]
        find_bands(path, modality, group, stored, stored, binding=True)


def _names_agree(modality: str, names: Sequence[str | None], stored: Sequence[object], *, by_band: bool) -> bool:
    """Return whether all bands of a file are named, in the given order of bands and dates."""
    found = [None if name is None else band_key(modality, name) for name in names]
    wanted = [band_key(modality, name) for name in stored]
    dates = len(names) // len(stored)
    orders = [bands_of_date(len(stored), dates, date, by_band=by_band) for date in range(dates)]
    return None not in wanted and len(set(wanted)) > 1 and all([found[b] for b in bands] == wanted for bands in orders)


def check_one_band(path: object, count: int) -> None:
    """Raise a DataError if a label has several bands: TerraTorch would silently use the first one.

    Args:
        path: Name of the file.
        count: Number of its bands.
    """
    if count != 1:
        raise DataError(
            f"{path} has {count} bands, expected a label with one band of class ids or values. Extract the right band, "
            f"e.g. gdal_translate -b 1 {path} label.tif; the colours of a picture are not ids."
        )


def _other_number(
    path: str | Path,
    modality: str,
    names: Sequence[str | None],
    wanted: Sequence[object],
    found: Sequence[str | None],
    asked: Sequence[str],
) -> str:
    missing = [str(name) for name, key in zip(wanted, asked, strict=True) if key not in found]
    return (
        f"{path} has {len(names)} {'band' if len(names) == 1 else 'bands'}, but {modality} has {len(wanted)}: "
        f"{', '.join(map(str, wanted))}."
        + (f" Missing: {', '.join(missing)}." if any(names) and len(missing) < len(wanted) else "")
        + " Give a file with these bands, or name its bands in their descriptions."
    )


def _contradiction(
    path: str | Path,
    modality: str,
    names: Sequence[str | None],
    taken: Sequence[str],
    wrong: Sequence[int],
    *,
    configured: bool = False,
) -> str:
    described = _shown(names)
    commands = [
        f"rio edit-info --bidx {position + 1} --description {taken[position]} {path}" for position in wrong[:MOST]
    ]
    numbers = ", ".join(str(position + 1) for position in wrong)
    if configured:
        head = f"{path} describes its bands as {described}, but dataset_bands: {{{modality}: [{', '.join(taken)}]}}."
        choice = f"If the file is right, write dataset_bands: {{{modality}: [{described}]}}."
    else:
        head = f"{path} describes its bands as {described}, expected {', '.join(taken)} for {modality}."
        choice = "If the descriptions are right, give another file that has these bands."
    return f"{head} {choice} If the descriptions of bands {numbers} are wrong, correct them: {'; '.join(commands)}"


def _shown(names: Sequence[str | None]) -> str:
    return ", ".join(name or "(none)" for name in names)
