"""Exceptions of the package. A message says what was got, what was expected and how to fix it."""

from __future__ import annotations

import errno
import os
import sys
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


_LIBRARY_FAILURES = {
    ("rasterio", "RasterioError"),
    ("rasterio", "CPLE_BaseError"),
    ("safetensors", "SafetensorError"),
    ("sqlite3", "Error"),
}
"""Top module and class of the errors with which libraries report what OSError reports elsewhere."""
_NO_ROOM = "Make room there, or choose another place, and run the same command again."
_NO_FOLDER = "A file or a broken link is in the way of a folder. Choose another place, or remove it."
_NOT_ALLOWED = "Choose a place that you may write to."
_ADVICE = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: _NO_ROOM,
    errno.EEXIST: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EROFS: _NOT_ALLOWED,
    errno.EACCES: _NOT_ALLOWED,
    errno.EPERM: _NOT_ALLOWED,
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "The links there lead in a circle. Choose another place.",
    errno.ENOENT: "Check the path.",
}


def report(error: Exception) -> int:
    """Print in one line what has ended a command and return the exit status.

    Args:
        error: What was raised.

    Raises:
        Exception: The error itself, if it is a fault of this program.
    """
    message = _explain(error)
    if message is None:
        raise error
    print(f"terramind: {message}", file=sys.stderr)
    return error.status if isinstance(error, CheckError) else 2


def _explain(error: Exception) -> str | None:
    """Return what was wrong and what to do; None for what only a fault of this program raises."""
    if isinstance(error, CheckError | ConfigError | DataError | WeightsError):
        return _message_of(error)
    # Which path could not be used: OSError, or what rasterio, GDAL, safetensors and SQLite have in its place.
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        advice = _ADVICE.get(error.errno, "")
        return f"{' -> '.join(names) or 'A file'}: {one_line(error.strerror)}. {advice}".rstrip()
    kinds = {(kind.__module__.split(".")[0], kind.__name__) for kind in type(error).__mro__}
    if isinstance(error, OSError) or kinds & _LIBRARY_FAILURES:
        return f"{one_line(_message_of(error))} ({type(error).__name__})"
    return None


def _message_of(error: BaseException) -> str:
    """Return the text of an error; a data loader's worker process sends its traceback along, which is left out."""
    text = str(error)
    return text.rpartition(f"{type(error).__name__}: ")[2] if text.startswith("Caught") else text


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return ' Did you mean ...?' with the nearest of `choices`, or an empty string.

    Args:
        name: The name that was given.
        choices: The valid names.
    """
    by_lower = {choice.lower(): choice for choice in choices}
    near = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[near[0]]}'?" if near else ""
