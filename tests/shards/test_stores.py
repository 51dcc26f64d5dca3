"""HTTP servers and the hub give what folders give."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader

from terramind_plugin import TerraMeshDataset
from terramind_plugin.errors import DataError
from terramind_plugin.shards import stores
from tests.shards.serving import COMMIT, Hub, Parts, Plain, serve

FOUR = ["S2L2A", "S1RTC", "S1GRD", "DEM"]


@pytest.fixture(scope="module")
def local(mesh):
    return list(TerraMeshDataset(mesh, "val", FOUR))


def assert_equal(found, wanted):
    assert [sample["key"] for sample in found] == [sample["key"] for sample in wanted]
    for ours, theirs in zip(found, wanted, strict=True):
        for name in FOUR:
            assert torch.equal(ours["image"][name].nan_to_num(7), theirs["image"][name].nan_to_num(7))


@pytest.mark.parametrize("kind", [Parts, Plain], ids=["parts", "whole files"])
def test_http(kind, mesh, local, tmp_path):
    with serve(mesh, kind) as (address, server):
        assert_equal(list(TerraMeshDataset(address, "val", FOUR, cache_dir=tmp_path)), local)
        if kind is Parts:
            headers = sum(last - first + 1 == 512 for _, first, last in server.asked)
            assert headers
            server.asked.clear()
            again = TerraMeshDataset(address, "val", FOUR, cache_dir=tmp_path)  # the indices are kept
            next(iter(again))
            assert not any(last - first == 511 for _, first, last in server.asked)


def test_http_in_workers(mesh, local, tmp_path):
    with serve(mesh) as (address, _):
        data = TerraMeshDataset(address + "/", "val", FOUR, cache_dir=tmp_path)
        next(iter(data))  # connections of this process are not those of the workers
        found = [batch["key"][0] for batch in DataLoader(data, batch_size=1, num_workers=2)]
    assert found == [sample["key"] for sample in local]


def test_servers_that_are_not_there(mesh, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "PAUSE", 0.001)
    with pytest.raises(DataError, match=r"cannot be read: .*Check address and network"):
        TerraMeshDataset("http://127.0.0.1:9", cache_dir=tmp_path)
    with serve(mesh) as (address, _), pytest.raises(DataError, match="holds no folder of a modality"):
        TerraMeshDataset(address, "train", cache_dir=tmp_path)


HUB = """
import sys, torch, terramind_plugin
data = terramind_plugin.TerraMeshDataset(sys.argv[1], "val", ["DEM", "S1GRD"], cache_dir=sys.argv[2])
print(data.revision, data.state_dict()["revision"])
print(*[sample["key"] for sample in data])
"""


def test_the_hub(mesh, local, tmp_path):
    """The library's file system reads parts of files at the commit that a branch stands for."""
    with serve(mesh, Hub) as (address, server):
        settings = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        run = [sys.executable, "-c", HUB, "hub:org/mesh@main", str(tmp_path)]
        result = subprocess.run(run, capture_output=True, text=True, env=settings, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
        commit, listed = result.stdout.splitlines()
        assert commit.split() == [COMMIT, COMMIT]
        assert listed.split() == [sample["key"] for sample in local]
        assert any(name.endswith(".tar") for name, _, _ in server.asked)
        assert not any("main" in path for path in server.paths if "/resolve/" in path)


def test_the_hub_offline(mesh, local, tmp_path):
    """In offline mode the copy in the local hub cache is read."""
    snapshots = tmp_path / "hub" / "datasets--org--mesh" / "snapshots"
    snapshots.mkdir(parents=True)
    (snapshots / COMMIT).symlink_to(mesh)
    (tmp_path / "hub" / "datasets--org--mesh" / "refs").mkdir()
    (tmp_path / "hub" / "datasets--org--mesh" / "refs" / "main").write_text(COMMIT)
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    run = [sys.executable, "-c", HUB, "hub:org/mesh", str(tmp_path)]
    result = subprocess.run(run, capture_output=True, text=True, env=settings, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.splitlines()[0].split() == [COMMIT, COMMIT]
    with pytest.raises(DataError, match="hf download org/other --repo-type dataset"):
        TerraMeshDataset("hub:org/other")


def test_threads_never_get_bytes_of_another_file(tmp_path, monkeypatch):
    """More files than stay open, read from many threads: a number of a closed file may be that of the next one."""
    monkeypatch.setattr(stores, "OPEN_FILES", 2)
    names = [f"{number:02d}" for number in range(30)]
    for name in names:
        (tmp_path / name).write_text(name * 50)
    store = stores.LocalStore(tmp_path)
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda name: store.read(name, 0, 100).decode(), names * 200))
    store.close()
    assert found == [name * 50 for name in names] * 200
