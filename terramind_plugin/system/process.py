"""Services of the operating system: signals, locks, processes that end with their parent, memory, the date."""

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
"""Seconds between looks at a parent, where the system has no such call, and at a lock."""
RESET = Path("/proc/self/clear_refs")
"""File that restarts the peak of the resident set when '5' is written to it (Linux)."""


def is_further_rank() -> bool:
    """Return whether Lightning has started this process as a further rank of a run."""
    return int(os.environ.get("LOCAL_RANK") or 0) > 0


def exit_status(number: int) -> int:
    """Return the exit status of a process that a signal has stopped: 143 for SIGTERM, 130 for SIGINT.

    A further rank ends with 0: Lightning kills the main process of a run as soon as one of its ranks ends otherwise.
    """
    return 0 if is_further_rank() else 128 + number


class Stopped(SystemExit):
    """Ends a run that a signal has asked to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(exit_status(number))
        self.number = number


class StopSignals:
    """Context in which SIGTERM and SIGINT are requests to stop.

    A signal raises at once: `Stopped` for SIGTERM, KeyboardInterrupt for SIGINT. It is only noted while `later` is
    entered, so that work can be finished first, and while another handler calls this one, as Lightning's handler of
    SIGTERM does. The context then ends with `Stopped`, whatever else the process would end with. Outside of the main
    thread, which alone can handle signals, nothing changes.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """Signal that has come, if any."""
        self.on_signal: Callable[[int], object] = lambda number: None
        """Function that is called with each signal."""
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
        """Handle the signals again, whatever handlers have been set since."""
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
        """Only note signals in this block; `check` then raises."""
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
    """Return device and inode, which all names and links of a file share, or None if there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
    return status.st_dev, status.st_ino


def refuse_inputs(paths: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Raise a ConfigError if one of the files to write is an input, by whatever name, link or hard link.

    Args:
        paths: Files to write.
        inputs: Files that are read; None stands for an input that is not given.
    """
    known = {identify(one) for one in inputs if one is not None} - {None}
    for path in paths:
        if identify(path) in known:
            raise ConfigError(f"{path} is an input and would be overwritten. Choose another place with --out.")


@contextmanager
def locked(path: Path, message: str, patience: float = 0.0) -> Iterator[int]:
    """Hold a lock until the block or the process ends, and give its file descriptor.

    A process that inherits the descriptor also holds the lock.

    Args:
        path: File of the lock. It is created, never changed or deleted.
        message: Message of the ConfigError that is raised if another process holds the lock.
        patience: Seconds to wait for another process that is about to end.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        end = time.monotonic() + patience
        while not _take(descriptor):
            if time.monotonic() >= end:
                raise ConfigError(message)
            time.sleep(POLL)
        status = os.fstat(descriptor)
        if identify(path) != (status.st_dev, status.st_ino):  # whoever held the lock has removed the file meanwhile
            raise ConfigError(message)
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    """Lock an open file, and return False if another process holds the lock."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # any other error comes from a file system without locks
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def end_with_parent(parent: int) -> None:
    """Let the system end this process when its parent, given by its id, ends for whatever reason."""
    try:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    except (AttributeError, OSError):  # no Linux
        threading.Thread(target=_watch, args=(parent,), name="watching the parent", daemon=True).start()
    if os.getppid() != parent:  # it has ended already
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    os.kill(os.getpid(), signal.SIGKILL)


def serve(parent: int) -> None:
    """Make this process a worker of its parent, given by its id: end with the parent, and leave Ctrl-C to it."""
    end_with_parent(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def settle_status(exception: BaseException, *, stopped: bool) -> None:
    """Give Lightning's exception for SIGTERM an exit status; without one the process would end with 0.

    Args:
        exception: The exception that has ended a run; any other exception stays as it is.
        stopped: Whether the run has received SIGTERM.
    """
    if stopped and isinstance(exception, SystemExit) and exception.code is None:
        exception.code = exit_status(signal.SIGTERM)


def today() -> str:
    """Return the date in UTC, e.g. '2026-01-31'; SOURCE_DATE_EPOCH fixes it, as for other programs.

    Raises:
        ConfigError: SOURCE_DATE_EPOCH is not a number of seconds.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        return time.strftime("%Y-%m-%d", time.gmtime(int(text) if text else time.time()))
    except (ValueError, OverflowError, OSError) as error:
        raise ConfigError(
            f"SOURCE_DATE_EPOCH must be a number of seconds since 1970, e.g. 1767225600, got '{text}' "
            f"({one_line(error)}). Unset it for the date of today."
        ) from None


def restart_peak() -> int:
    """Start to measure the peak of the resident set ('VmHWM') here, and return the resident set in bytes."""
    if RESET.exists():
        RESET.write_text("5")
    return read_status("VmRSS")


def read_status(field: str) -> int:
    """Return a field of this process's status in bytes, or 0 on systems without it.

    Args:
        field: 'VmRSS' for the resident set, 'VmHWM' for its peak.
    """
    return _read_size(Path("/proc/self/status"), field)


def _read_size(table: Path, field: str) -> int:
    """Return the bytes that a table of the kernel gives in kB, or 0 if there is no such table."""
    if not table.exists():
        return 0
    return next(int(line.split()[1]) * 1024 for line in table.read_text().splitlines() if line.startswith(f"{field}:"))


def give_back() -> None:
    """Return freed memory to the system, which glibc keeps between blocks in use; takes some milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def available() -> int:
    """Return the bytes of memory that this process can still take within its control group, or 0 if unknown."""
    free = _read_size(Path("/proc/meminfo"), "MemAvailable")
    group = Path("/sys/fs/cgroup")
    limit, statistics = group / "memory.max", group / "memory.stat"
    if free and limit.exists() and statistics.exists() and limit.read_text().strip().isdigit():
        used = dict(line.split() for line in statistics.read_text().splitlines())
        free = min(free, max(0, int(limit.read_text()) - sum(int(used.get(key, 0)) for key in ("anon", "shmem"))))
    return free


if __name__ == "__main__":  # python -m terramind_plugin.system.process PARENT MODULE ARGUMENTS
    end_with_parent(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
