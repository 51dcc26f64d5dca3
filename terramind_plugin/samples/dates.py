"""Files of the dates of time series."""

from __future__ import annotations

MARK = "@"
"""Character between a modality and the number of a date that has files of its own."""


def date_key(name: str, number: int) -> str:
    """Return the key of the files of one date of a modality; that of the first date is the modality's name.

    Args:
        name: Modality.
        number: Number of the date, from 1 on.
    """
    return name if number == 1 else f"{name}{MARK}{number}"


def modality_of(key: str) -> str:
    """Return the modality of a key that `date_key` has returned."""
    return key.partition(MARK)[0]
