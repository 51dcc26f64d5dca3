"""The scripts that TerraMind's tutorials teach, run as a reader runs them."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.windows import Window

from terramind_plugin.builders import build_image_tokenizer, build_tim
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.simulation.dataset import chip_files, simulate
from terramind_plugin.tokenizers.variants import TOKENIZERS
from tests.generation.conftest import scatter_weights
from tests.hub import cached_file

HERE = Path(__file__).parent
REAL = HERE.parents[2] / "shared" / "data"
SAMPLES = ("38D_378R_2_3", "433D_629L_3_1", "637U_59R_1_3")
RANDOM = ("--pretrained", "false")
TINY = ("--model", "terramind_v1_tiny_generate")
TINY_TIM = ("--backbone", "terramind_v1_tiny_tim", "--epochs", "2", "--decoder_channels", "32", "16", "16", "8")

needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real chips are not at {REAL}")


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """Return what stands in for the published weights of the tiny model, of all that the scripts take and give."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_tim(
            "terramind_v1_tiny", ["S2L1C", "S2L2A", "S1GRD"], tim_modalities=["S1RTC", "DEM", "LULC", "NDVI"]
        )
        return scatter_weights(model.sampler.model).state_dict()


@pytest.fixture(scope="module")
def hub(published: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a hub cache with the tiny model."""
    cache = tmp_path_factory.mktemp("hub")
    variant = VARIANTS["terramind_v1_tiny"]
    torch.save(published, cached_file(cache, variant.hub_repo, variant.hub_file))
    yield cache
    shutil.rmtree(cache)  # pytest would keep it, and with tokenizers it is large


@pytest.fixture(scope="module")
def hub_with_tokenizers(hub: Path) -> Path:
    """Return the same with tokenizers of the published sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for modality in ("S2L2A", "S1RTC", "LULC"):
            variant = TOKENIZERS[f"terramind_v1_tokenizer_{modality.lower()}"]
            model = scatter_weights(build_image_tokenizer(variant.name))
            tensors = {k: v.bfloat16() for k, v in model.state_dict().items()}
            torch.save(tensors, cached_file(hub, variant.hub_repo, variant.hub_file))
    return hub


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return six simulated chips of 64 pixels: four for training, one for validation, one for test."""
    return simulate(tmp_path_factory.mktemp("scenes"), chips=6, size=64).root


@pytest.fixture(scope="module")
def chip(scenes: Path) -> dict[str, Path]:
    """Return the files of one chip by modality."""
    return chip_files(scenes, "Delta_0001")


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    """Run a script and return the folder it wrote to: in a process of its own if it needs a cache, else in this one."""

    def start(script: str, source: Path, *words: object, cache: Path | None = None) -> Path:
        out = tmp_path / "out"
        command = [sys.executable, HERE / f"{script}.py", source, "--out", out, *words]
        if cache is None:
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(tmp_path)
                patch.setattr(sys, "argv", list(map(str, command[1:])))
                runpy.run_path(sys.argv[0], run_name="__main__")
            (out / "log.txt").write_text(capsys.readouterr().out)
            return out
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
        result = subprocess.run(list(map(str, command)), env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        (out / "log.txt").write_text(result.stdout)
        return out

    return start


def read(path: Path, like: Path) -> np.ndarray:
    """Return the values of a GeoTIFF after checking that it lies where the input does."""
    with rasterio.open(path) as raster, rasterio.open(like) as source:
        assert (raster.shape, raster.crs, raster.transform) == (source.shape, source.crs, source.transform)
        return raster.read()


def assert_picture(path: Path) -> None:
    with Image.open(path) as picture:
        assert min(picture.size) > 200
        assert np.ptp(np.asarray(picture.convert("RGB")), axis=(0, 1)).min() > 100


def assert_units(values: np.ndarray, modality: str, *, constant: bool = False) -> None:
    """Check that values are of a modality's units: diffusion stays within one standard deviation of the mean.

    Args:
        values: [bands, height, width].
        modality: Its name.
        constant: Whether random weights made it: they leave the decoder at the mean.
    """
    entry = MODALITIES[modality]
    assert len(values) == len(entry.bands)
    if entry.kind == "classes":
        assert values.dtype == np.uint8
        assert len(np.unique(values)) > 1
        assert values.max() < len(entry.class_names)
        return
    mean, std = (np.array(numbers)[:, None, None] for numbers in (entry.mean, entry.std))
    distance = np.abs(values - mean) / std
    assert distance.max() <= 1.001
    assert (distance.max() < 1e-4) == constant


def test_tokenizer_reconstruction(run: Any, chip: dict[str, Path]) -> None:
    out = run("tokenizer_reconstruction", chip["S2L2A"], "--timesteps", 1, *RANDOM)
    assert_units(read(out / "reconstruction.tif", chip["S2L2A"]), "S2L2A", constant=True)
    tokens = np.load(out / "tokens.npy")
    assert tokens.shape == (4, 4)
    assert tokens.min() >= 0
    assert tokens.max() < MODALITIES["S2L2A"].vocab_size
    assert len(np.unique(tokens)) > 1
    assert "the image differs by 0\n" in (out / "log.txt").read_text()
    assert_picture(out / "reconstruction.png")


def test_generation(run: Any, chip: dict[str, Path]) -> None:
    out = run("generation", chip["S2L2A"], "--to", "DEM,LULC", "--timesteps", 1, *TINY, *RANDOM)
    assert sorted(path.name for path in out.glob("*.tif")) == ["DEM.tif", "LULC.tif"]
    for modality in ("DEM", "LULC"):
        assert_units(read(out / f"{modality}.tif", chip["S2L2A"]), modality, constant=True)
    assert "LULC: [1, 10, 64, 64]" in (out / "log.txt").read_text()
    assert_picture(out / "generated.png")


def test_large_tile_generation(run: Any, chip: dict[str, Path]) -> None:
    words = ("--crop", 48, "--stride", 32, "--timesteps", 1, *TINY, *RANDOM)
    out = run("large_tile_generation", chip["S2L2A"], *words)
    for modality in ("S1GRD", "LULC"):
        assert_units(read(out / f"{modality}.tif", chip["S2L2A"]), modality, constant=True)
    assert_picture(out / "generated.png")


def assert_fine_tuned(out: Path, data: Path, published: dict[str, torch.Tensor]) -> None:
    """Check the outputs, and that the generator stayed as published and the encoder moved away from there."""
    state = torch.load(out / "checkpoints" / "best-mIoU.ckpt", weights_only=True)["state_dict"]
    frozen = {name.partition("sampler.model.")[2]: value for name, value in state.items() if "sampler.model." in name}
    assert any(name.startswith("decoder.") for name in frozen)
    for name, value in frozen.items():
        assert torch.equal(value, published[name]), name
    name = "encoder.11.mlp.fc2.weight"
    moved = (state[f"model.encoder.{name}"] - published[name]).abs().max()
    assert 0 < moved < 1e-3
    names = (data / "splits" / "flood_test_data.txt").read_text().split()
    assert sorted(path.name for path in out.glob("*.tif")) == sorted(f"{name}_S2Hand_pred.tif" for name in names)
    for name in names:
        source = data / "data" / "S2L1CHand" / f"{name}_S2Hand.tif"
        assert set(np.unique(read(out / f"{name}_S2Hand_pred.tif", source))) <= {0, 1}
        assert_picture(out / f"{name}_S2Hand.png")
    assert "test/mIoU" in (out / "log.txt").read_text()


@pytest.mark.slow
def test_tim_finetuning(run: Any, scenes: Path, hub: Path, published: dict[str, torch.Tensor]) -> None:
    out = run("tim_finetuning", scenes, *TINY_TIM, "--batch_size", 2, cache=hub)
    assert_fine_tuned(out, scenes, published)


@pytest.mark.slow
@needs_real
@pytest.mark.parametrize("sample", SAMPLES)
def test_reconstruction_of_real_chips(run: Any, hub_with_tokenizers: Path, sample: str) -> None:
    path = REAL / "terramesh" / "S2L2A" / f"{sample}.tif"
    out = run("tokenizer_reconstruction", path, "--timesteps", 2, cache=hub_with_tokenizers)
    assert_units(read(out / "reconstruction.tif", path), "S2L2A")
    variant = TOKENIZERS["terramind_v1_tokenizer_s2l2a"]
    (file,) = hub_with_tokenizers.glob(f"*S2L2A/snapshots/*/{variant.hub_file}")
    entry = MODALITIES["S2L2A"]
    with rasterio.open(path) as raster:
        x = (raster.read() - np.array(entry.mean)[:, None, None]) / np.array(entry.std)[:, None, None]
    model = build_image_tokenizer(variant.name, ckpt_path=file, decoder=False)
    with torch.no_grad():
        expected = model.tokenize(torch.tensor(x, dtype=torch.float32)[None])[0].numpy()
    assert np.mean(np.load(out / "tokens.npy") == expected) > 0.98  # another number of threads may round otherwise
    assert_picture(out / "reconstruction.png")


@pytest.mark.slow
@needs_real
@pytest.mark.parametrize("sample", SAMPLES)
def test_generation_from_real_chips(run: Any, hub_with_tokenizers: Path, sample: str) -> None:
    path = REAL / "terramesh" / "S2L2A" / f"{sample}.tif"
    words = ("--to", "S1RTC,LULC", "--timesteps", 2, *TINY)
    out = run("generation", path, *words, cache=hub_with_tokenizers)
    for modality in ("S1RTC", "LULC"):
        assert_units(read(out / f"{modality}.tif", path), modality)
    assert_picture(out / "generated.png")


def cut(source: Path, target: Path, window: Window) -> Path:
    """Write a part of a raster with the place it has."""
    with rasterio.open(source) as raster:
        profile = {name: raster.profile[name] for name in ("driver", "dtype", "count", "crs", "nodata")}
        profile |= {"width": window.width, "height": window.height, "transform": raster.window_transform(window)}
        values = raster.read(window=window)
    target.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(target, "w", **profile) as raster:
        raster.write(values)
    return target


@pytest.mark.slow
@needs_real
@pytest.mark.parametrize("source", ["scene/s2l1c_18SVG_20160112_1024", "sen1floods11/S2L1CHand/Spain_7370579_S2Hand"])
def test_real_tiles(run: Any, hub_with_tokenizers: Path, tmp_path: Path, source: str) -> None:
    tile = cut(REAL / f"{source}.tif", tmp_path / "tile.tif", Window(100, 50, 300, 250))
    words = ("--modality", "S2L1C", "--to", "S1RTC,LULC", "--crop", 96, "--stride", 72, "--timesteps", 2, *TINY)
    out = run("large_tile_generation", tile, *words, cache=hub_with_tokenizers)
    for modality in ("S1RTC", "LULC"):
        assert_units(read(out / f"{modality}.tif", tile), modality)
    assert_picture(out / "generated.png")


@pytest.mark.slow
@needs_real
def test_tim_on_real_chips(run: Any, hub: Path, published: dict[str, torch.Tensor], tmp_path: Path) -> None:
    names = [f"Spain_7370579_{i:02d}" for i in range(16)]
    folders = {"S2L1CHand": "S2Hand", "S1GRDHand": "S1Hand", "LabelHand": "LabelHand"}
    for i, name in enumerate(names):
        for folder, ending in folders.items():
            source = REAL / "sen1floods11" / folder / f"Spain_7370579_{ending}.tif"
            target = tmp_path / "data" / folder / f"{name}_{ending}.tif"
            cut(source, target, Window(128 * (i % 4), 128 * (i // 4), 128, 128))
    (tmp_path / "splits").mkdir()
    for split, members in {"train": names[:10], "valid": names[10:13], "test": names[13:]}.items():
        (tmp_path / "splits" / f"flood_{split}_data.txt").write_text("\n".join(members))
    out = run("tim_finetuning", tmp_path, *TINY_TIM, "--batch_size", 5, cache=hub)
    assert_fine_tuned(out, tmp_path, published)
