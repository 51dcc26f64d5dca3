"""Work done ahead in a thread, and turns for work that wants the same processors."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()
MUCH_LONGER = 3
"""How many times as long as reading the model takes when reading waits for it."""


class Turns:
    """Lets reading wait while a model works, if the model takes much longer.

    Each thread of a model waits for its slowest at every operation, so one that shares its processor stops all.

    Args:
        needed: Whether both want the same processors. If not, nothing ever waits.
    """

    def __init__(self, needed: bool) -> None:
        self.needed = needed
        self.reading = self.working = 0.0
        """Seconds so far."""
        self._free = threading.Event()
        self._free.set()

    @contextmanager
    def read(self) -> Iterator[None]:
        """Read something, in one thread."""
        self._free.wait()
        start = time.perf_counter()
        yield
        self.reading += time.perf_counter() - start

    @contextmanager
    def work(self) -> Iterator[None]:
        """Work, in another thread."""
        if self.needed and self.working > MUCH_LONGER * self.reading:
            self._free.clear()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._free.set()
        self.working += time.perf_counter() - start


@contextmanager
def ahead(items: Iterable[Item], most: int = 2) -> Iterator[Iterator[Item]]:
    """Give the items of an iterable that a thread works through; its exceptions are raised here.

    Args:
        items: Used in the thread alone.
        most: Items that wait to be taken.
    """
    waiting: queue.Queue[Any] = queue.Queue(maxsize=most)
    stopped = threading.Event()

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:  # handed over, not hidden
            put((_END, error))

    def taken() -> Generator[Item]:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item

    thread = threading.Thread(target=work, name="reading ahead", daemon=True)
    thread.start()
    try:
        with closing(taken()) as iterator:
            yield iterator
    finally:
        stopped.set()
        thread.join()
