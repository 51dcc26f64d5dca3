"""What the operating system does to a run: signals, locks, processes that end with their parent, the date."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from terramind_plugin.errors import ConfigError, one_line

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""Signals that ask a run to stop."""
PR_SET_PDEATHSIG = 1
"""Number of the Linux call that ties a process to its parent (linux/prctl.h)."""
POLL = 0.5
"""Seconds between looks at the parent where the system has no such call."""


def is_further_rank() -> bool:
    """Return whether Lightning has started this process as a further rank of a run."""
    return int(os.environ.get("LOCAL_RANK") or 0) > 0


def exit_status(number: int) -> int:
    """Return the exit status of a process that a signal has stopped: 143 for SIGTERM, 130 for SIGINT.

    A process that another one has started as a further rank ends with 0. Lightning kills the main process of a run as
    soon as one of these ends with another status.

    Args:
        number: The signal.
    """
    return 0 if is_further_rank() else 128 + number


class Stopped(SystemExit):
    """Ends a run that a signal has asked to stop.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(exit_status(number))
        self.number = number


class StopSignals:
    """SIGTERM and SIGINT as requests to stop, while this context is entered.

    A signal raises at once: `Stopped` for SIGTERM, KeyboardInterrupt for SIGINT. It is only noted while `later` is
    entered, so that work can come to a good end first, and while somebody else handles it and calls this handler, as
    Lightning does with SIGTERM. Whatever the process would end with, the context then ends with `Stopped`. Nothing
    changes outside of the main thread, which alone can handle signals.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that came, if one did."""
        self.on_signal: Callable[[int], object] = lambda number: None
        """Called with each signal."""
        self._later = 0
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if isinstance(error, SystemExit | KeyboardInterrupt):  # Lightning has statuses of its own
            self.check()

    def listen(self) -> None:
        """Take the signals back from whoever has asked for them since."""
        for number, handler in self._before.items():
            if handler != signal.SIG_IGN:  # nohup, or a shell that runs the command in the background
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a fork, such as a worker of a data loader
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        again = self.number == number == signal.SIGINT  # whoever presses Ctrl-C twice does not want to wait
        self.number = number
        self.on_signal(number)
        if signal.getsignal(number) != self._handle or (self._later and not again):
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped(number)

    @contextmanager
    def later(self) -> Iterator[None]:
        """Only note signals; `check` then raises."""
        self._later += 1
        try:
            yield
        finally:
            self._later -= 1

    def check(self) -> None:
        """Raise `Stopped` if a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)


def identify(path: str | Path) -> tuple[int, int] | None:
    """Return what all names and links of a file have in common, or None if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    return status.st_dev, status.st_ino


def refuse_inputs(paths: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Refuse to write files over inputs, under whatever name, link or hard link.

    Args:
        paths: Files to write.
        inputs: Files that are read; None for what is not given.

    Raises:
        ConfigError: One is both.
    """
    known = {identify(one) for one in inputs if one is not None} - {None}
    for path in paths:
        if identify(path) in known:
            raise ConfigError(f"{path} is an input and would be overwritten. Choose another place with --out.")


@contextmanager
def locked(path: Path, message: str) -> Iterator[int]:
    """Hold a lock until the block or the process ends, and give its file descriptor.

    A process that inherits the descriptor holds the lock, too.

    Args:
        path: File of the lock; it is made, its content stays as it is, and it is not deleted.
        message: Of the error if another process holds the lock.

    Raises:
        ConfigError: Another process holds the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise ConfigError(message) from None
            # Otherwise a file system without locks.
        yield descriptor
    finally:
        os.close(descriptor)


def end_with_parent(parent: int) -> None:
    """Let the system end this process when its parent ends, however that ends.

    Args:
        parent: Id of the process that has started this one.
    """
    try:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (AttributeError, OSError):  # no Linux
        threading.Thread(target=_watch, args=(parent,), name="watching the parent", daemon=True).start()
    if os.getppid() != parent:  # it has ended before
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    os.kill(os.getpid(), signal.SIGKILL)


def serve(parent: int) -> None:
    """Make this process one that works for another: it ends with it, and leaves Ctrl-C to it.

    Args:
        parent: Id of the process that has started this one.
    """
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def settle_status(exception: BaseException, *, stopped: bool) -> None:
    """Give Lightning's exception for SIGTERM an exit status: without one the process ends as if all were well.

    Args:
        exception: What a run ends with; others stay as they are.
        stopped: Whether the run has received SIGTERM.
    """
    if stopped and isinstance(exception, SystemExit) and exception.code is None:
        exception.code = exit_status(signal.SIGTERM)


def today() -> str:
    """Return the date in UTC, e.g. '2026-01-31'; SOURCE_DATE_EPOCH fixes it, as for other programs.

    Raises:
        ConfigError: SOURCE_DATE_EPOCH is no number of seconds.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        return time.strftime("%Y-%m-%d", time.gmtime(int(text) if text else time.time()))
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(
            f"SOURCE_DATE_EPOCH must be a number of seconds since 1970, e.g. 1767225600, got '{text}' "
            f"({one_line(error)}). Unset it for the date of today."
        ) from None


if __name__ == "__main__":  # python -m terramind_plugin.system PARENT MODULE ARGUMENTS
    end_with_parent(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
