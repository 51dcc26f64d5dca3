"""Work done ahead in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()


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
