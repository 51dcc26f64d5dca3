"""No command writes over what it reads, or over what is not its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from terramind_plugin.cli import main
from terramind_plugin.errors import ConfigError
from terramind_plugin.simulation.dataset import SimulatedDataset, simulate
from terramind_plugin.system.files import check_picture, write_figure
from tests.commands import refused
from tests.inference.conftest import write_modality
from tests.runs.running import Runner, segmentation_config

NANO = ("--modality", "S2L2A", "--model", "terramind_sim_nano", "--pretrained", "false")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SimulatedDataset:
    return simulate(tmp_path_factory.mktemp("scenes"), size=64, chips=3)


def itself(path: Path) -> Path:
    return path


def link(path: Path) -> Path:
    other = path.with_name(f"link_{path.name}")
    other.symlink_to(path)
    return other


def hard_link(path: Path) -> Path:
    other = path.with_name(f"hard_{path.name}")
    other.hardlink_to(path)
    return other


by_name = pytest.mark.parametrize("name", [itself, link, hard_link])


@by_name
def test_merge_and_export(name: Callable[[Path], Path], tmp_path: Path, capsys: Any) -> None:
    checkpoint = tmp_path / "a.safetensors"
    torch.save({"state_dict": {"model.x": torch.ones(3)}}, checkpoint)
    before, other = checkpoint.read_bytes(), name(checkpoint)
    for words in (
        ["merge", "--model", checkpoint],
        ["merge", "--model", tmp_path / "no.ckpt", "--base", checkpoint],
        ["export", "--model", checkpoint],
    ):
        assert "is an input and would be overwritten" in refused(capsys, *words, "--out", other)
    message = refused(capsys, "merge", "--model", tmp_path / "no.ckpt", "--config", checkpoint, "--out", other)
    assert "is an input and would be overwritten" in message
    assert checkpoint.read_bytes() == before


@by_name
def test_tokenize(name: Callable[[Path], Path], scenes: SimulatedDataset, tmp_path: Path, capsys: Any) -> None:
    weights = tmp_path / "DEM.safetensors"
    weights.write_bytes(b"weights")
    words = [
        "tokenize",
        "--model",
        "terramind_sim_nano",
        "--data",
        f"DEM={scenes.root / 'data' / 'DEMHand'}",
        "--replace",
    ]
    message = refused(capsys, *words, "--tokenizer_ckpt_path", f"DEM={name(weights)}", "--out", tmp_path)
    assert "is an input and would be overwritten" in message
    assert weights.read_bytes() == b"weights"


def test_pictures_replace_pictures_of_ours_alone(scenes: SimulatedDataset, tmp_path: Path, capsys: Any) -> None:
    from matplotlib.figure import Figure

    data, predictions = scenes.root / "data", tmp_path / "predictions"
    predictions.mkdir()
    for path in (data / "LabelHand").iterdir():
        (predictions / path.name.replace("_LabelHand", "_S2Hand_pred")).write_bytes(path.read_bytes())
    config = Runner(segmentation_config(scenes), tmp_path).write()
    raster = write_modality(tmp_path / "data.tif", "S1GRD", (8, 8))
    foreign = tmp_path / "foreign.png"
    Figure().savefig(foreign)
    text = tmp_path / "text.png"
    text.write_text("mine")
    empty = tmp_path / "empty.png"
    empty.touch()
    kept = {path: path.read_bytes() for path in (raster, foreign, text, empty, config)}
    for path, before in kept.items():
        words = ["figure", "--data", data, "--predictions", predictions, "--out", path]
        assert "is not a picture that terramind has drawn" in refused(capsys, *words)
        assert path.read_bytes() == before
    assert "is not a picture that terramind has drawn" in refused(capsys, "check", "-c", config, "--sheet", raster)
    assert raster.read_bytes() == kept[raster]
    own = tmp_path / "own.png"
    for _ in range(2):
        assert main([*map(str, ["figure", "--data", data, "--predictions", predictions, "--out", own])]) == 0
    write_figure(own, Figure())
    check_picture(own)
    check_picture(tmp_path / "none.png")


@by_name
def test_scenes_and_chips(name: Callable[[Path], Path], tmp_path: Path, capsys: Any) -> None:
    """What a scene becomes may be the other scene, or the other input."""
    out = tmp_path / "out"
    out.mkdir()
    first = write_modality(tmp_path / "a.tif", "S2L2A", (80, 70))
    second = write_modality(tmp_path / "a_LULC.tif", "S2L2A", (80, 70))
    if name is itself:
        out = tmp_path
    elif name is link:
        (out / "a_LULC.tif").symlink_to(second)
    else:
        (out / "a_LULC.tif").hardlink_to(second)
    before = second.read_bytes()
    words = [
        "--modality",
        "S2L2A",
        "--to",
        "LULC",
        "--model",
        "terramind_sim_nano",
        "--steps",
        "1",
        "--out",
        out,
        "--crop",
        "64",
    ]
    assert "is an input and would be overwritten" in refused(capsys, "generate", first, second, *words)
    radar = ["--input", f"S1GRD={second}"]
    second.write_bytes(write_modality(tmp_path / "radar.tif", "S1GRD", (80, 70)).read_bytes())  # the same inode
    changed = second.read_bytes()
    assert "is an input and would be overwritten" in refused(capsys, "generate", first, *words, *radar)
    assert "is an input and would be overwritten" in refused(capsys, "generate", first, *words[:-1], "96", *radar)
    assert second.read_bytes() == changed != before


@pytest.mark.parametrize("names", [("a/x.tif", "c/x.tif"), ("x.tif", "x.tiff"), ("x.tif", "x.tif")])
def test_two_inputs_of_localise_need_two_names(names: tuple[str, str], tmp_path: Path, capsys: Any) -> None:
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        write_modality(path, "S2L2A", (32, 32))
    message = refused(capsys, "localise", *paths, *NANO, "--out", tmp_path / "out")
    assert f"{paths[0]} and {paths[1]} would both be written to" in message
    assert not (tmp_path / "out").exists()


def test_localise_keeps_dots_in_names_and_inputs(tmp_path: Path, capsys: Any) -> None:
    paths = [write_modality(tmp_path / f"tile.{number}.tif", "S2L2A", (32, 32)) for number in (1, 2)]
    out = tmp_path / "out"
    assert main([*map(str, ["localise", *paths, *NANO, "--out", out])]) == 0
    maps = {"tile.1_places.tif", "tile.1_places.png", "tile.2_places.tif", "tile.2_places.png"}
    assert {path.name for path in out.iterdir()} == {*maps, "places.csv"}
    again = write_modality(tmp_path / "tile.1_places.tif", "S2L2A", (32, 32))
    before = again.read_bytes()
    message = refused(capsys, "localise", paths[0], again, *NANO, "--out", tmp_path)
    assert "is an input and would be overwritten" in message
    assert again.read_bytes() == before
    assert np.any(np.frombuffer(before, np.uint8))


def test_a_comparison_does_not_empty_the_folder_of_its_configuration(scenes: SimulatedDataset, tmp_path: Path) -> None:
    from terramind_plugin.evaluate.compare import Comparison, compare

    config = Runner(segmentation_config(scenes), tmp_path).write()
    inside = tmp_path / "out" / "runs" / "plain_seed0" / "config.yaml"
    inside.parent.mkdir(parents=True)
    config.rename(inside)
    with pytest.raises(ConfigError, match="which is emptied"):
        compare(Comparison(inside, ["plain"], 1, tmp_path / "out"))
    assert inside.exists()
