"""Full disks of many sizes: an error in one line, nothing damaged under a final name, and the same bytes afterwards."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from matplotlib.figure import Figure
from rasterio.crs import CRS
from rasterio.transform import Affine

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.export import merge
from terramind_plugin.pretrain.token_store import Recipe, StoredChip, write_tokens
from terramind_plugin.raster.complete import check_complete
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.raster.writer import Layer, overview_factors, write_geotiff, write_layer
from terramind_plugin.simulation.dataset import chip_files, simulate
from terramind_plugin.system.files import write_bytes, write_figure, write_rows, write_text
from tests.attacks.writing import Inputs, call, small_disk

PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)
SHARES = (0.02, 0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 0.94, 0.97)
"""Sizes of disks, as shares of what is written."""


def _noise(dtype: str, *shape: int) -> np.ndarray:
    random = np.random.default_rng(0)
    if dtype.startswith("float"):
        return random.normal(size=shape).astype(dtype)
    return random.integers(0, 255 if dtype == "uint8" else 3000, shape).astype(dtype)


def _raster(dtype: str, *shape: int) -> Callable[[Path], object]:
    array = _noise(dtype, *shape)
    return lambda path: write_geotiff(
        path, array, crs="EPSG:32632", transform=PLACE, descriptions=[f"band {i}" for i in range(shape[0])]
    )


def _scene(
    dtype: str, height: int, width: int, *, cog: bool, classes: bool = False, noisy: bool = False
) -> Callable[[Path], object]:
    colors = {0: (1, 2, 3, 255), 1: (9, 8, 7, 255)} if classes else None
    names = ("class",) if classes else ("a", "b")
    layer = Layer("x", dtype, names, "1", 255 if classes else float("nan"), colors, noisy=noisy)
    image = _noise(dtype, len(names), height, width) % (2 if classes else 1000)
    grid = Grid(height, width, CRS.from_epsg(32632), PLACE)
    return lambda path: write_layer(path, lambda a, b: image[:, a:b], layer, grid, {"model": "m"}, cog=cog)


def _figure(path: Path) -> None:
    figure = Figure(figsize=(6, 6))
    figure.subplots().imshow(_noise("float32", 600, 600))
    write_figure(path, figure)


TEXT = json.dumps(_noise("uint16", 40_000).tolist())
TABLE = [["a", "b"], *_noise("int32", 9000, 2).tolist()]
WEIGHTS = {"state_dict": {"a": torch.randn(60_000), "b": torch.randn(300)}}
IDS = _noise("uint16", 50, 8, 14, 14)
WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda path: write_text(path, TEXT),
    "table": lambda path: write_rows(path, TABLE),
    "picture": _figure,
    "checkpoint": lambda path: merge._write(path, WEIGHTS),
    "bytes": lambda path: write_bytes(path, memoryview(IDS.data)),
    "tokens": lambda path: write_tokens(
        path, IDS, Recipe("t", "w", 64, 8), [StoredChip(f"c{number}", 1, 2, "s", 1, 1) for number in range(50)]
    ),
    "raster of uint8": _raster("uint8", 1, 256, 300),
    "raster of int16": _raster("int16", 1, 200, 100),
    "raster of uint16": _raster("uint16", 13, 64, 64),
    "raster of uint32": _raster("uint32", 2, 300, 70),
    "raster of float32": _raster("float32", 2, 256, 256),
    "raster of float64": _raster("float64", 1, 100, 300),
    "scene of classes": _scene("uint8", 700, 900, cog=False, classes=True),
    "scene of values": _scene("float32", 600, 500, cog=False),
    "optimised scene of classes": _scene("uint8", 700, 900, cog=True, classes=True),
    "optimised scene of values": _scene("float32", 600, 500, cog=True),
    "optimised scene of vectors": _scene("float32", 100, 200, cog=True, noisy=True),
    "small scene": _scene("float32", 100, 200, cog=False),
}


def _read(path: Path) -> bytes:
    """Return what a file holds; safetensors writes the same metadata in any order."""
    content = path.read_bytes()
    if content[8:9] != b"{":
        return content
    end = 8 + int.from_bytes(content[:8], "little")
    return json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]


@pytest.fixture
def largest_file() -> Iterator[Callable[[int], None]]:
    """Give a function that lets no file of this process grow beyond some bytes, as if the disk were full."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda count: resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def _fails(write: Callable[[Path], object], path: Path) -> bool:
    """Return whether a writer says that it could not write, with the name of the file."""
    try:
        write(path)
    except (OSError, ConfigError, DataError) as error:
        assert path.name in str(error), error  # noqa: PT017
        return True
    return False


@pytest.mark.parametrize("name", ["table", "checkpoint", "tokens", "raster of uint16", "scene of classes"])
def test_a_few_writers(name: str, tmp_path: Path, largest_file: Any) -> None:
    WRITERS[name](tmp_path / "whole")
    whole = _read(tmp_path / "whole")
    (tmp_path / "x").write_text("before")
    for share in (0.1, 0.9, 0.999):
        largest_file(int(share * len(whole)))
        assert _fails(WRITERS[name], tmp_path / "x")
        largest_file(resource.RLIM_INFINITY)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["whole", "x"]
        assert (tmp_path / "x").read_text() == "before"
    WRITERS[name](tmp_path / "x")
    assert _read(tmp_path / "x") == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_writers_on_small_disks(name: str, tmp_path: Path, disk: Path) -> None:
    """Nothing is there but whole files, whatever the size of the disk; in steps of a page around what is needed."""
    write = WRITERS[name]
    write(tmp_path / "whole")
    whole = _read(tmp_path / "whole")
    need = -(-len(whole) // 1024)
    sizes = {int(need * share) // 4 * 4 + 4 for share in SHARES} | {need // 4 * 4 + step for step in range(-24, 12, 4)}
    if name.startswith("optimised"):
        sizes |= {int(need * (1 + share)) for share in SHARES}
    failed = 0
    for size in sorted(size for size in sizes if size >= 8):
        with small_disk(disk, size):
            if _fails(write, disk / "x"):
                failed += 1
                assert list(disk.iterdir()) == [], size
            else:
                assert [path.name for path in disk.iterdir()] == ["x"], size
                assert _read(disk / "x") == whole, size
    assert failed >= 5
    print(f"{name}: {failed} full disks of {len(sizes)}")


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut off at the end": lambda content: content[:-1],
    "cut in half": lambda content: content[: len(content) // 2],
    "its end never written": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
    "a web page": lambda content: b"<html>not found</html>",
}


def _files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): _read(path) for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_data_set_whose_files_are_damaged_is_completed(tmp_path: Path) -> None:
    """A file counts as finished by what it holds, not by its name."""
    made = simulate(tmp_path, chips=5, size=32)
    whole = _files(tmp_path)
    for number, (damage, name) in enumerate(zip(DAMAGES.values(), made.chip_ids, strict=True)):
        path = list(chip_files(tmp_path, name).values())[number]
        path.write_bytes(damage(path.read_bytes()))
    seen: list[tuple[int, int]] = []
    simulate(tmp_path, chips=5, size=32, on_chip=lambda *counts: seen.append(counts))
    assert seen == [(number, 5) for number in range(1, 6)]
    assert _files(tmp_path) == whole
    # A file of GDAL's with blocks that were never written can be read: they are zeros.
    path = chip_files(tmp_path, made.chip_ids[0])["S2L2A"]
    with rasterio.open(path) as file:
        profile = file.profile
    with rasterio.open(path, "w", **{**profile, "SPARSE_OK": "TRUE"}):
        pass
    simulate(tmp_path, chips=5, size=32)
    assert _files(tmp_path) == whole


def test_a_block_or_overview_that_is_missing_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    profile = {"count": 1, "height": 600, "width": 520, "dtype": "float32", "tiled": True, "crs": "EPSG:32632",
               "blockxsize": 256, "blockysize": 256, "SPARSE_OK": "TRUE", "transform": PLACE}  # fmt: skip
    image = _noise("float32", 1, 600, 520)
    with rasterio.open(path, "w", **profile) as file:
        file.write(image)
    check_complete(path, lambda first, last: image[:, first:last], overviews=0)
    with pytest.raises(OSError, match="0 of 2 overviews were written"):
        check_complete(path, overviews=2)
    with pytest.raises(OSError, match="rows 256 to 511 differ from the values written"):
        check_complete(path, lambda first, last: image[:, first:last] + (first == 256))
    with rasterio.open(path, "w", **profile) as file:
        file.write(image[:, :256], window=((0, 256), (0, 520)))
    with pytest.raises(OSError, match="the block in row 1, column 0 was not written"):
        check_complete(path)
    assert overview_factors(Grid(256, 100, CRS(), PLACE)) == []
    assert overview_factors(Grid(257, 100, CRS(), PLACE)) == [2]


WRITING = (
    "simulate", "figure", "merge", "export", "tokenize", "reconstruct", "generate", "generate-scene", "map", "predict",
    "zero-shot", "check", "embed", "embed-zarr", "embed-chips", "export-onnx", "export-torch", "export-hub",
)  # fmt: skip


def _final(root: Path) -> dict[str, bytes]:
    """Return all files that have their final name."""
    return {name: content for name, content in _files(root).items() if ".partial/" not in name}


def _used(folder: Path) -> int:
    """Return the KiB that the files of a folder need on a disk of their own."""
    return sum(4 * -(-path.lstat().st_size // 4096) if path.is_file() else 4 for path in folder.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("command", WRITING)
def test_commands_on_small_disks(
    command: str, inputs: Inputs, tmp_path: Path, disk: Path, capfd: Any, monkeypatch: Any
) -> None:
    """What fails says so and leaves nothing damaged; once there is room the same command gives the same files."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    # What `check` finds in the data decides on its exit status, too.
    success = call(inputs.words(command, tmp_path / "whole"))
    assert success == 0 or command == "check"
    whole = _final(tmp_path / "whole")
    capfd.readouterr()
    need, failed = _used(tmp_path / "whole"), 0
    for size in sorted({max(4, int(need * share) // 4 * 4) for share in SHARES}):
        with small_disk(disk, size):
            status = call(inputs.words(command, disk / "out"))
            error = capfd.readouterr().err
            assert "Traceback" not in error, (size, error)
            done = _final(disk / "out")
            assert {name: whole.get(name) for name in done} == done, size
            if done.keys() == whole.keys():
                assert status == success, (size, error)
            else:
                failed += 1
                assert status == 2, (size, error)
                assert any(line.startswith("terramind: ") for line in error.splitlines()), (size, error)
            subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
            assert call(inputs.words(command, disk / "out")) == success
            assert _final(disk / "out") == whole, size
    assert failed
    print(f"{command}: {failed} full disks")


@pytest.mark.slow
def test_checkpoints_of_a_training_run(inputs: Inputs, disk: Path, capfd: Any) -> None:
    """Lightning copies a checkpoint to its name: what does not fit must not stay there in part."""
    for size in (64, 4000, 40_000):
        with small_disk(disk, size):
            assert call(inputs.words("fit", disk / "out")) == 2
            assert "epoch=0.ckpt: No space left on device. Free some space" in capfd.readouterr().err
            assert not [path for path in disk.rglob("*") if ".ckpt" in path.name]
