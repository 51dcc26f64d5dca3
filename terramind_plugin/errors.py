"""Exceptions of the package. A message says what was got, what was expected and how to fix it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LAST_SEED = 2**32 - 1
"""The largest seed that NumPy, PyTorch and Lightning all take."""


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


def check_seed(seed: object, name: str = "seed") -> int:
    """Return the seed of random numbers.

    Args:
        seed: What was given.
        name: Of the option or key, for the message.

    Raises:
        ConfigError: It is no whole number from 0 to `LAST_SEED`.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LAST_SEED:
        raise ConfigError(f"{name} must be a whole number from 0 to {LAST_SEED}, got {seed}.")
    return seed


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
