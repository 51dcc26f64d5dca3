"""Exceptions of the package, and their messages: what was got, what was expected and how to fix it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches

LAST_SEED = 2**32 - 1
"""Largest seed that NumPy, PyTorch and Lightning all accept."""


class ConfigError(ValueError):
    """A name or argument in a configuration or call is wrong."""


class WeightsError(ValueError):
    """A checkpoint does not fit its model."""


class WeightsNotFoundError(WeightsError):
    """A checkpoint is neither at the given path nor in the local hub cache, and cannot be downloaded."""


class DataError(ValueError):
    """A file or sample is missing, unreadable or not what the configuration says it is."""


class CheckError(ValueError):
    """Error of a check whose findings have been printed. `status` is the exit status of the command."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def check_seed(seed: object, name: str = "seed") -> int:
    """Return a seed, or raise a ConfigError with the option's name unless it is a whole number up to `LAST_SEED`."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LAST_SEED:
        raise ConfigError(f"{name} must be a whole number from 0 to {LAST_SEED}, got {seed}.")
    return seed


def one_line(error: object) -> str:
    """Return the text of an error without line breaks."""
    return " ".join(str(error).split())


_LIBRARY_FAILURES = {
    ("rasterio", "RasterioError"),
    ("rasterio", "CPLE_BaseError"),
    ("safetensors", "SafetensorError"),
    ("sqlite3", "Error"),
}
"""Package and class of the errors that libraries raise instead of an OSError."""
_NO_ROOM = "Free some space there, or choose another folder, and run the same command again."
_NO_FOLDER = "There is a file or a broken link in place of a folder. Choose another folder, or remove it."
_NOT_ALLOWED = "Choose a folder to which you may write."
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
    errno.ELOOP: "The links there form a loop. Choose another folder.",
    errno.ENOENT: "Check the path.",
}


def report(error: Exception) -> int:
    """Print in one line the error that has ended a command, and return the exit status.

    Raises:
        Exception: The error itself, if it is a fault of this program.
    """
    message = _explain(error)
    if message is None:
        raise error
    print(f"terramind: {message}", file=sys.stderr)
    return error.status if isinstance(error, CheckError) else 2


def _explain(error: Exception) -> str | None:
    """Return the cause and the remedy of an error, or None if only a fault of this program can raise it."""
    if isinstance(error, CheckError | ConfigError | DataError | WeightsError):
        return _message_of(error)
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
        advice = _ADVICE.get(error.errno, "")
        return f"{' -> '.join(names) or 'A file'}: {one_line(error.strerror)}. {advice}".rstrip()
    kinds = {(kind.__module__.split(".")[0], kind.__name__) for kind in type(error).__mro__}
    if isinstance(error, OSError) or kinds & _LIBRARY_FAILURES:
        return f"{one_line(_message_of(error))} ({type(error).__name__})"
    return None


def _message_of(error: BaseException) -> str:
    """Return the text of an error, without the traceback that a data loader's worker process adds."""
    text = str(error)
    return text.rpartition(f"{type(error).__name__}: ")[2] if text.startswith("Caught") else text


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return ' Did you mean ...?' with the valid name that is nearest to a given one, or an empty string."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[near[0]]}'?" if near else ""


def counted(number: int, noun: str, verbs: str = "") -> str:
    """Return a number with its noun and a verb that agree with it, e.g. '1 file has' and '2 files have'.

    Args:
        number: How many.
        noun: Singular of a noun whose plural ends in s.
        verbs: Singular and plural of a verb, e.g. 'has/have'.
    """
    verb = verbs.split("/")[number != 1] if verbs else ""
    return f"{number} {noun}{'' if number == 1 else 's'} {verb}".rstrip()
