"""Rasters that were cut off or changed, as input: an error that names the file, or the values that were written."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.complete import is_complete
from terramind_plugin.raster.reader import Expected, Source
from terramind_plugin.samples.checks.headers import read_header
from terramind_plugin.simulation.dataset import chip_files, simulate
from tests.runs.running import change, segmentation_config

PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)
TILES = {"tiled": True, "blockxsize": 64, "blockysize": 64}
KINDS: dict[str, dict[str, Any]] = {
    "strips": {"compress": "deflate"},
    "tiles": {"compress": "deflate", **TILES},
    "bands": {"compress": "deflate", "interleave": "band", **TILES},
    "lzw": {"compress": "lzw", "predictor": 2},
    "zstd": {"compress": "zstd", **TILES},
    "plain": {"interleave": "band"},
}
CHECKED = ("strips", "tiles", "bands")
"""Kinds whose blocks have checksums. GDAL does not look at them; `terramind check` does."""


def _write(path: Path, kind: str) -> np.ndarray:
    entry = MODALITIES["S1GRD"]
    values = np.random.default_rng(0).normal(-15, 4, (2, 130, 150)).astype(np.float32)
    path.unlink(missing_ok=True)  # GDAL would open a damaged one first
    options = {**KINDS[kind], **({"predictor": 3} if kind == "lzw" else {})}
    with rasterio.open(
        path, "w", driver="GTiff", count=2, height=130, width=150, dtype="float32", crs="EPSG:32632", transform=PLACE,
        **options,
    ) as file:  # fmt: skip
        file.descriptions = entry.band_names
        file.write(values)
    return values


def _read(path: Path) -> np.ndarray:
    """Return all values as `map` reads them: windows from the upper left to the lower right."""
    source = Source(path, Expected.of(MODALITIES["S1GRD"]))
    try:
        source.keep_rows(64)
        height, width = source.grid.shape
        image = np.zeros((2, height, width), np.float32)
        for row in range(0, height, 64):
            for column in range(0, width, 64):
                here = slice(row, min(row + 64, height)), slice(column, min(column + 64, width))
                part = source.read(row, column, here[0].stop - row, here[1].stop - column)
                image[:, *here] = np.where(part.valid, part.values, np.nan)
        return image
    finally:
        source.close()


Damage = Callable[[bytearray, random.Random], bytearray]
"""Returns the changed content."""


def _cut(content: bytearray, draw: random.Random) -> bytearray:
    return content[: draw.randrange(len(content))]


def _flip_header(content: bytearray, draw: random.Random) -> bytearray:
    for _ in range(draw.choice((1, 1, 4))):
        content[draw.randrange(min(len(content), 500))] ^= 1 << draw.randrange(8)
    return content


def _flip_block(content: bytearray, draw: random.Random) -> bytearray:
    content[draw.randrange(len(content) // 2, len(content))] ^= 1 << draw.randrange(8)
    return content


def _zero_block(content: bytearray, draw: random.Random) -> bytearray:
    first = draw.randrange(len(content) // 2, len(content) - 100)
    content[first : first + 100] = bytes(100)
    return content


DAMAGES: dict[str, Damage] = {"cut": _cut, "header": _flip_header, "block": _flip_block, "zeros": _zero_block}


def _attack(kind: str, damage: str, seed: int, folder: Path) -> str:
    """Return what came of a damaged file: 'refused', 'right', 'seen' by the checksums, or 'other' where it has none."""
    path = folder / "x.tif"
    values = _write(path, kind)
    path.write_bytes(DAMAGES[damage](bytearray(path.read_bytes()), random.Random(seed)))
    try:
        found = _read(path)
    except DataError as error:
        assert "x.tif" in str(error)  # noqa: PT017
        return "refused"
    if np.array_equal(found, values):
        return "right"
    assert damage != "cut", seed
    if damage in ("block", "zeros") and kind in CHECKED:
        assert not is_complete(path), seed
        return "seen"
    return "other"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["strips", "tiles"])
def test_some(kind: str, damage: str, tmp_path: Path) -> None:
    for seed in range(2):
        _attack(kind, damage, seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_many(kind: str, damage: str, tmp_path: Path) -> None:
    results = [_attack(kind, damage, seed, tmp_path) for seed in range(25)]
    print(f"{kind}, {damage}:", {name: results.count(name) for name in sorted(set(results))})


@pytest.mark.slow
def test_data_sets_and_their_check(tmp_path: Path) -> None:
    """A damaged file is a DataError, or the check names it, or the values are those of the whole file."""
    from terramind_plugin.samples.checks.run import check_data
    from tests.check.spoiling import plan

    made = simulate(tmp_path, chips=3, size=64)
    counts = {"refused": 0, "named by the check": 0, "right": 0}
    dataset = _datamodule(made).test_dataset
    expected = dataset[0]
    for seed in range(160):
        draw = random.Random(seed)
        path = chip_files(made.root, made.splits["test"][0])[draw.choice(("S2L1C", "S1GRD", "label"))]
        whole = path.read_bytes()
        path.write_bytes(DAMAGES[draw.choice(("cut", "block", "zeros"))](bytearray(whole), draw))
        try:
            sample = dataset[0]
        except DataError as error:
            assert path.name in str(error)  # noqa: PT017
            counts["refused"] += 1
        else:
            pairs = [(sample["mask"], expected["mask"])]
            pairs += [(sample["image"][name], expected["image"][name]) for name in expected["image"]]
            if all(np.array_equal(first, second) for first, second in pairs):
                counts["right"] += 1
            else:
                assert any(
                    path.name in finding.seen for finding in check_data(plan(made)) if finding.verdict == "error"
                )
                counts["named by the check"] += 1
        path.write_bytes(whole)
    print(counts)
    assert counts["refused"] > 40


def _datamodule(made: Any) -> Any:
    from terramind_plugin.data.datamodule import TerraMindDataModule

    arguments = change(segmentation_config(made), {})["data"]["init_args"]
    module = TerraMindDataModule(**{**arguments, "num_workers": 0})
    module.setup("test")
    return module


def test_a_file_whose_last_block_was_never_written_is_named_by_the_check(tmp_path: Path) -> None:
    """GDAL leaves such files on full disks, and reads zeros."""
    path = tmp_path / "x.tif"
    profile = {"count": 1, "height": 100, "width": 100, "dtype": "uint16", "crs": "EPSG:32632", "transform": PLACE}
    for nodata, problem in ((None, "never written"), (0, "")):
        with rasterio.open(path, "w", SPARSE_OK="TRUE", nodata=nodata, **TILES, **profile) as file:
            file.write(np.ones((1, 64, 100), np.uint16), window=((0, 64), (0, 100)))
        found = read_header(path).problem
        assert problem in found
        assert bool(found) == bool(problem)
