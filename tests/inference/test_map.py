"""`terramind map`: scenes of any size through a fine-tuned task."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import Affine

from terramind_plugin import __version__
from terramind_plugin.cli import main
from terramind_plugin.inference.segmentation import patch_size
from terramind_plugin.inference.windows import training_size
from tests.inference.conftest import PLACE, make_task, read_raster, refused, write_modality
from tests.runs.running import REPOSITORY

WINDOWS = ("--crop", "64", "--stride", "48", "--margin", "4", "--batch_size", "2")  # a band for each row of windows


def _words(task: tuple[Path, Path], scene: Any, out: Path, *words: Any) -> list[str]:
    config, checkpoint = task
    scenes = [word for one in (scene if isinstance(scene, list) else [scene]) for word in ("--scene", one)]
    common = ["map", "-c", config, "--ckpt_path", checkpoint, *scenes, "--out", out, "--accelerator", "cpu", *WINDOWS]
    return [str(word) for word in [*common, *words]]


def _map(*arguments: Any) -> int:
    return main(_words(*arguments))


def test_a_scene(radar_task: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    scene = write_modality(tmp_path / "scene.tif", "S1GRD", (150, 330), (slice(20, 40), slice(100, 200)))
    assert _map(radar_task, scene, tmp_path / "out", "--probabilities") == 0
    printed = [Path(line) for line in capsys.readouterr().out.split("\n") if line.endswith((".tif", ".png"))]
    assert sorted(printed) == sorted((tmp_path / "out").iterdir())
    assert {path.name for path in printed} == {"scene_pred.tif", "scene_probabilities.tif", "scene_map.png"}
    with rasterio.open(tmp_path / "out" / "scene_pred.tif") as file, rasterio.open(scene) as source:
        assert (file.crs, file.transform, file.shape) == (source.crs, source.transform, source.shape)
        assert (file.dtypes, file.nodata) == (("uint8",), 255)
        tags, classes = file.tags(), file.read(1)
        assert file.colormap(1)[0] != file.colormap(1)[1]
    assert (tags["class_0"], tags["class_1"]) == ("Land", "Water")
    assert tags["class_names"] == "0 = Land, 1 = Water"
    assert tags["model"] == "terramind_v1_tiny with UNetDecoder"
    assert tags["weights"] == "best.ckpt"
    assert len(tags["weights_sha256"]) == 16
    assert tags["terramind_plugin_version"] == __version__
    assert tags["input"] == "S1GRD: scene.tif"
    assert tags["windows"] == "crop 64, stride 48, margin 4, batch_size 2, precision 32-true"
    assert tags["written"] == time.strftime("%Y-%m-%d", time.gmtime())
    empty = np.zeros((150, 330), bool)
    empty[20:40, 100:200] = True
    assert ((classes == 255) == empty).all()
    probabilities = read_raster(tmp_path / "out" / "scene_probabilities.tif")
    assert (np.isnan(probabilities) == empty).all()
    np.testing.assert_allclose(probabilities.sum(axis=0)[~empty], 1, atol=1e-5)
    assert (probabilities.argmax(axis=0) == classes)[~empty].all()
    assert len(np.unique(classes)) == 3
    # The same command again has nothing to do.
    before = {path: path.stat().st_mtime_ns for path in printed}
    assert _map(radar_task, scene, tmp_path / "out", "--probabilities") == 0
    assert before == {path: path.stat().st_mtime_ns for path in printed}
    assert "scene.tif: its results exist. Reading them" in capsys.readouterr().err
    # Another setting is another map.
    assert _map(radar_task, scene, tmp_path / "out", "--probabilities", "--precision", "bf16", "--cog") == 0
    assert all(path.stat().st_mtime_ns > before[path] for path in printed)
    bf16 = read_raster(tmp_path / "out" / "scene_probabilities.tif")
    assert 0 < np.nanmax(np.abs(bf16 - probabilities)) < 0.2


def test_one_window_is_what_the_task_predicts(radar_task: tuple[Path, Path], tmp_path: Path) -> None:
    from terramind_plugin.integration.lightning_cli import make_cli
    from terramind_plugin.model.modalities import MODALITIES

    scene = write_modality(tmp_path / "scene.tif", "S1GRD", (64, 48))
    assert _map(radar_task, scene, tmp_path / "out", "--probabilities") == 0
    task = make_cli(["--config", str(radar_task[0])]).model.eval()
    task.load_state_dict(torch.load(radar_task[1])["state_dict"])
    entry = MODALITIES["S1GRD"]
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (entry.mean, entry.std))
    x = (torch.from_numpy(read_raster(scene)) - mean) / std
    with torch.no_grad():
        expected = task({"S1GRD": x[None]}).output.softmax(dim=1)[0]
    np.testing.assert_allclose(read_raster(tmp_path / "out" / "scene_probabilities.tif"), expected.numpy(), atol=1e-5)


def test_several_modalities_on_other_grids(both_task: tuple[Path, Path], tmp_path: Path) -> None:
    optical = write_modality(tmp_path / "a.tif", "S2L1C", (130, 100))
    same = write_modality(tmp_path / "b.tif", "S1GRD", (130, 100))
    # Twice as fine and larger: each second pixel of it lies where one of the first input ends.
    moved = Affine(5, 0, PLACE.c - 100, 0, -5, PLACE.f + 100)
    fine = write_modality(tmp_path / "fine.tif", "S1GRD", (320, 300), transform=moved)
    scenes = [f"S2L1C={optical}", f"S1GRD={same}"]
    assert _map(both_task, scenes, tmp_path / "same", "--probabilities") == 0
    assert _map(both_task, [f"s2l1c={optical}", f"S1GRD={fine}"], tmp_path / "fine", "--probabilities") == 0
    name = "a_probabilities.tif"
    first, second = read_raster(tmp_path / "same" / name), read_raster(tmp_path / "fine" / name)
    assert first.shape == second.shape == (2, 130, 100)
    assert np.isfinite(second).all()
    assert np.abs(first - second).max() > 1e-3


def test_windows_are_as_large_as_the_images_of_the_training(radar_task: tuple[Path, Path], tmp_path: Path) -> None:
    from terramind_plugin.integration.lightning_cli import make_cli

    config, checkpoint = map(str, radar_task)
    chips = tmp_path / "chips"
    chips.mkdir()
    write_modality(chips / "chip.tif", "S1GRD", (70, 90))
    crop = (
        "--data.init_args.train_transform=[{class_path: albumentations.RandomCrop, init_args: {height: 48, width: 80}}]"
    )
    for words, size in [
        ([], 224),
        ([f"--data.init_args.data_root.S1GRD={chips}"], 64),
        ([f"--data.init_args.data_root.S1GRD={chips}", crop], 48),
        (["--model.init_args.model_args.backbone_img_size=96"], 96),
    ]:
        cli = make_cli(["--config", config, *words], checkpoint)
        patch = patch_size(cli.model)
        assert training_size(cli.config, cli.datamodule, cli.model, patch) == size
    scene = write_modality(tmp_path / "scene.tif", "S1GRD", (60, 150))
    call = ["map", "-c", config, "--ckpt_path", checkpoint, "--scene", str(scene), "--accelerator", "cpu", "--out"]
    assert main([*call, str(tmp_path / "out"), f"--data.init_args.data_root.S1GRD={chips}"]) == 0
    with rasterio.open(tmp_path / "out" / "scene_pred.tif") as file:
        assert file.tags()["windows"].startswith("crop 64, stride 32, ")
    assert main([*call, str(tmp_path / "out"), "--data.init_args.batchsize=3"]) == 2


def test_what_is_refused(
    radar_task: tuple[Path, Path], both_task: tuple[Path, Path], tmp_path: Path, capsys: Any
) -> None:
    scene = write_modality(tmp_path / "scene.tif", "S1GRD", (40, 40))
    out = tmp_path / "out"
    assert "write --scene S2L1C=FILE --scene S1GRD=FILE, got" in refused(capsys, _words(both_task, scene, out))
    assert "No file for S2L1C" in refused(capsys, _words(both_task, f"S1GRD={scene}", out))
    assert "S1GRD is given twice" in refused(capsys, _words(radar_task, [scene, scene], out))
    assert "There is no file" in refused(capsys, _words(radar_task, tmp_path / "none.tif", out))
    assert "stride must be from 1 to 56" in refused(capsys, _words(radar_task, scene, out, "--stride", "60"))
    assert "crop must be a positive multiple of 16" in refused(capsys, _words(radar_task, scene, out, "--crop", "60"))
    assert "batch_size must be at least 1" in refused(capsys, _words(radar_task, scene, out, "--batch_size", "0"))
    optical = write_modality(tmp_path / "optical.tif", "S2L1C", (40, 40))
    assert "has 13 bands, but S1GRD has 2: VV, VH" in refused(capsys, _words(radar_task, optical, out))
    far = write_modality(tmp_path / "far.tif", "S2L1C", (40, 40), crs="EPSG:32652")
    assert "does not overlap" in refused(capsys, _words(both_task, [f"S1GRD={scene}", f"S2L1C={far}"], out))
    other = (radar_task[0], tmp_path / "none.ckpt")
    assert "Checkpoint not found" in refused(capsys, _words(other, scene, out))
    assert "no configuration" in refused(capsys, _words((tmp_path / "none.yaml", radar_task[1]), scene, out))
    assert "does not fit the configured task" in refused(
        capsys, _words((both_task[0], radar_task[1]), _both(tmp_path), out)
    )
    (tmp_path / "copy").mkdir()
    twin = write_modality(tmp_path / "copy" / "scene.tif", "S1GRD", (40, 40))
    config, checkpoint = radar_task
    words = ["--scene", scene, twin, "--out", out]
    assert main(list(map(str, ["map", "-c", config, "--ckpt_path", checkpoint, *words]))) == 2
    assert "would both be written to" in capsys.readouterr().err
    assert not out.exists()
    write_modality(tmp_path / "scene_pred.tif", "S1GRD", (40, 40))
    out.write_text("a file")
    assert "it is a file" in refused(capsys, _words(radar_task, scene, out))


def _both(folder: Path) -> list[str]:
    return [f"S1GRD={folder / 'scene.tif'}", f"S2L1C={folder / 'optical.tif'}"]


def test_an_unfinished_run_with_other_settings(radar_task: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    scene = write_modality(tmp_path / "scene.tif", "S1GRD", (100, 100))
    partial = tmp_path / "out" / "scene_map.partial"
    partial.mkdir(parents=True)
    (partial / "run.json").write_text('{"crop": 32}')
    assert "crop: 32 there, 64 now" in refused(capsys, _words(radar_task, scene, tmp_path / "out"))
    assert _map(radar_task, scene, tmp_path / "out", "--restart") == 0
    assert not partial.exists()


def test_a_damaged_block_and_going_on(radar_task: tuple[Path, Path], tmp_path: Path, capsys: Any) -> None:
    """The rows above the damage are kept; with the file mended the same command gives the same bytes."""
    tiles = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
    scene = write_modality(tmp_path / "scene.tif", "S1GRD", (300, 90), **tiles)
    assert _map(radar_task, scene, tmp_path / "whole") == 0
    content, when = scene.read_bytes(), scene.stat()
    start, end = len(content) * 6 // 10, len(content) * 7 // 10
    scene.write_bytes(content[:start] + bytes(end - start) + content[end:])
    os.utime(scene, ns=(when.st_atime_ns, when.st_mtime_ns))
    assert "cannot be read" in refused(capsys, _words(radar_task, scene, tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scene_map.partial"]
    finished = (tmp_path / "out" / "scene_map.partial").glob("rows-*.txt")
    assert sum(len(path.read_text().splitlines()) for path in finished) >= 2
    scene.write_bytes(content)
    os.utime(scene, ns=(when.st_atime_ns, when.st_mtime_ns))
    assert _map(radar_task, scene, tmp_path / "out") == 0
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_regression(tmp_path: Path) -> None:
    changes = {
        "data.task": "regression", "data.num_classes": ..., "data.class_names": ...,
        "data.modalities": ["S1GRD"], "data.data_root": {"S1GRD": "nowhere"}, "data.image_grep": {"S1GRD": "*"},
        "model.class_path": "terratorch.tasks.PixelwiseRegressionTask",
        "model.class_names": ..., "model.loss": "mse", "model_args.num_classes": ...,
        "model_args.backbone_modalities": ["S1GRD"],
    }  # fmt: skip
    task = make_task(tmp_path, changes)
    scene = write_modality(tmp_path / "scene.tif", "S1GRD", (70, 60), (slice(0, 9), slice(None)))
    assert _map(task, scene, tmp_path / "out") == 0
    with rasterio.open(tmp_path / "out" / "scene_pred.tif") as file:
        values = file.read()
        assert file.dtypes == ("float32",)
    assert np.isnan(values[0, :9]).all()
    assert np.isfinite(values[0, 9:]).all()


def _command(task: tuple[Path, Path], *words: Any) -> list[str]:
    config, checkpoint = task
    common = ["-m", "terramind_plugin.cli", "map", "-c", config, "--ckpt_path", checkpoint, "--accelerator", "cpu"]
    return [sys.executable, *map(str, [*common, *WINDOWS, *words])]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
def test_two_processes_share_scenes_and_rows(radar_task: tuple[Path, Path], tmp_path: Path) -> None:
    scenes = [write_modality(tmp_path / f"{name}.tif", "S1GRD", (400, 100)) for name in "abc"]
    for count in (1, 3):
        words = ["--scene", *scenes[:count], "--out", tmp_path / f"two{count}", "--devices", "2"]
        result = subprocess.run(
            _command(radar_task, *words), env=ENVIRONMENT, cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("_pred.tif") == count
    config, checkpoint = radar_task
    words = ["map", "-c", config, "--ckpt_path", checkpoint, "--accelerator", "cpu", *WINDOWS]
    assert main(list(map(str, [*words, "--scene", *scenes, "--out", tmp_path / "one"]))) == 0
    for folder in ("two1", "two3"):
        for path in (tmp_path / folder).glob("*.tif"):
            same = read_raster(path) == read_raster(tmp_path / "one" / path.name)
            assert same.mean() > 0.999  # the number of threads changes roundings
    assert len(list((tmp_path / "two3").iterdir())) == 6


@pytest.mark.slow
def test_killed_at_any_moment(radar_task: tuple[Path, Path], tmp_path: Path) -> None:
    """kill -9 ten times at random moments, then the same command: the bytes of an uninterrupted run."""
    scene = write_modality(tmp_path / "scene.tif", "S1GRD", (2600, 700))
    command = _command(radar_task, "--scene", scene, "--probabilities", "--out")
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], env=ENVIRONMENT, cwd=REPOSITORY, check=True)
    length = time.monotonic() - start
    random = np.random.default_rng(0)
    progress = []
    for _ in range(10):
        process = subprocess.Popen([*command, str(tmp_path / "killed")], env=ENVIRONMENT, cwd=REPOSITORY)
        # Most of a short run is imports; the moments lie in what comes behind them, too.
        time.sleep(float(random.uniform(0.3, 0.95)) * length)
        process.kill()
        process.wait()
        lists = (tmp_path / "killed").glob("*.partial/rows-*.txt")
        progress.append(sum(path.read_text().count("\n") for path in lists))
    subprocess.run([*command, str(tmp_path / "killed")], env=ENVIRONMENT, cwd=REPOSITORY, check=True)
    assert max(progress) > 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == names
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    print("rows listed at each kill:", progress)


def test_windows_of_the_small_model_follow_its_patch(tmp_path: Path) -> None:
    changes = {
        "data.modalities": ["S1GRD"],
        "model_args.backbone": "terramind_sim_nano",
        "model_args.backbone_modalities": ["S1GRD"],
        "model_args.necks": [{"name": "terramind_pyramid", "patch_size": 8}],
    }
    config, checkpoint = make_task(tmp_path, changes)
    scene = write_modality(tmp_path / "scene.tif", "S1GRD", (72, 88))
    words = ["--crop", "40", "--stride", "24", "--margin", "4", "--batch_size", "2", "--accelerator", "cpu"]
    common = ["map", "-c", config, "--ckpt_path", checkpoint, "--scene", scene, "--out", tmp_path / "out"]
    assert main([str(word) for word in [*common, *words]]) == 0
    assert read_raster(tmp_path / "out" / "scene_pred.tif").shape == (1, 72, 88)
