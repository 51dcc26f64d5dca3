"""A real scene of Sentinel-2 through `terramind generate` and `terramind map`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from matplotlib.image import imread
from rasterio.crs import CRS
from rasterio.warp import Resampling, calculate_default_transform, reproject

from bench.seams import measure_seams
from terramind_plugin.cli import main
from terramind_plugin.inference.windows import plan_windows
from terramind_plugin.model.modalities import MODALITIES
from tests.inference.conftest import save_generator

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "scene"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene() -> Path:
    found = sorted(FOLDER.glob("*.tif")) if FOLDER.is_dir() else []
    if not found:
        pytest.skip("no real scene at ../shared/data/scene")
    return found[0]


def _assert_for_gis(path: Path, scene: Path, dtype: str, nodata: float, *, cog: bool = False) -> Any:
    """Check what gdalinfo would show, and return the values and the tags."""
    with rasterio.open(scene) as source, rasterio.open(path) as file:
        assert (file.crs, file.transform, file.shape) == (source.crs, source.transform, source.shape)
        assert set(file.dtypes) == {dtype}
        assert np.isnan(file.nodata) if np.isnan(nodata) else file.nodata == nodata
        assert file.block_shapes[0] == ((512, 512) if cog else (256, 256))
        assert file.compression.value == "DEFLATE"
        assert file.overviews(1) == [2, 4]
        assert file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT") == ("COG" if cog else None)
        assert all(file.descriptions)
        if dtype == "uint8":
            assert len(set(file.colormap(1).values())) > 1
            assert " = " in file.tags()["class_names"]
        else:
            assert file.scales == (1.0,) * file.count
            assert file.offsets == (0.0,) * file.count
        tags = file.tags()
        assert {"model", "weights", "weights_sha256", "terramind_plugin_version", "input", "date", "windows"} <= set(
            tags
        )
        return file.read(), file.units, tags


def _assert_picture(path: Path) -> None:
    picture = imread(path)
    assert min(picture.shape[:2]) > 300
    assert picture[..., :3].std() > 0.05


@pytest.mark.parametrize("cog", [False, True])
def test_generate(scene: Path, tmp_path: Path, small_tokenizers: None, cog: bool) -> None:
    weights = save_generator(tmp_path / "generator.pt", ["S2L1C"], ["LULC", "S1GRD"])
    out = tmp_path / "out"
    words = [
        "generate",
        scene,
        "--modality",
        "S2L1C",
        "--to",
        "LULC,S1GRD",
        "--out",
        out,
        "--model",
        "terramind_v1_tiny",
    ]
    words += ["--pretrained", "false", "--ckpt_path", weights, "--steps", "2", "--accelerator", "cpu"]
    assert main([str(word) for word in words + (["--cog"] if cog else [])]) == 0
    classes, units, tags = _assert_for_gis(out / f"{scene.stem}_LULC.tif", scene, "uint8", 0, cog=cog)
    assert units == (MODALITIES["LULC"].units,)
    assert tags["input"] == f"S2L1C: {scene.name}"
    radar, units, tags = _assert_for_gis(out / f"{scene.stem}_S1GRD.tif", scene, "float32", np.nan, cog=cog)
    assert units == ("dB", "dB")
    assert tags["seed"] == "0"
    assert np.isfinite(radar).all()
    plan = plan_windows(1024, 1024, 224, 176, 8, multiple=16, align=16)
    seams = {"LULC": measure_seams(classes[0], plan), "VV": measure_seams(radar[0], plan)}
    print(seams)
    assert all(seam < 1.1 for seam in seams.values())
    _assert_picture(out / f"{scene.stem}_generated.png")


def test_map(scene: Path, both_task: tuple[Path, Path], tmp_path: Path) -> None:
    """With a second modality in another CRS and at another resolution, made of the scene itself."""
    with rasterio.open(scene) as file:
        place, bounds = file.transform, file.bounds
        brightness = file.read([4, 8]).astype(np.float32)
        crs = file.crs
    degrees = CRS.from_epsg(4326)
    transform, width, height = calculate_default_transform(crs, degrees, 1024, 1024, *bounds, resolution=2e-4)
    radar = np.full((2, height, width), np.nan, np.float32)
    reproject(
        -25 + 15 * brightness / 10000, radar, src_transform=place, src_crs=crs, dst_transform=transform,
        dst_crs=degrees, dst_nodata=np.nan, resampling=Resampling.average,
    )  # fmt: skip
    other = tmp_path / "radar.tif"
    profile = {"driver": "GTiff", "count": 2, "height": height, "width": width, "dtype": "float32"}
    with rasterio.open(other, "w", **profile, crs=degrees, transform=transform, nodata=np.nan) as file:
        file.write(radar)
    config, checkpoint = both_task
    words = ["map", "-c", config, "--ckpt_path", checkpoint, "--scene", f"S2L1C={scene}", "--scene", f"S1GRD={other}"]
    words += ["--out", tmp_path / "out", "--probabilities", "--accelerator", "cpu"]
    assert main(list(map(str, words))) == 0
    classes, _, tags = _assert_for_gis(tmp_path / "out" / f"{scene.stem}_pred.tif", scene, "uint8", 255)
    assert tags["input"] == f"S2L1C: {scene.name}, S1GRD: radar.tif"
    name = f"{scene.stem}_probabilities.tif"
    probabilities, units, _ = _assert_for_gis(tmp_path / "out" / name, scene, "float32", np.nan)
    assert units == ("1", "1")
    known = classes[0] != 255
    assert known.mean() > 0.9
    assert (np.isnan(probabilities[0]) == ~known).all()
    assert (probabilities.argmax(axis=0) == classes[0])[known].all()
    assert measure_seams(probabilities[0], plan_windows(1024, 1024, 224, 176, 8, multiple=16)) < 1.1
    _assert_picture(tmp_path / "out" / f"{scene.stem}_map.png")
