"""`terramind generate` on scenes of several windows: the same pixels however they are shared out, and no seams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.seams import measure_seams
from terramind_plugin.cli import main
from terramind_plugin.inference.windows import plan_windows
from tests.inference.conftest import read_raster, save_generator, write_modality
from tests.runs.running import REPOSITORY

SIZE = (100, 150)
CROP, STRIDE, MARGIN = 64, 32, 8
NAMES = ("S1GRD", "LULC")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, small_tokenizers: None) -> Path:
    """Return weights of a generator that makes no constant images."""
    return save_generator(tmp_path_factory.mktemp("weights") / "generator.pt", ["S2L2A"], NAMES)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a smooth scene with a gap."""
    return write_modality(tmp_path_factory.mktemp("scene") / "scene.tif", "S2L2A", SIZE, (slice(40, 50), slice(0, 70)))


def _words(scene: Path, weights: Path, out: Path, *words: Any) -> list[str]:
    model = [
        "--model",
        "terramind_v1_tiny",
        "--pretrained",
        "false",
        "--ckpt_path",
        weights,
        "--steps",
        "2",
        "--accelerator",
        "cpu",
    ]
    windows = ["--crop", CROP, "--stride", STRIDE, "--margin", MARGIN]
    common = ["generate", scene, "--modality", "S2L2A", "--to", ",".join(NAMES), "--out", out]
    return [str(word) for word in [*common, *model, *windows, *words]]


def _read(folder: Path, name: str) -> np.ndarray:
    return read_raster(folder / f"scene_{name}.tif")


def _assert_same(one: Path, other: Path) -> None:
    """The same up to roundings, through which a sampled token may flip."""
    for name in NAMES:
        first, second = _read(one, name), _read(other, name)
        assert (np.isnan(first) == np.isnan(second)).all()
        same = np.isclose(first, second, atol=1e-3, equal_nan=True)
        assert same.mean() >= 0.999


def test_the_same_pixels_in_any_batch(scene: Path, weights: Path, tmp_path: Path) -> None:
    for batch_size in (1, 20):
        assert main(_words(scene, weights, tmp_path / str(batch_size), "--batch_size", batch_size)) == 0
    _assert_same(tmp_path / "1", tmp_path / "20")
    empty = np.zeros(SIZE, bool)
    empty[40:50, :70] = True
    radar, classes = _read(tmp_path / "1", "S1GRD"), _read(tmp_path / "1", "LULC")[0]
    assert (np.isnan(radar) == empty).all()
    assert (classes[empty] == 0).all()
    assert len(np.unique(classes[~empty])) > 2
    assert np.nanstd(radar) > 1
    # Nor do windows show.
    plan = plan_windows(*SIZE, CROP, STRIDE, MARGIN, multiple=16, align=16)
    assert max(measure_seams(band, plan) for band in radar) < 1.1


@pytest.mark.slow
def test_the_same_plan_gives_the_same_bytes(scene: Path, weights: Path, tmp_path: Path) -> None:
    for name in "ab":
        assert main(_words(scene, weights, tmp_path / name, "--probabilities", "--samples", "2")) == 0
    found = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert found == [
        "scene_LULC.tif", "scene_LULC_probability.tif", "scene_LULC_sample2.tif", "scene_LULC_sample2_probability.tif",
        "scene_LULC_spread.tif", "scene_S1GRD.tif", "scene_S1GRD_sample2.tif", "scene_S1GRD_spread.tif",
        "scene_generated.png",
    ]  # fmt: skip
    for name in found:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    best = _read(tmp_path / "a", "LULC_probability")
    assert np.nanmin(best) >= 0.1  # the winner of ten
    assert np.nanmax(best) <= 1 + 1e-5
    assert not np.array_equal(_read(tmp_path / "a", "LULC"), _read(tmp_path / "a", "LULC_sample2"))


def test_what_seams_are() -> None:
    plan = plan_windows(96, 96, 32, 32)
    ramp = np.tile(np.arange(96.0), (96, 1))
    assert measure_seams(ramp + ramp.T, plan) == pytest.approx(1)
    windows = ramp + ramp.T
    windows[:, 32:64] += 9
    assert measure_seams(windows, plan) == pytest.approx((10 + 8 + 2) / 4)
    blocks = (np.arange(96) // 16 % 2).astype(np.uint8)
    assert measure_seams(np.add.outer(blocks, blocks).astype(np.uint8), plan) == pytest.approx(1)
    windows[:, :70] = np.nan
    assert np.isfinite(measure_seams(windows, plan))


@pytest.mark.slow
def test_two_processes_make_the_same_pixels(scene: Path, tmp_path: Path) -> None:
    """With the tokenizers as they are: another process does not know the small ones."""
    words = ["--to", "LULC", "--crop", "48", "--stride", "32"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    # With larger batches the scene is one band of rows, and one process has nothing to do.
    for devices, batch_size in (("1", 5), ("2", 5), ("2", 15)):
        out = tmp_path / f"{devices}x{batch_size}"
        command = [
            "generate",
            scene,
            "--modality",
            "S2L2A",
            "--model",
            "terramind_v1_tiny",
            "--pretrained",
            "false",
            *words,
        ]
        command += ["--accelerator", "cpu", "--devices", devices, "--batch_size", batch_size, "--out", out]
        result = subprocess.run(
            [sys.executable, "-m", "terramind_plugin.cli", *map(str, command)],
            env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
    for folder in ("2x5", "2x15"):
        assert (_read(tmp_path / "1x5", "LULC") == _read(tmp_path / folder, "LULC")).mean() >= 0.999
