"""`terramind map` of time series and of joined bands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from terramind_plugin.cli import main
from terramind_plugin.model.modalities import MODALITIES
from tests.inference.conftest import PLACE, make_task

WINDOWS = ("--crop", "32", "--stride", "24", "--margin", "2", "--batch_size", "1", "--accelerator", "cpu")
SIZE = (56, 32)
NAMES = ["S2L2A", "DEM"]
SERIES = {
    "data.modalities": NAMES,
    "data.data_root": dict.fromkeys(NAMES, "nowhere"),
    "data.image_grep": dict.fromkeys(NAMES, "*"),
    "data.expand_temporal_dimension": True,
    "model_args.backbone_modalities": NAMES,
    "model_args.backbone_use_temporal": True,
}


def _write(path: Path, values: np.ndarray, **changes: Any) -> Path:
    """Write an image [bands, H, W]."""
    profile = {"driver": "GTiff", "crs": "EPSG:32632", "transform": PLACE, "dtype": "float32", **changes}
    with rasterio.open(path, "w", count=len(values), height=values.shape[1], width=values.shape[2], **profile) as file:
        file.write(values)
    return path


def _shots(name: str, dates: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return images [dates, bands, H, W] of a modality."""
    entry = MODALITIES[name]
    noise = np.random.default_rng(len(name)).normal(0, 0.5, (dates, len(entry.bands), *size))
    mean, std = (np.array(numbers)[:, None, None] for numbers in (entry.mean, entry.std))
    return (mean + std * noise).astype(np.float32)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Return configuration and checkpoint of tasks with three dates, two dates, and joined bands."""
    made = {}
    for pooling in ("mean", "diff"):
        changes = SERIES | {"model_args.backbone_temporal_pooling": pooling}
        made[pooling] = make_task(tmp_path_factory.mktemp(pooling), changes)
    joined = {"model_args.backbone_modalities": [{"BOTH": 13}], "data.concat_bands": True}
    alone = {**SERIES, "data.expand_temporal_dimension": False, "model_args.backbone_use_temporal": False}
    made["joined"] = make_task(tmp_path_factory.mktemp("joined"), alone | joined)
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return three dates of S2L2A in one file, in the other order, and in three files, and one DEM."""
    folder = tmp_path_factory.mktemp("files")
    shots = _shots("S2L2A", 3)
    found = {
        "all": _write(folder / "all.tif", shots.reshape(-1, *SIZE)),
        "by_band": _write(folder / "all_by_band.tif", shots.swapaxes(0, 1).reshape(-1, *SIZE)),
        "DEM": _write(folder / "dem.tif", _shots("DEM", 1)[0]),
        "DEM_three": _write(folder / "dem_three.tif", np.repeat(_shots("DEM", 1)[0], 3, axis=0)),
    }
    for number, shot in enumerate(shots, start=1):
        found[f"date{number}"] = _write(folder / f"a_2024010{number}.tif", shot)
    return found


def _map(task: tuple[Path, Path], out: Path, scenes: dict[str, Any], *words: Any) -> np.ndarray:
    given = [word for name, paths in scenes.items() for word in ("--scene", f"{name}={paths}")]
    common = ["map", "-c", task[0], "--ckpt_path", task[1], *given, "--out", out, "--probabilities", *WINDOWS]
    assert main([str(word) for word in [*common, *words]]) == 0
    (path,) = out.glob("*_probabilities.tif")
    with rasterio.open(path) as file:
        return file.read()


def _several(files: dict[str, Path], *numbers: int) -> str:
    return ",".join(str(files[f"date{number}"]) for number in numbers)


def _expected(task: tuple[Path, Path], x: Any) -> np.ndarray:
    from terramind_plugin.integration.lightning_cli import make_cli

    model = make_cli(["--config", str(task[0])]).model.eval()
    model.load_state_dict(torch.load(task[1])["state_dict"])
    with torch.no_grad():
        return model(x).output.softmax(dim=1)[0].numpy()


def _standardised(name: str, shots: np.ndarray) -> torch.Tensor:
    """Return [1, bands, dates, H, W]."""
    entry = MODALITIES[name]
    mean, std = (torch.tensor(numbers)[:, None, None, None] for numbers in (entry.mean, entry.std))
    return ((torch.from_numpy(shots).transpose(0, 1) - mean) / std)[None]


def test_one_window_is_what_the_task_predicts(tasks: Any, tmp_path: Path) -> None:
    size = (32, 48)
    shots, dem = _shots("S2L2A", 2, size), _shots("DEM", 1, size)
    pair = [_write(tmp_path / f"{name}.tif", shot) for name, shot in zip(("after", "before"), shots, strict=True)]
    scenes = {"S2L2A": f"{pair[0]},{pair[1]}", "DEM": _write(tmp_path / "dem.tif", dem[0])}
    x = {"S2L2A": _standardised("S2L2A", shots), "DEM": _standardised("DEM", dem).expand(-1, -1, 2, -1, -1)}
    for pooling in ("mean", "diff"):
        got = _map(tasks[pooling], tmp_path / pooling, scenes, "--crop", "64", "--stride", "60")
        np.testing.assert_allclose(got, _expected(tasks[pooling], x), atol=1e-5)


def test_files_and_orders_of_dates_are_alike(tasks: Any, files: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    task, dem = tasks["mean"], files["DEM"]
    whole = _map(task, tmp_path / "whole", {"S2L2A": files["all"], "DEM": dem})
    assert np.isfinite(whole).all()
    printed = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert printed == ["all_pred.tif", "all_probabilities.tif", "all_map.png"]
    with rasterio.open(tmp_path / "whole" / "all_pred.tif") as file:
        assert file.tags()["series"] == "temporal_pooling mean"
        assert file.tags()["input"] == "S2L2A: all.tif, DEM: dem.tif"
    several = {"S2L2A": _several(files, 1, 2, 3), "DEM": dem}
    np.testing.assert_array_equal(_map(task, tmp_path / "files", several), whole)
    with rasterio.open(tmp_path / "files" / "a_20240101_pred.tif") as file:
        assert file.tags()["input"] == "S2L2A: a_20240101.tif, a_20240102.tif, a_20240103.tif; DEM: dem.tif"
    repeated = {"S2L2A": files["all"], "DEM": files["DEM_three"]}
    np.testing.assert_allclose(_map(task, tmp_path / "repeated", repeated), whole, atol=1e-6)
    by_band = {"S2L2A": files["by_band"], "DEM": dem}
    order = "--data.init_args.temporal_channel_major=true"
    np.testing.assert_array_equal(_map(task, tmp_path / "by_band", by_band, order), whole)
    assert np.abs(_map(task, tmp_path / "wrong", by_band) - whole).max() > 1e-3


def test_an_unfinished_series_goes_on(tasks: Any, files: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    from terramind_plugin.inference import stream

    scenes = {"S2L2A": _several(files, 1, 2, 3), "DEM": files["DEM"]}
    whole = _map(tasks["mean"], tmp_path / "whole", scenes)
    compute, count = stream.Streamer._compute, []

    def once(self: Any, batch: Any, blend: Any) -> None:
        count.append(1)
        if len(count) == 2:
            raise RuntimeError("stopped here")
        compute(self, batch, blend)

    words = [word for name, paths in scenes.items() for word in ("--scene", f"{name}={paths}")]
    config, checkpoint = tasks["mean"]
    common = ["map", "-c", config, "--ckpt_path", checkpoint, *words, "--out", tmp_path / "x", "--probabilities"]
    with monkeypatch.context() as patch:
        patch.setattr(stream.Streamer, "_compute", once)
        with pytest.raises(RuntimeError, match="stopped here"):
            main([str(word) for word in [*common, *WINDOWS]])
    assert (tmp_path / "x" / "a_20240101_map.partial").is_dir()
    np.testing.assert_array_equal(_map(tasks["mean"], tmp_path / "x", scenes), whole)
    # Another later date is another input.
    with rasterio.open(files["date3"]) as file:
        other = _write(tmp_path / "b_20240104.tif", file.read()[::-1])
    changed = {**scenes, "S2L2A": f"{_several(files, 1, 2)},{other}"}
    assert np.abs(_map(tasks["mean"], tmp_path / "x", changed) - whole).max() > 1e-3


def test_missing_dates_are_those_of_the_data_module(tasks: Any, tmp_path: Path) -> None:
    size = (32, 64)
    shots, dem = _shots("S2L2A", 3, size), _shots("DEM", 1, size)
    shots[1, :, :, :32] = np.nan
    shots[0, 0, 5, 5] = np.nan
    scenes = {name: _write(tmp_path / f"{name}.tif", image.reshape(-1, *size)) for name, image in
              (("S2L2A", shots), ("DEM", dem))}  # fmt: skip
    words = ("--crop", "32", "--stride", "28", "--margin", "2")
    got = _map(tasks["mean"], tmp_path / "x", scenes, *words, "--data.init_args.allow_missing_modalities=true")
    x = {"S2L2A": _standardised("S2L2A", shots)[..., :32], "DEM": _standardised("DEM", dem)[..., :32]}
    x["S2L2A"][:, 0, 0, 5, 5] = 0
    two = {"S2L2A": x["S2L2A"][:, :, [0, 2]], "DEM": x["DEM"].expand(-1, -1, 2, -1, -1)}
    np.testing.assert_allclose(got[..., :28], _expected(tasks["mean"], two)[..., :28], atol=1e-5)
    filled = _map(tasks["mean"], tmp_path / "y", scenes, *words)
    assert np.abs(filled - got)[..., :28].max() > 1e-4
    assert np.isfinite(got).all()


def test_joined_bands(tasks: Any, tmp_path: Path) -> None:
    size = (32, 48)
    shots = {name: _shots(name, 1, size) for name in NAMES}
    scenes = {name: _write(tmp_path / f"{name}.tif", shot[0]) for name, shot in shots.items()}
    x = torch.cat([_standardised(name, shots[name])[:, :, 0] for name in NAMES], dim=1)
    got = _map(tasks["joined"], tmp_path / "out", scenes, "--crop", "64", "--stride", "60")
    np.testing.assert_allclose(got, _expected(tasks["joined"], x), atol=1e-5)


def test_messages(tasks: Any, files: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    small = _write(tmp_path / "small.tif", _shots("S2L2A", 1, (20, 20))[0], crs=None)
    odd = _write(tmp_path / "odd.tif", _shots("S2L2A", 2).reshape(-1, *SIZE)[:20])
    two, three = _several(files, 1, 2), files["all"]
    radar = _write(tmp_path / "two.tif", np.repeat(_shots("DEM", 1)[0], 2, axis=0))
    dem = files["DEM"]
    for pooling, optical, heights, message in (
        ("diff", three, dem, f"{three}: S2L2A has 3 dates, expected 2 for temporal_pooling: diff. Give 2 dates"),
        ("diff", files["date1"], dem, f"{files['date1']}: S2L2A has 1 date, expected 2"),
        ("mean", three, radar, f"S2L2A has 3 dates ({three}), DEM has 2 dates ({radar}). Give each as many"),
        ("mean", _several(files, 2, 1), dem, "a_20240101.tif comes after a_20240102.tif, but its date is earlier"),
        ("mean", odd, dem, f"{odd} has 20 bands, not a multiple of the 12 of one date of S2L2A"),
        ("mean", f"{files['date1']},{small}", dem, f"{small} has the CRS none, but the first input has EPSG:32632"),
        ("mean", f"{files['date1']},{tmp_path}/no.tif", dem, f"There is no file {tmp_path}/no.tif"),
        ("mean", f"{files['date1']},", dem, "has a comma without a file on both sides"),
        ("joined", two, dem, "lists 2 dates, but the configuration has one. Set expand_temporal_dimension"),
    ):
        config, checkpoint = tasks[pooling]
        words = ["--scene", f"S2L2A={optical}", "--scene", f"DEM={heights}", "--out", str(tmp_path / "out"), *WINDOWS]
        assert main(["map", "-c", str(config), "--ckpt_path", str(checkpoint), *words]) == 2
        (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("terramind: ")]
        assert message in line
