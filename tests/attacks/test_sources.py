"""SIGKILL of a worker, of the scheduler and of the command at random moments; failing servers; memory; CPU time."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from terramind_plugin.simulation.catalogue import simulate_catalogue
from terramind_plugin.sources import engine, regions
from terramind_plugin.sources.credentials import sign
from terramind_plugin.sources.mosaic import Feed
from terramind_plugin.sources.plan import make_request
from terramind_plugin.system.process import read_status
from tests.sources.server import serve

MOMENTS = 10
COMMAND = "import sys; sys.argv[0] = 'terramind'; from terramind_plugin.cli import main; sys.exit(main())"
LONGEST = 180
"""Seconds after which a command counts as hanging."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("catalogue")
    simulate_catalogue(root, 240)
    return root


def words(world, out: Path) -> list[str]:
    return ["chips", "--stac", f"{world}/catalog.json", "--catalogue", "planetary_computer",
            "--aoi", f"{world}/aoi.geojson", "--date", "2021-06-01/2022-08-31", "--modalities", "S2L2A,S1RTC,DEM,LULC",
            "--size", "32", "--max_cloud", "0.5", "--out", str(out)]  # fmt: skip


def over_http(command: list[str], server) -> list[str]:
    """Return a command that reads the catalogue from a server."""
    return [f"{server.url}/catalog.json" if word.endswith("/catalog.json") else word for word in command]


def start(command: list[str], **options) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *command],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate(timeout=LONGEST)
    return process.returncode, errors


def pixels(out: Path) -> dict[str, bytes]:
    """Return the files of chips, without what names the folder itself."""
    found = {p.relative_to(out).as_posix(): p for p in sorted(out.rglob("*")) if p.is_file()}
    assert not [name for name in found if name.endswith(".tmp")]
    return {name: path.read_bytes() for name, path in found.items() if not name.endswith((".yaml", "chips.json"))}


def children(process: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True).stdout.split()
    return [int(one) for one in found]


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """Return the files of a run that nobody disturbed, and the time from its plan to its end."""
    out = tmp_path_factory.mktemp("whole") / "chips"
    process = start(words(world, out))
    wait_for(lambda: (out / "plan.parquet").is_file())
    begun = time.monotonic()
    assert finish(process)[0] == 0
    return pixels(out), time.monotonic() - begun


@pytest.mark.slow
def test_a_killed_command_leaves_no_partial_file_and_goes_on(world, whole, tmp_path):
    expected, took = whole
    rng = random.Random(1)
    killed = 0
    for number in range(MOMENTS):
        out = tmp_path / str(number)
        process = start(words(world, out))
        wait_for(lambda out=out: (out / "plan.parquet").is_file())
        time.sleep(rng.uniform(0, took))
        process.kill()
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        done = {p: p.stat().st_mtime_ns for p in (out / "done").glob("*.json")}
        images = {
            p: p.stat().st_mtime_ns for d in done for p in out.glob(f"*/{d.stem}.tif") if p.parent.name != "label"
        }
        assert finish(start(words(world, out)))[0] == 0
        assert pixels(out) == expected
        assert all(p.stat().st_mtime_ns == at for p, at in (done | images).items()), "something was done twice"
    assert killed >= MOMENTS // 2


@pytest.mark.slow
def test_killed_workers_cost_nothing(world, whole, tmp_path):
    """The blocks of a worker that is killed are made by another; ten kills in as many runs as they take."""
    expected, _ = whole
    rng = random.Random(2)
    killed = run = 0
    while killed < MOMENTS:
        out = tmp_path / str(run)
        run += 1
        process = start([*words(world, out), "--workers", "2"])
        wait_for(lambda process=process: len(workers_of(process.pid)) == 2 or process.poll() is not None)
        time.sleep(rng.uniform(0, 0.6))
        found = workers_of(process.pid)
        if process.poll() is None and found:
            os.kill(rng.choice(found), signal.SIGKILL)
            killed += 1
        status, errors = finish(process)
        assert status == 0, errors
        assert pixels(out) == expected
        assert run <= 3 * MOMENTS


def workers_of(process: int) -> list[int]:
    """Return the worker processes of a command."""
    found = []
    for child in children(process):
        try:
            line = Path(f"/proc/{child}/cmdline").read_text()
        except OSError:
            continue
        if "spawn_main" in line:
            found.append(child)
    return found


@pytest.mark.slow
def test_a_killed_scheduler_ends_the_command_in_words_and_the_same_command_goes_on(world, whole, tmp_path):
    expected, took = whole
    rng = random.Random(3)
    lost = 0
    for number in range(MOMENTS):
        out, file = tmp_path / f"out{number}", tmp_path / f"{number}.json"
        with cluster(file) as (scheduler, _):
            process = start([*words(world, out), "--scheduler", str(file)])
            wait_for(lambda out=out: (out / "done").is_dir())
            time.sleep(rng.uniform(0, 1.5 * took))
            scheduler.kill()
            status, errors = finish(process)
        if status:
            assert status == 2
            late = r"The dask scheduler of .* has ended\. .* finished parts are kept\."
            early = r"No dask scheduler answers at .*"  # it was killed before the command had joined it
            assert re.search(f"terramind: ({late}|{early})", errors)
            assert "Traceback" not in errors
            lost += 1
        with cluster(tmp_path / f"{number}b.json"):
            status, errors = finish(start([*words(world, out), "--scheduler", str(tmp_path / f"{number}b.json")]))
        assert status == 0, errors
        assert pixels(out) == expected
    assert lost >= 3


class cluster:
    """A scheduler with two workers in processes of their own."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.processes: list[subprocess.Popen] = []

    def __enter__(self):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": self.file.parent}
        quiet["env"] = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
        options = ["--scheduler-file", str(self.file), "--no-dashboard"]
        self.processes = [
            subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_scheduler", *options, "--port", "0"], **quiet)
        ]
        wait_for(self.file.exists)
        worker = [sys.executable, "-m", "distributed.cli.dask_worker", *options, "--nthreads", "1", "--no-nanny"]
        self.processes += [subprocess.Popen([*worker, "--death-timeout", "20"], **quiet) for _ in range(2)]
        return self.processes[0], self.processes[1:]

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("action", [403, 429, 503, "timeout", "truncate"])
def test_a_server_that_fails_costs_its_chips_only_and_they_are_listed(world, tmp_path, action):
    """A file fails at every attempt: the other chips are written, and the next run is complete."""
    with serve(world) as server:
        scene = "2021-07-11_117/vv.tif"
        server.fail(scene, action, hold=60)
        command = [
            word.replace(str(world) + "/catalog.json", f"{server.url}/catalog.json")
            for word in words(world, tmp_path / "o")
        ]
        command[command.index("--modalities") + 1] = "S1RTC"
        command[command.index("--date") + 1] = "2021-07-01/2021-07-30"
        environment = {"GDAL_HTTP_TIMEOUT": "2", "GDAL_HTTP_MAX_RETRY": "0"} if action == "timeout" else {}
        for key, value in environment.items():
            os.environ[key] = value
        try:
            status, errors = finish(start(command))
        finally:
            for key in environment:
                del os.environ[key]
        last = errors.strip().splitlines()[-1]
        records = [json.loads(p.read_text()) for p in (tmp_path / "o" / "done").glob("*.json")]
        assert "Traceback" not in errors
        assert status == 2, errors
        assert "20210711" in last
        assert "--skip_scenes" in last
        server.faults.clear()
        status, errors = finish(start(command))
        assert status == 0, errors
        again = [json.loads(p.read_text()) for p in (tmp_path / "o" / "done").glob("*.json")]
        assert len(again) > len(records)


@pytest.mark.slow
def test_expired_signatures_are_made_anew(world, tmp_path, monkeypatch):
    """Each file is signed just before it is opened, and again when that fails."""
    from terramind_plugin.cli import main
    from terramind_plugin.sources import datasets

    assert sign("https://example.org/a.tif") == "https://example.org/a.tif"
    with serve(world, signed=True) as server:
        signed = []

        def fresh(address: str) -> str:
            signed.append(address)
            return server.sign(address, 2.0 if len(signed) % 3 else -1.0) if address.endswith(".tif") else address

        monkeypatch.setattr(datasets, "sign", fresh)
        command = [
            word.replace(str(world) + "/catalog.json", f"{server.url}/catalog.json")
            for word in words(world, tmp_path / "o")
        ]
        command[command.index("--modalities") + 1] = "S1RTC,DEM"
        assert main(command) == 0
        assert [one.status for one in server.requests].count(403) > 0


def touch(number: int) -> int:
    return int(np.ones(1000).sum()) + number


@pytest.mark.slow
def test_the_engine_takes_little_time_and_memory_that_does_not_grow():
    """At most 0.1 s of this process for a task, and 1,000 tasks take no more memory than 100."""
    with engine.kept(2):
        list(engine.run(range(100), touch, workers=2))
        before, cpu = read_status("VmRSS"), time.process_time()
        list(engine.run(range(1000), touch, workers=2))
        assert (time.process_time() - cpu) / 1000 < 0.1
        assert read_status("VmRSS") < 1.1 * before


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_blocks(world, tmp_path, monkeypatch):
    """The process that reads has, after 1,000 blocks, within a tenth the memory that it had after 10."""
    monkeypatch.setattr(regions, "BLOCK_SIDE", 6)
    request = make_request(["S2L2A"], "2021-07-10", [f"{world}/catalog.json"], ["planetary_computer"])
    found = regions.plan_regions(request, world / "aoi.geojson", tmp_path / "plan")
    assert sum(len(region.blocks) for region in found) > 1000
    sizes, made = {}, 0
    for region in found:
        feed = Feed(region, tmp_path / region.name)
        feed.prepare()
        for row in range(0, region.grid.height, 6):
            feed.need(row, row + 6)
            made += -(-region.grid.width // 6)
            if made >= 10:
                sizes.setdefault(10, read_status("VmRSS"))
            if made >= 1000:
                sizes.setdefault(1000, read_status("VmRSS"))
        feed.close()
    assert sizes[1000] < 1.1 * sizes[10]
