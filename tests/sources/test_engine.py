"""The engine: tasks on one process or on a cluster, tried again, a bounded number at once."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.sources import engine


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch):
    monkeypatch.setattr(engine, "DELAY", 0.01)


def square(number):
    return number**2, os.getpid()


class Recorder:
    """Counts attempts of each task in files, so that it works in any process."""

    def __init__(self, folder, action):
        self.folder = folder
        self.action = action

    def __call__(self, task):
        with open(Path(self.folder) / str(task), "a") as file:
            file.write("x")
        return self.action(task, self.attempts(task))

    def attempts(self, task):
        path = Path(self.folder) / str(task)
        return len(path.read_text()) if path.exists() else 0


def fail_twice(task, attempt):
    if task == 1 and attempt < 3:
        raise OSError("503 Service Unavailable")
    return task * 10


def always_fail(task, attempt):
    if task == 1:
        raise DataError("scene 1 cannot be read")
    return task


def die_once(task, attempt):
    if task == 1 and attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def die(task, attempt):
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def fill_disk(task, attempt):
    raise DataError("a.tif cannot be written") from OSError(errno.ENOSPC, "No space left on device")


def misconfigured(task, attempt):
    raise ConfigError("bands are wrong")


def lack_library(task, attempt):
    raise ModuleNotFoundError("No module named 'pyarrow'")


def test_one_process_needs_no_dask(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask", None)
    monkeypatch.setitem(sys.modules, "distributed", None)
    results = list(engine.run(range(4), square))
    assert [(task, result) for task, (result, _) in results] == [(n, n**2) for n in range(4)]
    assert {process for _, (_, process) in results} == {os.getpid()}
    with pytest.raises(ConfigError, match="terramind-plugin\\[sources\\]"):
        list(engine.run(range(4), square, workers=2))


def test_failures_are_tried_again_and_then_reported(tmp_path):
    (tmp_path / "a").mkdir()
    flaky = Recorder(tmp_path / "a", fail_twice)
    assert dict(engine.run(range(3), flaky)) == {0: 0, 1: 10, 2: 20}
    assert [flaky.attempts(n) for n in range(3)] == [1, 3, 1]
    (tmp_path / "b").mkdir()
    broken = Recorder(tmp_path / "b", always_fail)
    results = dict(engine.run(range(3), broken, retries=2))
    assert (results[0], results[2]) == (0, 2)
    assert str(results[1]) == "scene 1 cannot be read"
    assert broken.attempts(1) == 2


@pytest.mark.parametrize(
    ("action", "kind", "words"),
    [
        (fill_disk, DataError, "cannot be written"),
        (misconfigured, ConfigError, "bands are wrong"),
        (lack_library, ConfigError, "A worker lacks a package: No module named 'pyarrow'"),
    ],
)
def test_what_all_tasks_would_share_ends_the_run_at_the_first(tmp_path, action, kind, words):
    work = Recorder(tmp_path, action)
    with pytest.raises(kind, match=words):
        list(engine.run(range(3), work))
    assert [work.attempts(n) for n in range(3)] == [1, 0, 0]


@pytest.mark.parametrize("numbers", [{"workers": 0}, {"retries": 0}])
def test_impossible_numbers(numbers):
    ((name, _),) = numbers.items()
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, got 0"):
        engine.run(range(3), square, **numbers)


def test_no_scheduler_at_the_address(monkeypatch):
    monkeypatch.setattr(engine, "PATIENCE", 1.0)
    with pytest.raises(ConfigError, match=r"No dask scheduler answers at 'tcp://127\.0\.0\.1:9'"):
        list(engine.run(range(3), square, scheduler="tcp://127.0.0.1:9"))


def test_two_workers_in_bounded_numbers_and_a_worker_killed(tmp_path):
    taken = []

    def tasks():
        for number in range(24):
            taken.append(number)
            yield number

    work = Recorder(tmp_path, die_once)
    results = {}
    for count, (task, result) in enumerate(engine.run(tasks(), work, workers=2), start=1):
        results[task] = result
        assert len(taken) - count <= 2 * engine.TASKS_A_WORKER
    assert results == {n: n for n in range(24)}
    assert work.attempts(1) == 2


def test_a_lost_scheduler_ends_the_run_with_one_line(tmp_path):
    """Also what a task that kills its workers becomes: the cluster is the slow part, so they share it."""
    file = tmp_path / "scheduler.json"
    commands = (
        ["-m", "distributed.cli.dask_scheduler", "--scheduler-file", str(file), "--port", "0", "--no-dashboard"],
        ["-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard"],
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), str(Path(__file__).parent)])}
    environment |= {"DASK_DISTRIBUTED__WORKER__LIFETIME__RESTART": "False"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment, "cwd": tmp_path}
    processes = []
    try:
        for words in commands:
            processes.append(subprocess.Popen([sys.executable, *words], **quiet))
            deadline = time.monotonic() + 60
            while not file.exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
        work = Recorder(tmp_path, die)
        work.folder.joinpath("go").touch()
        results = dict(engine.run(range(4), work, scheduler=str(file)))
        assert [results[n] for n in (0, 2, 3)] == [0, 2, 3]
        assert "workers were killed while they ran this task" in str(results[1])
        running = engine.run(range(1000), square, scheduler=str(file))
        next(running)
        processes[0].kill()
        with pytest.raises(DataError, match=r"The dask scheduler of .* has ended\. .* finished parts are kept"):
            list(running)
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()
