"""Exceptions of the package. A message says what was got, what was expected and how to fix it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ConfigError(ValueError):
    """A name or argument in a configuration or call is wrong."""


class WeightsError(ValueError):
    """A checkpoint does not fit the model it is loaded into."""


class WeightsNotFoundError(WeightsError):
    """A checkpoint is neither at the given path nor in the local hub cache, and cannot be downloaded."""


class DataError(ValueError):
    """A file or sample is missing, unreadable or not what the configuration says it is."""


class CheckError(ValueError):
    """A check has found something; the details are printed before.

    Args:
        message: In one line.
        status: Exit status of the command.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def one_line(error: object) -> str:
    """Return the text of an error without line breaks.

    Args:
        error: An exception, or its text.
    """
    return " ".join(str(error).split())


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return ' Did you mean ...?' with the nearest of `choices`, or an empty string.

    Args:
        name: The name that was given.
        choices: The valid names.
    """
    by_lower = {choice.lower(): choice for choice in choices}
    near = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[near[0]]}'?" if near else ""
