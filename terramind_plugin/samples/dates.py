"""Files of the dates of time series."""

from __future__ import annotations

MARK = "@"
"""Character between the modality and the number of the date, in keys of dates with files of their own."""


def date_key(name: str, number: int) -> str:
    """Return the key of the files of one date of a modality. The key of the first date is the modality's name.

    Args:
        name: Modality.
        number: Number of the date, counted from 1.
    """
    return name if number == 1 else f"{name}{MARK}{number}"


def modality_of(key: str) -> str:
    """Return the modality of a key made by `date_key`."""
    return key.partition(MARK)[0]
