"""Running tasks in this process or on the workers of a dask scheduler, a bounded number at once, with retries.

Tasks are coarse (seconds of work), independent and idempotent. A killed worker loses only its present task, which
another worker repeats. Files are complete or absent, so that nothing unfinished remains.
"""

from __future__ import annotations

import errno
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from terramind_plugin.errors import ConfigError, DataError, one_line

Task = TypeVar("Task")
Result = TypeVar("Result")

GDAL: dict[str, Any] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no listing of the folder beside each scene
    "GDAL_NUM_THREADS": 1,  # workers are the parallelism
    "GDAL_CACHEMAX": 256 * 2**20,  # bytes; GDAL's default is a twentieth of the memory for each worker
    "GDAL_INGESTED_BYTES_AT_OPEN": 16384,  # the header of a COG in one request
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_HTTP_VERSION": "2",
    "GDAL_HTTP_CONNECTTIMEOUT": 20,  # seconds
    "GDAL_HTTP_LOW_SPEED_TIME": 30,  # seconds below the limit of speed after which a request counts as failed
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1000,  # bytes per second
    "GDAL_HTTP_MAX_RETRY": 3,  # for 429 and 5xx, with growing delays
    "GDAL_HTTP_RETRY_DELAY": 0.5,  # seconds before the first retry
    "CPL_VSIL_CURL_CACHE_SIZE": 64 * 2**20,  # bytes
    "VSI_CACHE": "FALSE",  # the cache would read 32 kB around every block a second time
}
"""GDAL's settings in every worker, for rasterio.Env. Source: the docs of GDAL's virtual file systems."""
TASKS_A_WORKER = 2
"""Number of submitted tasks for each thread of a worker: one that runs, and one that is ready to run next."""
DELAY = 0.5
"""Seconds before a failed task is tried again; each further pause is twice as long."""
FRESH = 5.0
"""Seconds after which the number of workers is looked up again."""
STARTS = 3
"""Number of attempts to start workers."""
PATIENCE = 30.0
"""Seconds within which a scheduler must answer."""
EXTRA = "pip install 'terramind-plugin[sources]'"
"""Command that installs the packages for satellite catalogues."""
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
"""Errors of the disk to which results are written; they would affect every attempt and every task."""


def run(
    tasks: Iterable[Task],
    work: Callable[[Task], Result],
    *,
    workers: int = 1,
    scheduler: str | None = None,
    retries: int = 3,
) -> Generator[tuple[Task, Result | Exception], None, None]:
    """Yield each task with its result, or with the error of its last attempt, in the order of completion.

    Tasks are taken from the iterable only as fast as results are consumed, so that memory does not grow with their
    number. One worker without a scheduler needs no dask: the tasks run in this process, one after the other.

    Args:
        tasks: Independent tasks that can be pickled.
        work: Function that can be pickled. It may run twice for one task, so it must be idempotent.
        workers: Number of processes of a cluster on this machine; ignored if a scheduler is given.
        scheduler: Address of a running dask scheduler, e.g. 'tcp://host:8786', or its scheduler file.
        retries: Number of attempts before a task counts as failed.

    Raises:
        ConfigError: A number is too small, dask is not installed, the scheduler does not answer, or its workers lack
            this package.
        DataError: The scheduler was lost.
        OSError: The disk that results are written to is full, read-only or not allowed: every task would fail.
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}.")
    if retries < 1:
        raise ConfigError(f"retries must be at least 1, got {retries}.")
    if workers == 1 and scheduler is None:
        return _run_here(tasks, work, retries)
    return _run_on_cluster(tasks, work, workers, scheduler, retries)


@contextmanager
def kept(workers: int = 1, scheduler: str | None = None) -> Iterator[None]:
    """Keep the cluster of the first `run` with these arguments for further runs in this context.

    Args:
        workers: As in `run`.
        scheduler: As in `run`.
    """
    with ExitStack() as stack:
        _kept[workers, scheduler] = stack
        try:
            yield
        finally:
            del _kept[workers, scheduler]
            _clients.pop((workers, scheduler), None)


_kept: dict[tuple[int, str | None], ExitStack] = {}
_clients: dict[tuple[int, str | None], Any] = {}


def _run_here(
    tasks: Iterable[Task], work: Callable[[Task], Result], retries: int
) -> Generator[tuple[Task, Result | Exception], None, None]:
    for task in tasks:
        yield task, _checked(_attempt(work, task, retries))


def _attempt(work: Callable[[Task], Result], task: Task, retries: int) -> Result | Exception:
    """Return the result of a task, or its last error. Workers call this function."""
    import rasterio

    for attempt in range(retries):
        try:
            with rasterio.Env(**GDAL):
                return work(task)
        except Exception as error:
            last = error
        if _is_final(last):
            break
        if attempt + 1 < retries:
            time.sleep(DELAY * 2**attempt)
    return last


def _is_final(error: Exception) -> bool:
    """Return whether another attempt cannot help: a setting is wrong, the disk is full, or a package is missing."""
    return isinstance(error, ConfigError | ImportError) or _is_local(error)


def _is_local(error: BaseException | None) -> bool:
    return error is not None and ((isinstance(error, OSError) and error.errno in _LOCAL) or _is_local(error.__cause__))


def _checked(result: Result | Exception) -> Result | Exception:
    """Return a result, or raise an error that would affect all further tasks."""
    if isinstance(result, ConfigError):
        raise result
    if isinstance(result, ImportError):
        raise ConfigError(f"A worker lacks a package: {one_line(result)}. Install it there: {EXTRA}") from result
    if isinstance(result, Exception) and _is_local(result):
        raise result
    return result


def _run_on_cluster(
    tasks: Iterable[Task], work: Callable[[Task], Result], workers: int, scheduler: str | None, retries: int
) -> Generator[tuple[Task, Result | Exception], None, None]:
    name = scheduler or "this machine"
    with _connect(workers, scheduler) as client:
        import distributed

        run_id, number = uuid4().hex[:8], 0  # for a known key, a scheduler would return the earlier result
        rest = iter(tasks)
        waiting: dict[str, Task] = {}
        done: Any = distributed.as_completed()  # type: ignore[no-untyped-call]
        room = _Room(client, name)
        while True:
            for task in islice(rest, max(0, room.tasks() - len(waiting))):
                key, number = f"terramind-{run_id}-{number}", number + 1
                future = client.submit(_attempt, work, task, retries, key=key, pure=False)
                waiting[key] = task
                done.add(future)
                del future  # the scheduler drops a result when its future is deleted
            if not waiting:
                return
            future = next(done)
            task = waiting.pop(future.key)
            result = _result_of(future, name)
            del future
            yield task, _checked(result)


class _Room:
    """Number of tasks that may be submitted, which follows the number of workers.

    Args:
        client: Client of the scheduler.
        scheduler: Name of the scheduler, for messages.
    """

    def __init__(self, client: Any, scheduler: str) -> None:
        self._client = client
        self._scheduler = scheduler
        self._tasks, self._until = 0, 0.0

    def tasks(self) -> int:
        """Return the number of tasks; the scheduler is asked at most every `FRESH` seconds.

        Raises:
            DataError: The scheduler was lost.
        """
        if time.monotonic() >= self._until:
            try:
                threads = sum(self._client.nthreads().values())
            except (OSError, RuntimeError) as error:
                raise _lost(self._scheduler) from error
            self._tasks, self._until = max(1, TASKS_A_WORKER * threads), time.monotonic() + FRESH
        return self._tasks


def _lost(scheduler: str) -> DataError:
    # Hide errors of dask's unsent messages, which would follow this error.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    return DataError(
        f"The dask scheduler of {scheduler} has ended. Start one, and run the same command again: finished parts are "
        "kept."
    )


def _result_of(future: Any, scheduler: str) -> Any:
    """Return the result of a finished future, or the error of its task.

    Raises:
        DataError: The scheduler was lost.
    """
    try:
        if future.status == "finished":
            return future.result()
        error = None if future.status == "cancelled" else future.exception()
    except OSError as lost:
        raise _lost(scheduler) from lost
    if error is None:
        raise _lost(scheduler)
    if type(error).__name__ == "KilledWorker":
        return DataError("Several workers were killed while they ran this task. Is their memory full? See their logs.")
    return error


@contextmanager
def _connect(workers: int, scheduler: str | None) -> Iterator[Any]:
    """Yield a client of a scheduler, or of a cluster of worker processes that ends with the context."""
    key = workers, scheduler
    stack = _kept.get(key)
    if stack is None:
        with _start(workers, scheduler) as client:
            yield client
        return
    if key not in _clients or _clients[key].status != "running":
        _clients[key] = stack.enter_context(_start(workers, scheduler))
    yield _clients[key]


@contextmanager
def _start(workers: int, scheduler: str | None) -> Iterator[Any]:
    """Yield a new client."""
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ConfigError(f"Several workers need dask: {EXTRA}, or leave out --workers and --scheduler.") from error
    with ExitStack() as stack:
        # Temporary folder of the workers, which would otherwise use the working folder.
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="terramind-dask-", ignore_cleanup_errors=True))
        settings = {
            "temporary-directory": scratch,
            "distributed.comm.timeouts.connect": f"{PATIENCE:g}s",
            "distributed.worker.memory.spill": False,
            "distributed.admin.tick.limit": "1h",  # avoids warnings on a busy machine
        }
        stack.enter_context(dask.config.set(settings))
        stack.enter_context(_silent())
        if scheduler is None:
            cluster = stack.enter_context(_start_workers(LocalCluster, workers))
            client: Any = Client(cluster, timeout=PATIENCE)  # type: ignore[no-untyped-call]
        else:
            client = _join(Client, scheduler)
        yield stack.enter_context(client)


def _start_workers(local_cluster: Any, workers: int) -> Any:
    """Return a cluster on this machine. If a worker ends while it starts, the whole cluster is started again.

    Raises:
        DataError: Workers end at every attempt.
    """
    for attempt in range(STARTS):
        try:
            return local_cluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # any free port instead of 8787
                memory_limit=0,  # dask would pause workers whose freed memory is not returned
                silence_logs=logging.CRITICAL,
            )
        except (RuntimeError, OSError) as error:
            last = error
        time.sleep(DELAY * attempt)
    raise DataError(
        f"The {workers} workers ended while they started: {one_line(last)}. Is the memory full? Run the same command "
        "again, or with fewer --workers: finished parts are kept."
    ) from last


@contextmanager
def _silent() -> Iterator[None]:
    """Hide what distributed logs: whatever matters comes back as an error."""
    # Each by itself: distributed gives its loggers levels of their own.
    names = ["distributed", *(one for one in logging.root.manager.loggerDict if one.startswith("distributed."))]
    before = {one: logging.getLogger(one).level for one in names}
    for one in names:
        logging.getLogger(one).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for one, level in before.items():
            logging.getLogger(one).setLevel(level)


def _join(client: Any, scheduler: str) -> Any:
    """Return a client of a running scheduler."""
    is_file = Path(scheduler).is_file()
    try:
        joined = client(scheduler_file=scheduler) if is_file else client(scheduler, timeout=PATIENCE)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"No dask scheduler answers at '{scheduler}' ({one_line(error)}). Give the address that `dask scheduler` "
            "prints, e.g. --scheduler tcp://host:8786."
        ) from error
    if not joined.nthreads():
        print(f"terramind: the scheduler {scheduler} has no worker yet; waiting for one.", file=sys.stderr)
    return joined
