"""Commands in processes of their own that signals can reach, forked from one that has imported what they need."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terramind_plugin.cli import main
from terramind_plugin.inference import job

TIMEOUT = 300


@dataclass(frozen=True)
class Ended:
    """How a process has ended."""

    status: int
    """Exit status, or minus the number of the signal that killed it."""
    text: str
    """What it has printed, on both streams."""
    seconds: float


def run_forked(
    work: Callable[[], Any],
    folder: Path,
    *,
    number: int = signal.SIGTERM,
    after: float | None = None,
    when: Callable[[], bool] | None = None,
) -> Ended:
    """Run something in a forked process, perhaps with a signal, and return how it has ended.

    Args:
        work: Returns an exit status.
        folder: For what is printed, and the process's working directory.
        number: The signal.
        after: Seconds until it is sent, from when the forked process is ready.
        when: Or when to send it.
    """
    assert threading.active_count() == 1 or "PYTEST_XDIST_WORKER" in os.environ, "threads do not survive a fork"
    printed = folder / f"printed{time.monotonic_ns()}.txt"
    child = os.fork()
    if not child:
        _be_the_child(work, folder, printed)
    while not printed.exists():
        time.sleep(0.001)
    start = time.monotonic()
    sent = after is None and when is None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        passed = time.monotonic() - start
        if ended:
            return Ended(os.waitstatus_to_exitcode(status), printed.read_text(errors="replace"), passed)
        if not sent and ((when is not None and when()) or (after is not None and passed > after)):
            os.kill(child, number)
            sent = True
        if passed > TIMEOUT:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.005)


def _be_the_child(work: Callable[[], Any], folder: Path, printed: Path) -> None:
    status: Any = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.chdir(folder)
        job.THREADS = 1  # GDAL's threads, which an earlier test may have started, do not survive a fork
        file = os.open(printed, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        status = work()
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def command(words: Sequence[Any]) -> Callable[[], int]:
    """Return a `terramind` command as what `run_forked` runs."""

    def run() -> int:
        sys.argv = ["terramind"]
        return main([str(word) for word in words])

    return run
