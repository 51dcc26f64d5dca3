"""Samples as published, each once, in orders that repeat, from local shards."""

import multiprocessing
import pickle
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from terramind_plugin import TerraMeshDataset
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.shards.order import draw_order, part_of
from tests.shards.packing import LAYOUT, TYPES, centre_of, folders_of, key_of, pack, values_of

FOUR = ["S2L2A", "S1RTC", "S1GRD", "DEM"]
KEYS = [
    key_of(shard, "val", number) for number, shard in enumerate(name for name, n in LAYOUT.items() for _ in range(n))
]


def keys(data):
    return [sample["key"] for sample in data]


def test_samples_are_as_published(mesh):
    data = TerraMeshDataset(mesh, split="val", modalities=list(TYPES), shuffle=False, seed=0)
    found = list(data)
    assert [sample["key"] for sample in found] == KEYS
    assert len(data) == len(KEYS)
    for number, sample in enumerate(found):
        for folder in TYPES:
            image, there = sample["image"][folder], folder in folders_of(sample["key"])
            assert image.dtype == torch.float32
            assert bool(sample["modality_mask"][folder]) is there
            wanted = values_of(number, folder).astype(np.float32) if there else np.full(image.shape, np.nan)
            np.testing.assert_array_equal(image.numpy(), wanted)
        assert sample["center"].tolist() == list(centre_of(number))
    assert data.skipped == {}


def test_a_loader_stacks_samples_with_and_without_a_modality(mesh):
    batch = next(iter(DataLoader(TerraMeshDataset(mesh, "val", FOUR), batch_size=12)))
    assert batch["image"]["S1GRD"].shape == (12, 2, 24, 24)
    assert batch["modality_mask"]["S1GRD"].tolist() == [False] * 9 + [True] * 3
    assert (batch["modality_mask"]["S1GRD"] ^ batch["modality_mask"]["S1RTC"]).all()


def test_nothing_heavy_is_imported(mesh):
    code = (
        f"import sys, terramind_plugin; data = terramind_plugin.TerraMeshDataset({str(mesh)!r}); next(iter(data));"
        "print({'zarr', 'webdataset', 'xarray', 'terratorch', 'lightning', 'rasterio'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_other_names_and_one_subset(mesh):
    data = TerraMeshDataset(mesh, modalities=["rgb", "s1_grd"])
    sample = list(data)[-1]
    assert list(sample["image"]) == ["rgb", "s1_grd"]
    assert bool(sample["modality_mask"]["s1_grd"])
    only = TerraMeshDataset(mesh, modalities=["S1GRD"])  # samples without anything are left out
    assert keys(only) == KEYS[9:]


def test_orders_repeat_and_differ(mesh):
    orders = {seed: keys(TerraMeshDataset(mesh, modalities=["LULC"], shuffle=True, seed=seed)) for seed in (0, 1)}
    assert orders[0] == keys(TerraMeshDataset(mesh, modalities=["LULC"], shuffle=True))
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == KEYS
    data = TerraMeshDataset(mesh, modalities=["LULC"], shuffle=True)
    next(iter(data))
    assert keys(data) == orders[0]  # a look at the first sample changes nothing
    data.set_epoch(1)
    assert keys(data) != orders[0]


def test_the_buffer_bounds_the_moves():
    shards, start = [], 0
    for count in (300, 200, 500):
        shards.append(np.arange(start, start + count))
        start += count
    options = {"shuffle": True, "seed": 3, "epoch": 0}
    plain = draw_order(shards, ["a"] * 3, buffer=1, **options)
    moved = draw_order(shards, ["a"] * 3, buffer=50, **options)
    assert sorted(moved) == list(range(1000))
    place = np.argsort(plain)
    assert 20 < np.abs(place[moved] - np.arange(1000)).max() < 50


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("workers", [0, 1, 3, 5])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_each_sample_once_with_fewer_shards_than_processes(ranks, workers, batch_size):
    order = np.random.default_rng(0).permutation(12)
    options = {"ranks": ranks, "workers": max(workers, 1), "batch_size": batch_size}
    parts = [
        part_of(order, rank=rank, worker=worker, **options)
        for rank in range(ranks)
        for worker in range(max(workers, 1))
    ]
    assert sorted(np.concatenate(parts)) == list(range(12))
    # What rank 0 gets, batch by batch, does not depend on the number of workers.
    mine, whole = (
        parts[: max(workers, 1)],
        part_of(order, rank=0, ranks=ranks, worker=0, workers=1, batch_size=batch_size),
    )
    dealt = [list(part[i : i + batch_size]) for i in range(0, 12, batch_size) for part in mine if len(part) > i]
    assert [number for batch in dealt for number in batch] == list(whole)


def test_loaders_with_workers(mesh):
    """Ranks and workers together give each sample once; batches are the same for any number of workers."""
    found, batches = [], {}
    for workers in (0, 2):
        for rank in range(2):
            data = TerraMeshDataset(
                mesh, modalities=["DEM"], shuffle=True, seed=5, batch_size=2, rank=rank, world_size=2
            )
            loader = DataLoader(data, batch_size=2, num_workers=workers)
            batches[workers, rank] = [batch["key"] for batch in loader]
            found += [key for batch in batches[workers, rank] for key in batch] if workers else []
    assert sorted(found) == KEYS
    assert all(batches[0, rank] == batches[2, rank] for rank in range(2))


def distributed(root, rank, meeting, queue):
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    data = TerraMeshDataset(root, modalities=["DEM"], shuffle=True, seed=5)
    queue.put([key for batch in DataLoader(data, batch_size=2, num_workers=2) for key in batch["key"]])
    queue.put([pickle.loads(pickle.dumps(data))._rank == rank] * (1 - rank))
    torch.distributed.destroy_process_group()


def test_two_distributed_processes(mesh, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    started = [context.Process(target=distributed, args=(mesh, rank, tmp_path / "meeting", queue)) for rank in range(2)]
    for process in started:
        process.start()
    found = [item for _ in range(4) for item in queue.get(timeout=60)]
    for process in started:
        process.join()
    assert sorted(item for item in found if item is not True) == KEYS
    assert found.count(True) == 1  # for workers that are spawned


def test_persistent_workers_hear_of_the_next_epoch(mesh):
    data = TerraMeshDataset(mesh, modalities=["DEM"], shuffle=True, batch_size=2)
    loader = DataLoader(data, batch_size=2, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in range(2):
        data.set_epoch(epoch)
        orders.append([key for batch in loader for key in batch["key"]])
    assert orders[0] != orders[1]
    assert sorted(orders[1]) == KEYS


def test_going_on_in_the_middle_of_a_shard(mesh):
    def make():
        return TerraMeshDataset(mesh, modalities=["DEM"], shuffle=True, seed=2)

    whole, first = keys(make()), make()
    seen = [sample["key"] for _, sample in zip(range(7), first, strict=False)]
    rest = make()
    rest.load_state_dict(first.state_dict())
    assert seen + keys(rest) == whole
    assert keys(rest) == whole  # and then from the beginning
    rest.start(0, 4)
    loader = DataLoader(rest, batch_size=1, num_workers=2)
    assert [batch["key"][0] for batch in loader] == whole[4:]
    other = TerraMeshDataset(mesh, modalities=["DEM"], shuffle=True, seed=3)
    with pytest.raises(ConfigError, match="seed"):
        other.load_state_dict(first.state_dict())


def killed(root, queue):
    data = TerraMeshDataset(root, modalities=["DEM"], shuffle=True, seed=2)
    for sample in data:
        queue.put((sample["key"], data.state_dict()))


def test_a_killed_process_goes_on(mesh):
    context = multiprocessing.get_context("fork")
    queue = context.Queue(1)
    process = context.Process(target=killed, args=(mesh, queue))
    process.start()
    got = [queue.get() for _ in range(3)]
    process.kill()
    process.join()
    data = TerraMeshDataset(mesh, modalities=["DEM"], shuffle=True, seed=2)
    whole = keys(data)
    data.load_state_dict(got[-1][1])
    assert [key for key, _ in got] + keys(data) == whole


def test_weights_mix_the_subsets(mesh):
    data = TerraMeshDataset(mesh, modalities=["DEM"], shuffle=True, weights={"majortom": 3, "ssl4eos12": 1})
    found = keys(data)
    assert len(found) == len(set(found)) == len(data) == 12
    data = TerraMeshDataset(mesh, modalities=["DEM"], weights={"majortom": 1, "ssl4eos12": 1})
    found = keys(data)
    assert [key.partition("_")[0] for key in found] == ["majortom", "ssl4eos12"] * 3
    assert keys(TerraMeshDataset(mesh, modalities=["DEM"], weights={"ssl4eos12": 1})) == KEYS[9:]
    with pytest.raises(ConfigError, match="Did you mean 'majortom'"):
        TerraMeshDataset(mesh, weights={"major_tom": 1})
    with pytest.raises(ConfigError, match="above 0"):
        TerraMeshDataset(mesh, weights={"majortom": 0})


def test_filters_by_the_metadata_table(mesh, tmp_path):
    import pandas as pd

    root = tmp_path / "mesh"
    shutil.copytree(mesh, root)
    table = pd.DataFrame({
        "zarr": [f"{key}.zarr.zip" for key in KEYS], "tar": "any.tar", "cloud_cover": range(12),
        "center_lon": [centre_of(n)[0] for n in range(12)], "center_lat": [centre_of(n)[1] for n in range(12)],
    })  # fmt: skip
    table[:-1].to_parquet(root / "val_metadata.parquet")
    assert keys(TerraMeshDataset(root, modalities=["DEM"], max_cloud_cover=4)) == KEYS[:5]
    assert keys(TerraMeshDataset(root, modalities=["DEM"], area=[10.5, 40, 13.5, 46.5])) == KEYS[2:4]
    assert keys(TerraMeshDataset(root, modalities=["DEM"], area=[19.5, 40, 9.5, 60])) == [KEYS[0]]  # 20 is not listed
    assert keys(TerraMeshDataset(root, modalities=["DEM"], ranges={"cloud_cover": [3, 5]})) == KEYS[3:6]
    with pytest.raises(ConfigError, match="Did you mean 'cloud_cover'"):
        TerraMeshDataset(root, ranges={"cloud_cove": [3, 5]})
    with pytest.raises(DataError, match="None of 12 samples fits"):
        TerraMeshDataset(root, max_cloud_cover=-1)
    with pytest.raises(DataError, match="download it"):
        TerraMeshDataset(mesh, max_cloud_cover=3)


def test_details(mesh):
    sample = next(iter(TerraMeshDataset(mesh, modalities=["S2L2A"], details=True)))
    details = sample["details"]["S2L2A"]
    assert details["crs"] == 32632
    assert details["sample"] == "0U_1R_0_0"
    assert details["time"].dtype == "datetime64[ns]"
    assert details["x"][0] == 500005.0


def test_dates_of_ssl4eo(tmp_path):
    from terramind_plugin.shards.writer import write_sample, write_shard

    values = np.arange(4 * 12 * 8 * 8, dtype="u2").reshape(4, 12, 8, 8)
    place = {"left": 0, "top": 0, "epsg": 32632, "centre": (9, 45), "sample": "1"}
    names = [f"B{n}" for n in (1, 2, 3, 4, 5, 6, 7, 8)] + ["B8A", "B9", "B11", "B12"]
    with write_shard(tmp_path, "train", "ssl4eos12_train_seasonal_data_000001", ["S2L2A"]) as writer:
        writer.add("0000001", {"S2L2A": write_sample(values, names, times=range(4), **place)})
    sample = next(iter(TerraMeshDataset(tmp_path, "train", ["S2L2A"])))
    np.testing.assert_array_equal(sample["image"]["S2L2A"].numpy(), values.transpose(1, 0, 2, 3))


def test_bands_in_another_order_are_read_by_name(tmp_path):
    from terramind_plugin.shards.writer import write_shard
    from tests.shards.packing import member

    with write_shard(tmp_path, "val", "majortom_shard_000001", ["S1RTC"]) as writer:
        writer.add(
            "majortom_val_0000001", {"S1RTC": member(0, "S1RTC", values_of(0, "S1RTC")[::-1], bands=["vh", "vv"])}
        )
    sample = next(iter(TerraMeshDataset(tmp_path, "val", ["S1RTC"])))
    np.testing.assert_array_equal(sample["image"]["S1RTC"].numpy(), values_of(0, "S1RTC").astype("f4"))


def test_both_numberings(tmp_path):
    """Shards are listed: the first release has 8 + 1 in val, a later one 81 + 9 that overlap in their numbers."""
    layouts = {
        "first": {**{f"majortom_shard_{n:06d}": 1 for n in range(1, 9)}, "ssl4eos12_shard_000009": 1},
        "later": {
            **{f"majortom_shard_{n:06d}": 1 for n in range(1, 82)},
            **{f"ssl4eos12_shard_{n:06d}": 1 for n in range(1, 10)},
        },
    }
    for name, layout in layouts.items():
        pack(tmp_path / name, "val", layout, ["DEM", "S1GRD"])
        found = keys(TerraMeshDataset(tmp_path / name, modalities=["DEM", "S1GRD"]))
        assert len(found) == len(set(found)) == len(layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modalities": ["S1"]}, "S1GRD or S1RTC"),
        ({"modalities": []}, "must be a list"),
        ({"modalities": "S2L2A"}, "must be a list"),
        ({"modalities": ["S1GRD", "sen1grd"]}, "twice"),
        ({"modalities": ["coords"]}, "center"),
        ({"split": "test"}, "Found beside it: val"),
        ({"on_error": "ignore"}, "raise or skip"),
        ({"buffer": 0}, "buffer"),
        ({"seed": -1}, "seed"),
        ({"rank": 2, "world_size": 2}, "rank below world_size"),
        ({"revision": "main"}, "revision is for data sets on the hub"),
        ({"root": "hub:TerraMesh"}, "hub:ORG/NAME"),
        ({"root": "s3://bucket/mesh"}, "cannot be opened"),
        ({"root": "/nowhere/at/all"}, "There is no folder /nowhere/at/all"),
    ],
)
def test_wrong_arguments(mesh, change, message):
    with pytest.raises((ConfigError, DataError), match=message):
        TerraMeshDataset(**{"root": mesh, **change})


def test_values_equal_what_zarr_reads(mesh, tmp_path):
    """The direct decode equals that of the zarr library, whose files are read as well."""
    zarr = pytest.importorskip("zarr")
    import tarfile

    with tarfile.open(mesh / "val/S2L2A/majortom_shard_000001.tar") as tar:
        tar.extract("majortom_val_0000002.zarr.zip", tmp_path, filter="data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = zarr.open_group(
            zarr.storage.ZipStore(tmp_path / "majortom_val_0000002.zarr.zip", mode="r"), zarr_format=2, mode="r"
        )
        assert group.metadata.consolidated_metadata is not None
        np.testing.assert_array_equal(group["bands"][0], values_of(1, "S2L2A"))
        assert list(group["band"][:2]) == ["B01", "B02"]
