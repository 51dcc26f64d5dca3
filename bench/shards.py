"""Tar shards: CPU time of a sample of TerraMesh, beside webdataset with zarr and beside zarr alone."""

from __future__ import annotations

import io
import statistics
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fsspec import FSMap
from fsspec.implementations.zip import ZipFileSystem

from bench.measure import say
from bench.timing import Clock, time_rounds
from terramind_plugin import TerraMeshDataset
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.shards.writer import write_sample, write_shard
from terramind_plugin.simulation.dataset import WORLDS, simulate_chip

SAMPLES = 24
"""Samples of the shard; each reader reads all of them in a round."""
SIDE = 264
"""Height and width of a sample in pixels, as published."""
AIM = 250
"""Samples of S2L2A a second and core that reading should reach."""
SHARD = "majortom_shard_000001"
OURS = "TerraMeshDataset"


def write_samples(root: Path) -> None:
    """Write a shard of simulated samples of S2L2A: int16, one chunk, Blosc with lz4 as zarr 2 writes it."""
    with write_shard(root, "val", SHARD, ["S2L2A"]) as writer:
        for number in range(SAMPLES):
            values = simulate_chip(3, number, SIDE, WORLDS["globe"]).images["S2L2A"]
            values = np.clip(np.nan_to_num(values), 0, 20000).astype(np.int16)
            bands = MODALITIES["S2L2A"].band_names
            place: dict[str, Any] = {"left": 5e5, "top": 5e6, "epsg": 32632, "centre": (9.0, 45.0)}
            content = write_sample(values, bands, sample=f"{number}U_1R_0_0", **place)
            writer.add(f"majortom_val_{number + 1:07d}", {"S2L2A": content})


def read_ours(root: Path) -> Iterator[torch.Tensor]:
    """Yield images by this package."""
    for sample in TerraMeshDataset(root, "val", ["S2L2A"]):
        yield sample["image"]["S2L2A"]


def decode_by_zarr(content: bytes) -> torch.Tensor:
    """Return an image by zarr, from a zip file in memory, as the published reader of TerraMesh does."""
    import zarr

    group: Any = zarr.open_consolidated(FSMap("", ZipFileSystem(io.BytesIO(content))), mode="r", zarr_format=2)
    return torch.from_numpy(np.asarray(group["bands"][0], dtype=np.float32))


def read_by_webdataset(root: Path) -> Iterator[torch.Tensor]:
    """Yield images by webdataset, decoded by zarr."""
    import webdataset

    path = str(root / "val" / "S2L2A" / f"{SHARD}.tar")
    for sample in webdataset.WebDataset(path, shardshuffle=False, empty_check=False):
        yield decode_by_zarr(sample["zarr.zip"])


def read_by_zarr(root: Path) -> Iterator[torch.Tensor]:
    """Yield images by tarfile, decoded by zarr."""
    with tarfile.open(root / "val" / "S2L2A" / f"{SHARD}.tar") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            yield decode_by_zarr(file.read())


READERS: dict[str, Callable[[Path], Iterator[torch.Tensor]]] = {
    OURS: read_ours,
    "webdataset and zarr": read_by_webdataset,
    "tarfile and zarr": read_by_zarr,
}


def measure_shards(repeats: int, clock: Clock) -> dict[str, list[float]]:
    """Return seconds of a sample by reader, one for each round; readers take turns in random order.

    Args:
        repeats: Rounds.
        clock: Clock to measure with.
    """
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(name)
        say("writing a shard")
        write_samples(root)
        images = {reader: list(read(root)) for reader, read in READERS.items()}  # also warms up
        for found in images.values():
            if len(found) != SAMPLES or not all(map(torch.equal, found, images[OURS])):
                raise AssertionError("The readers do not agree.")
        del images
        works = {reader: partial(_read_all, read, root) for reader, read in READERS.items()}
        times = time_rounds(works, repeats, clock)
    return {reader: [second / SAMPLES for second in timing.seconds] for reader, timing in times.items()}


def _read_all(read: Callable[[Path], Iterator[torch.Tensor]], root: Path) -> None:
    for _ in read(root):
        pass


def shard_lines(seconds: dict[str, list[float]]) -> list[str]:
    """Return the report of `measure_shards`.

    Args:
        seconds: Seconds of a sample by reader and round.
    """
    import webdataset
    import zarr

    rate = 1 / statistics.median(seconds[OURS])
    verdict = "met" if rate >= AIM else "**missed**"
    lines = [
        f"S2L2A, {SIDE} x {SIDE} x 12 int16, {SAMPLES} samples a round; zarr {zarr.__version__}, webdataset "
        f"{webdataset.__version__}. All readers give the same float32 tensors.",
        "",
        f"- at least {AIM} samples a second and core — {verdict} ({rate:.0f})",
        "",
        "| reader | ms a sample | samples a second and core | times as long as ours |",
        "| --- | ---: | ---: | ---: |",
    ]
    for reader, times in seconds.items():
        ratios = [time / ours for time, ours in zip(times, seconds[OURS], strict=True)]
        low, middle, high = min(times), statistics.median(times), max(times)
        lines.append(
            f"| {reader} | {1e3 * middle:.2f} ({1e3 * low:.2f} to {1e3 * high:.2f}) | {1 / middle:.0f} | "
            f"{statistics.median(ratios):.2f} |"
        )
    return lines
