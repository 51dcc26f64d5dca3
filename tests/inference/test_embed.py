"""`terramind embed`: vectors of patches and windows, in files that other libraries open."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import threading
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import rioxarray
import shapely
import torch
import xarray
from rasterio.transform import Affine
from rasterio.windows import Window, bounds
from rio_cogeo import cog_validate

from terramind_plugin.builders import build_backbone
from terramind_plugin.cli import main
from terramind_plugin.inference.cells import plan_patches, plan_whole_windows
from terramind_plugin.inference.options import EmbeddingOptions
from terramind_plugin.inference.vectors import taken_on
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.model.standardisation import Standardisation
from tests.inference.conftest import write_modality

assert rioxarray  # gives xarray the accessor rio
NANO, PATCH, CROP, DIM = "terramind_sim_nano", 8, 64, 128
GAP = (slice(24, 56), slice(96, 200))
"""Pixels without data: rows 3 to 6 and columns 12 to 24 of the patches."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_modality(tmp_path_factory.mktemp("scene") / "scene_20240506.tif", "S2L2A", (200, 330), GAP)


def _embed(*words: Any, model: Any = NANO) -> int:
    return main(["embed", "--model", str(model), "--accelerator", "cpu", *map(str, words)])


def _one(scene: Path, out: Path, *words: Any) -> Path:
    assert _embed(scene, "--modality", "S2L2A", "--out", out, *words) == 0
    (path,) = [path for path in out.iterdir() if path.suffix != ".png"]
    return path


def _read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def _window(scene: Path, row: int, column: int, side: int = CROP) -> torch.Tensor:
    """Return a window as the model takes it: gaps filled with the mean, mirrored beyond the scene, standardised."""
    entry = MODALITIES["S2L2A"]
    with rasterio.open(scene) as file:
        values = file.read(window=Window(column, row, side, side))
    mean = np.array(entry.mean, np.float32)[:, None, None]
    values = np.where(np.isnan(values), mean, values)
    beyond = [(0, 0), *((0, side - length) for length in values.shape[1:])]
    values = torch.from_numpy(np.pad(values, beyond, mode="reflect"))
    return Standardisation(entry.mean, entry.std)(values[None])


@cache
def _backbone() -> torch.nn.Module:
    return build_backbone(NANO, ["S2L2A"], pretrained=True).eval()


def _features(scene: Path, *corner: int, layer: int = -1) -> np.ndarray:
    """Return the vectors of a window as the backbone gives them, [dimensions, rows, columns]."""
    with torch.no_grad():
        tokens = _backbone()(_window(scene, *corner))[layer][0]
    return tokens.T.reshape(DIM, CROP // PATCH, CROP // PATCH).numpy()


@pytest.fixture(scope="module")
def vectors(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Return the vectors of the scene, [dimensions, rows, columns], as float32."""
    return _read(_one(scene, tmp_path_factory.mktemp("vectors")))


def test_a_cog_has_the_vectors_of_the_backbone(scene: Path, vectors: np.ndarray, tmp_path: Path) -> None:
    path = _one(scene, tmp_path, "--preview", "--batch_size", "3")
    assert path.name == "scene_20240506_embedding.tif"
    assert cog_validate(str(path)) == (True, [], [])
    with rasterio.open(path) as file:
        assert (file.count, file.shape, file.dtypes[0]) == (DIM, (25, 42), "float32")
        assert file.crs.to_epsg() == 32632
        assert file.transform == Affine(80, 0, 500_000, 0, -80, 5_000_000)
        assert file.bounds == (500_000, 5_000_000 - 2000, 500_000 + 3360, 5_000_000)
        assert file.descriptions[0] == "dimension_0"
        assert np.isnan(file.nodata)
        tags = file.tags()
    assert (tags["model"], tags["layer"], tags["pool"]) == (NANO, "5", "none")
    empty = np.zeros((25, 42), bool)
    empty[3:7, 12:25] = True
    found = _read(path)
    assert (np.isnan(found) == empty).all()
    for row, column in [(0, 0), (0, 64), (128, 256)]:  # with a gap, and the last window before the edge
        here = np.s_[:, row // PATCH : row // PATCH + 8, column // PATCH : column // PATCH + 8]
        known = ~np.isnan(found[here])
        np.testing.assert_allclose(found[here][known], _features(scene, row, column)[known], atol=2e-5)
    # The last row and column of windows end with the scene, and count where no earlier window does.
    last = _features(scene, 136, 272)
    np.testing.assert_allclose(found[:, 24:, 40:], last[:, -1:, -2:], atol=2e-5)
    np.testing.assert_allclose(found, vectors, atol=2e-5)  # another batch size
    with rasterio.open(tmp_path / "scene_20240506_embed.png") as picture:
        assert picture.count >= 3


def test_another_layer(scene: Path, tmp_path: Path) -> None:
    chip = tmp_path / "chip.tif"
    with rasterio.open(scene) as file:
        profile = file.profile | {"height": CROP, "width": CROP}
        values = file.read(window=Window(200, 100, CROP, CROP))
    with rasterio.open(chip, "w", **profile) as file:
        file.write(values)
    path = _one(chip, tmp_path / "out", "--layer", "-4")
    np.testing.assert_allclose(_read(path), _features(chip, 0, 0, layer=2), atol=2e-5)
    with rasterio.open(path) as file:
        assert file.tags()["layer"] == "2"


def test_precisions(scene: Path, vectors: np.ndarray, tmp_path: Path) -> None:
    half = _one(scene, tmp_path / "half", "--dtype", "float16")
    with rasterio.open(half) as file:
        # From GDAL 3.11 on the same file counts as one of float16.
        assert file.dtypes[0] == "float16" or file.tags(1, ns="IMAGE_STRUCTURE")["NBITS"] == "16"
        found = file.read()
    np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(found, vectors, rtol=2**-11, atol=2e-5)
    small = _one(scene, tmp_path / "small", "--dtype", "int8")
    with rasterio.open(small) as file:
        assert (file.dtypes[0], file.nodata) == ("int8", -128)
        stored, scales = file.read(), np.array(file.scales, np.float32)[:, None, None]
        assert file.read(masked=True).mask[0].sum() == 4 * 13
    assert ((stored == -128) == np.isnan(vectors)).all()
    known = ~np.isnan(vectors[0])
    _check_coarse(vectors[:, known].T, (stored * scales)[:, known].T)


def _check_coarse(true: np.ndarray, coarse: np.ndarray) -> None:
    """Check the promise of int8: a cosine error of 1e-4, and 3 % of the 20 nearest neighbours."""
    true, coarse = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (true, coarse))
    assert (1 - (true * coarse).sum(axis=1)).max() <= 1e-4
    nearest = [np.argsort(-(x @ x.T), axis=1, kind="stable")[:, 1:21] for x in (true, coarse)]
    kept = np.mean([len(set(a) & set(b)) / 20 for a, b in zip(*nearest, strict=True)])
    assert kept >= 0.97, kept


@pytest.mark.parametrize(
    "dtype", ["int8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("float32", "float16"))]
)
def test_zarr(scene: Path, vectors: np.ndarray, tmp_path: Path, dtype: str) -> None:
    path = _one(scene, tmp_path, "--format", "zarr", "--dtype", dtype)
    data = xarray.open_zarr(path)
    assert data.embedding.dims == ("dimension", "y", "x")
    assert json.loads((path / "zarr.json").read_text())["zarr_format"] == 3
    np.testing.assert_allclose(data.x, 500_000 + 80 * (np.arange(42) + 0.5))
    np.testing.assert_allclose(data.y, 5_000_000 - 80 * (np.arange(25) + 0.5))
    assert rasterio.crs.CRS.from_wkt(data.spatial_ref.attrs["crs_wkt"]).to_epsg() == 32632
    assert (data.embedding.encoding | data.embedding.attrs)["grid_mapping"] == "spatial_ref"
    assert data.rio.transform() == Affine(80, 0, 500_000, 0, -80, 5_000_000)
    found = data.embedding.values * (data.scale.values[:, None, None] if dtype == "int8" else 1)
    largest = np.nanmax(np.abs(vectors), axis=(1, 2), keepdims=True)
    assert (np.isnan(found) == np.isnan(vectors)).all()
    worst = {"float32": 0, "float16": 2**-11, "int8": 0.5 / 127}[dtype]
    assert np.nanmax((np.abs(found - vectors) - 2e-5) / largest) <= worst * 1.01


def test_parquet(scene: Path, vectors: np.ndarray, tmp_path: Path) -> None:
    path = _one(scene, tmp_path, "--format", "parquet")
    table = geopandas.read_parquet(path)
    assert table.crs.to_epsg() == 32632
    assert len(table) == 25 * 42 - 4 * 13
    np.testing.assert_allclose(np.stack(table.vector), vectors[:, table.row, table.column].T, atol=2e-5)
    assert set(table.source) == {"scene_20240506.tif"}
    assert str(table.date.iloc[0]) == "2024-05-06"
    with rasterio.open(scene) as file:
        for number in (0, 41, 600, len(table) - 1):
            row, column = table.row[number], table.column[number]
            high, wide = min(8, 200 - 8 * row), min(8, 330 - 8 * column)  # the last patch reaches beyond the scene
            box = shapely.box(*bounds(Window(8 * column, 8 * row, wide, high), file.transform))
            assert table.geometry[number].equals(box)
    small = geopandas.read_parquet(_one(scene, tmp_path / "small", "--format", "parquet", "--dtype", "int8"))
    assert np.stack(small.vector).dtype == np.int8


def test_a_vector_for_each_window(scene: Path, tmp_path: Path) -> None:
    table = geopandas.read_parquet(_one(scene, tmp_path / "a", "--pool", "mean", "--format", "parquet"))
    assert len(table) == 4 * 6
    assert (table.geometry.area == 640 * 640).all()
    np.testing.assert_array_equal(table.total_bounds, [500_000, 4_998_000, 503_300, 5_000_000])
    for number in (0, 1, 23):
        left, _, _, top = table.geometry[number].bounds
        corner = round((5_000_000 - top) / 10), round((left - 500_000) / 10)
        features = _features(scene, *corner).reshape(DIM, -1)
        if number == 1:  # columns 53 to 116: patches that have no data do not count
            with rasterio.open(scene) as file:
                valid = ~np.isnan(file.read(1, window=Window(corner[1], corner[0], 64, 64)))
            features = features[:, valid.reshape(8, 8, 8, 8).any(axis=(1, 3)).ravel()]
            assert features.shape[1] < 64
        np.testing.assert_allclose(table.vector[number], features.mean(axis=1), atol=1e-5)
    with rasterio.open(_one(scene, tmp_path / "b", "--pool", "mean")) as file:
        assert file.shape == (4, 6)
        np.testing.assert_allclose(file.read()[:, 3, 5], table.vector[23], atol=2e-5)
        for index in [(0, 0), (3, 5)]:  # pixels lie in the middle of windows
            middle = shapely.Point(file.xy(*index))
            assert middle.distance(table.geometry[6 * index[0] + index[1]].centroid) < 10


def test_windows_that_overlap_are_blended(tmp_path: Path) -> None:
    scene = write_modality(tmp_path / "small.tif", "S2L2A", (128, 72), (slice(24, 56), slice(0, 20)))
    vectors = _read(_one(scene, tmp_path / "whole"))
    blended = _read(_one(scene, tmp_path / "a", "--stride", "32"))
    assert np.nanmax(np.abs(blended - vectors)) > 0.01
    assert (np.isnan(blended) == np.isnan(vectors)).all()
    inner = _read(_one(scene, tmp_path / "b", "--margin", "16", "--stride", "32"))
    # With margins each patch has one window, in whose middle it lies.
    np.testing.assert_allclose(inner[:, 6:10, 3:6], _features(scene, 32, 0)[:, 2:6, 3:6], atol=2e-5)


def test_plans() -> None:
    options = EmbeddingOptions(Path("out")).settle(64, 8)
    assert (options.crop, options.stride, options.margin) == (64, 64, 0)
    for length in (3, 8, 63, 64, 65, 128, 200, 330):
        plan = plan_patches((length, 64), options, 8)
        owners = np.zeros(plan.rows.length, int)
        for index in range(len(plan.rows.starts)):
            first, last = plan.rows.used(index)
            owners[first:last] += 1
            np.testing.assert_allclose(plan.rows.weights(index), 1)
        assert (owners == 1).all()
        assert plan.rows.length == -(-length // 8)
        whole = plan_whole_windows((length, 64), options, 8).rows
        ends = [whole.extent(index) for index in range(whole.length)]
        assert ends[0][0] == 0
        assert ends[-1][1] == max(length, -(-length // 8) * 8) if len(ends) == 1 else ends[-1][1] == length
        assert all(before[1] >= after[0] for before, after in pairwise(ends))


def test_several_modalities_and_scenes(tmp_path: Path) -> None:
    files = {name: [write_modality(tmp_path / f"{name}_{i}.tif", name, (64, 64)) for i in "ab"]
             for name in ("S2L2A", "S1GRD")}  # fmt: skip
    scenes = [word for name, paths in files.items() for word in ("--scene", f"{name}={paths[0]}", paths[1])]
    assert _embed(*scenes, "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "S2L2A_a_embedding.tif", "S2L2A_b_embedding.tif",
    ]  # fmt: skip
    backbone = build_backbone(NANO, ["S2L2A", "S1GRD"], pretrained=True).eval()
    x = {name: Standardisation(MODALITIES[name].mean, MODALITIES[name].std)(torch.from_numpy(_read(paths[0]))[None])
         for name, paths in files.items()}  # fmt: skip
    with torch.no_grad():
        tokens = backbone(x)[-1][0]
    found = _read(tmp_path / "out" / "S2L2A_a_embedding.tif")
    np.testing.assert_allclose(found, tokens.T.reshape(found.shape), atol=2e-5)


def test_chips_go_in_batches(tmp_path: Path, monkeypatch: Any) -> None:
    """Chips of one size share batches, with the numbers and files of one chip alone; a run that was stopped goes on."""
    from terramind_plugin.inference.embedder import Embedder

    sizes = [(64, 64), (40, 64), (64, 64), (60, 64), (64, 64), (64, 64)]
    gaps = [None, None, (slice(0, 8), slice(0, 16)), None, (slice(None), slice(None)), None]
    chips = [write_modality(tmp_path / f"chip{number}.tif", "S2L2A", size, gap)
             for number, (size, gap) in enumerate(zip(sizes, gaps, strict=True))]  # fmt: skip
    for number, chip in enumerate(chips):
        with rasterio.open(chip, "r+") as file:
            file.write(file.read() * (1 + number / 5))
    forward, batches = Embedder.forward, []

    def counting(self: Any, images: Any, corners: Any) -> torch.Tensor:
        batches.append(len(corners))
        return forward(self, images, corners)

    monkeypatch.setattr(Embedder, "forward", counting)
    words = [*chips, "--modality", "S2L2A", "--dtype", "int8", "--batch_size"]
    assert _embed(*words, 3, "--out", tmp_path / "a") == 0
    assert batches == [3, 1, 1]  # the empty chip is in no batch, and one has a window of its own size
    assert _embed(*words[:-2], "float32", "--batch_size", 1, "--out", tmp_path / "b") == 0
    names = [f"chip{number}_embedding.tif" for number in range(6)]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    for name in names:
        with rasterio.open(tmp_path / "a" / name) as file:
            coarse, scales = file.read(), np.array(file.scales, np.float32)[:, None, None]
        alone = _read(tmp_path / "b" / name)
        assert ((coarse == -128) == np.isnan(alone)).all()
        assert np.nanmax(np.abs(coarse * scales - alone) / scales, initial=0) < 0.51
    kept = (tmp_path / "a" / names[2]).read_bytes()
    for name in names[2:]:
        (tmp_path / "a" / name).unlink()
    batches.clear()
    assert _embed(*words, 3, "--out", tmp_path / "a") == 0
    assert batches == [3, 1]  # chip1 is there
    assert (tmp_path / "a" / names[2]).read_bytes() == kept


@pytest.mark.slow
def test_two_processes_write_the_same_vectors(scene: Path, tmp_path: Path) -> None:
    chips = [write_modality(tmp_path / f"chip{number}.tif", "S2L2A", (64, 64)) for number in range(5)]
    for devices in "12":
        out = tmp_path / devices
        words = [scene, *chips, "--modality", "S2L2A", "--model", NANO, "--accelerator", "cpu", "--batch_size", "2",
                 "--devices", devices, "--out", out]  # fmt: skip
        command = [sys.executable, "-m", "terramind_plugin.cli", "embed", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 6
    one, two = (sorted((tmp_path / devices).iterdir()) for devices in "12")
    assert [path.name for path in one] == [path.name for path in two]
    assert len(one) == 6
    for path, other in zip(one, two, strict=True):
        np.testing.assert_allclose(_read(path), _read(other), atol=2e-5)


def test_selected_bands(tmp_path: Path) -> None:
    names = ["B02", "B03", "B04"]
    path = write_modality(tmp_path / "a.tif", "S2L2A", (64, 64))
    backbone = build_backbone(NANO, ["S2L2A"], bands={"S2L2A": names}, pretrained=True).eval()
    with torch.no_grad():
        tokens = backbone(_window(path, 0, 0)[:, 1:4])[-1][0]
    for number, words in enumerate(["BLUE,GREEN,RED", "S2L2A=B02,B03,B04"]):
        found = _read(_one(path, tmp_path / f"out{number}", "--bands", words))
        np.testing.assert_allclose(found, tokens.T.reshape(found.shape), atol=2e-5)


def test_a_checkpoint_of_a_task(tmp_path: Path) -> None:
    """It says its bands and statistics itself, and its weights are those of the backbone in it."""
    bands = {"S2L2A": ["BLUE", "GREEN", "RED"]}
    backbone = build_backbone(NANO, ["S2L2A", "S1GRD"], bands=bands, merge_method="concat").eval()
    weights = {f"model.encoder.{name}": value for name, value in backbone.state_dict().items()}
    model_args = {"backbone": NANO, "backbone_modalities": ["S2L2A", "S1GRD"], "backbone_bands": bands,
                  "backbone_merge_method": "concat", "backbone_pretrained": True, "decoder": "UNetDecoder"}  # fmt: skip
    statistics = {"means": {"S2L2A": [1.0, 2, 3]}, "stds": {"S2L2A": [100.0, 200, 300]}}
    content = {"state_dict": {**weights, "model.head.weight": torch.zeros(3)}, "TerraMindDataModule": statistics,
               "hyper_parameters": {"model_args": model_args}, "pytorch-lightning_version": "2.6.0"}  # fmt: skip
    torch.save(content, tmp_path / "best.ckpt")
    path = write_modality(tmp_path / "a.tif", "S2L2A", (64, 64))
    radar = write_modality(tmp_path / "b.tif", "S1GRD", (64, 64))
    words = ["--scene", f"S2L2A={path}", "--scene", f"S1GRD={radar}", "--out", tmp_path / "out"]
    assert _embed(*words, model=tmp_path / "best.ckpt") == 0
    found = _read(tmp_path / "out" / "a_embedding.tif")
    assert found.shape == (2 * DIM, 8, 8)
    entry = MODALITIES["S1GRD"]
    x = {"S2L2A": Standardisation(*statistics["means"].values(), *statistics["stds"].values())(
             torch.from_numpy(_read(path)[None, 1:4])),
         "S1GRD": Standardisation(entry.mean, entry.std)(torch.from_numpy(_read(radar)[None]))}  # fmt: skip
    with torch.no_grad():
        tokens = backbone(x)[-1][0]
    np.testing.assert_allclose(found, tokens.T.reshape(found.shape), atol=2e-5)


FORMATS = pytest.mark.parametrize(
    "format", ["cog", *(pytest.param(name, marks=pytest.mark.slow) for name in ("zarr", "parquet"))]
)


def _files(root: Path) -> dict[str, bytes]:
    """Return the content of a file, or of the files of a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in [root, *root.rglob("*")] if path.is_file()}


@FORMATS
def test_a_run_goes_on(scene: Path, tmp_path: Path, monkeypatch: Any, format: str) -> None:
    """What is finished is kept, what is damaged is made again, and the same command gives the same bytes."""
    from terramind_plugin.inference.embedder import Embedder

    forward, calls, stop = Embedder.forward, [], [4]

    def stopping(self: Any, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == stop[0]:
            raise RuntimeError("stopped")
        return forward(self, *arguments)

    monkeypatch.setattr(Embedder, "forward", stopping)
    words, out = ["--format", format, "--batch_size", "6"], tmp_path / "out"
    with pytest.raises(RuntimeError, match="stopped"):
        _embed(scene, "--modality", "S2L2A", "--out", out, *words)
    assert [path.name for path in out.iterdir()] == ["scene_20240506_embed.partial"]
    calls.clear()
    path = _one(scene, out, *words)
    assert 0 < len(calls) < 4
    stop[0] = -1
    calls.clear()
    whole = _files(_one(scene, tmp_path / "whole", *words))
    assert len(calls) == 4
    assert _files(path) == whole
    calls.clear()
    assert _one(scene, out, *words) == path
    assert not calls
    part = path if path.is_file() else max(path.rglob("*"), key=lambda one: one.stat().st_size)
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 255
    part.write_bytes(content)
    _one(scene, out, *words)
    assert calls
    assert _files(path) == whole


def test_files_are_written_while_the_next_scene_is_computed(scene: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from terramind_plugin.errors import DataError
    from terramind_plugin.inference.embedding import EmbeddingJob

    scenes = [Path(shutil.copy(scene, tmp_path / f"{name}.tif")) for name in "ab"]
    write, threads, fails = EmbeddingJob.write, [], [True]

    def writing(self: Any, *arguments: Any) -> None:
        threads.append(threading.current_thread())
        if fails[0] and self.stem == "a":
            raise DataError("no room for a")
        write(self, *arguments)

    monkeypatch.setattr(EmbeddingJob, "write", writing)
    out, words = tmp_path / "out", ["--modality", "S2L2A", "--out"]
    assert _embed(*scenes, *words, out) == 2
    assert sorted(path.name for path in out.iterdir()) == ["a_embed.partial", "b_embed.partial"]
    fails[0] = False
    assert _embed(*scenes, *words, out) == 0
    assert threading.main_thread() not in threads
    assert sorted(path.name for path in out.iterdir()) == ["a_embedding.tif", "b_embedding.tif"]
    for one in scenes:
        alone = _one(one, tmp_path / f"alone_{one.stem}")
        assert (out / alone.name).read_bytes() == alone.read_bytes()


@FORMATS
def test_a_full_disk(scene: Path, tmp_path: Path, capsys: Any, format: str) -> None:
    """No file grows beyond some bytes: an error in one line, nothing half-written; with room the run goes on."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    whole, out = _files(_one(scene, tmp_path / "whole", "--format", format)), tmp_path / "out"
    raw, largest = DIM * 25 * 42 * 4, max(map(len, whole.values()))
    try:
        for size in (100_000, raw if largest > raw else largest - 100):
            capsys.readouterr()
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
            words = [scene, "--modality", "S2L2A", "--out", out, "--format", format]
            status = _embed(*words)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            error = capsys.readouterr().err
            assert (status, "Traceback" in error) == (2, False), error
            assert [path.suffix for path in out.iterdir()] in ([], [".partial"])
        assert _files(_one(scene, out, "--format", format)) == whole
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_is_refused(scene: Path, tmp_path: Path, capsys: Any) -> None:
    def refused(*words: Any, model: str = NANO) -> str:
        capsys.readouterr()
        assert _embed(*words, "--out", tmp_path / "out", model=model) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("terramind: ")]
        return lines[-1]

    one = [scene, "--modality", "S2L2A"]
    assert "layer must be from 0 to 5" in refused(*one, "--layer", "6")
    assert "margin must be a multiple of the model's patch, 8 pixels, got 4" in refused(*one, "--margin", "4")
    assert "margin must be 0" in refused(*one, "--margin", "8", "--pool", "mean")
    assert "crop must be a positive multiple of 8" in refused(*one, "--crop", "60")
    assert "--modality NAME is missing" in refused(scene)
    assert "has no name" in refused(scene, "--scene", f"S2L2A={scene}")
    assert "one of the two" in refused()
    assert "--scene needs the name" in refused("--scene", scene)
    assert "contradict each other" in refused(*one, "--cog", "--format", "zarr")
    assert "batch_size must be at least 1" in refused(*one, "--batch_size", "0")
    assert "has 12 bands" in refused(scene, "--modality", "S1GRD")
    assert "Unknown band 'REED'" in refused(*one, "--bands", "S2L2A=REED")
    folder = tmp_path / "out" / "scene_20240506_embedding.zarr"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("mine")
    assert "has not written, so it is not replaced" in refused(*one, "--format", "zarr")
    assert (folder / "mine.txt").read_text() == "mine"
    empty = write_modality(tmp_path / "empty.tif", "S2L2A", (64, 64), (slice(None), slice(None)))
    assert "holds no data" in refused(empty, "--modality", "S2L2A")


def test_dates(tmp_path: Path) -> None:
    names = {
        "S2_20160112T101112_x": None, "a_2021-07-09_b": "2021-07-09", "tile_20199": None, "x_19001231": None,
        "x_20230231": None, "x_29990101": None, "123420210709": None, "s2_20210709": "2021-07-09",
    }  # fmt: skip
    names["S2_20160112T101112_x"] = "2016-01-12"
    for name, expected in names.items():
        assert str(taken_on(tmp_path / f"{name}.tif")) == str(expected), name
    path = write_modality(tmp_path / "x_20200101.tif", "S2L2A", (8, 8))
    with rasterio.open(path, "r+") as file:
        file.update_tags(datetime="2022-03-04T10:00:00Z")
    assert str(taken_on(path)) == "2022-03-04"
