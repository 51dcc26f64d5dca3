"""Malformed checkpoints given to commands: exit status 2 and the reason, or the very same results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from terramind_plugin.cli import main
from tests.attacks.malformed import KINDS, WHOLE, saved
from tests.runs.running import Fitted

STATE = {
    "no version": {"pytorch-lightning_version": ...},
    "version: none": {"pytorch-lightning_version": None},
    "version: number": {"pytorch-lightning_version": 2.0},
    "version: no number": {"pytorch-lightning_version": "abc"},
    "version: old": {"pytorch-lightning_version": "0.0.1"},
    "no loops": {"loops": ...},
    "loops: list": {"loops": [1]},
    "loops: empty": {"loops": {}},
    "loops: of another kind": {"loops": {"fit_loop": {"state_dict": 3}}},
    "no optimiser": {"optimizer_states": ...},
    "optimiser: none": {"optimizer_states": None},
    "optimiser: of another model": {"optimizer_states": [{"state": {}, "param_groups": [{"params": [0]}]}]},
    "optimiser: text": {"optimizer_states": ["abc"]},
    "no schedulers": {"lr_schedulers": ...},
    "schedulers: text": {"lr_schedulers": ["abc"]},
    "callbacks: list": {"callbacks": [1]},
    "callbacks: text inside": {"callbacks": {"ModelCheckpoint": "abc"}},
    "epoch: text": {"epoch": "abc"},
    "data: text": {"TerraMindDataModule": "abc"},
    "data: class names": {"TerraMindDataModule": {"class_names": 5}},
}
"""Parts of a Lightning checkpoint that are changed, or left out where they are ..."""


def _change(content: dict[str, Any], name: str, folder: Path) -> Path:
    if name in KINDS:
        return KINDS[name](content, folder)
    parts = {**content, **STATE[name]}
    return saved({key: value for key, value in parts.items() if value is not ...}, folder)


@pytest.fixture(scope="module")
def content(fitted: Fitted) -> dict[str, Any]:
    return torch.load(fitted.checkpoint, weights_only=True)


@pytest.fixture(scope="module")
def wanted() -> dict[str, Any]:
    """Return what commands make of the sound checkpoint, filled as they are asked for."""
    return {}


def _run(command: str, runner: Any, path: Path, capfd: Any) -> tuple[int, str, str]:
    capfd.readouterr()
    status = runner.terramind(command, {}, "--ckpt_path", path)
    out, err = capfd.readouterr()
    numbers = (
        " ".join(re.findall(rf"{command.removesuffix('idate')}/loss\S*\W+([\d.]+)", out)) if command != "fit" else ""
    )
    return status, numbers, err.rpartition("terramind: ")[2]


def _attack(command: str, name: str, runner: Any, content: Any, fitted: Any, wanted: Any, folder: Path, capfd: Any):
    if command not in wanted:
        status, wanted[command], _ = _run(command, runner, fitted.checkpoint, capfd)
        assert status == 0
    path = _change(content, name, folder)
    status, numbers, message = _run(command, runner, path, capfd)
    if status == 0:
        assert numbers == wanted[command]
    else:
        assert status == 2
        assert path.name in message or name == "path: name too long", message
        assert name not in WHOLE - REFUSED, message


REFUSED = {"safetensors", "backbone_kwargs: none", "name: empty"}
"""Kinds that hold sound weights but are not a checkpoint of the configured run."""
QUICK = ["hyper_parameters: text", "model_args: list", "state_dict: none", "matrix: sparse", "matrix: one NaN"]
QUICK += ["norm: int64", "norm: removed", "bits turned: 3", "name: number", "no version", "class_names: number"]


@pytest.mark.parametrize("name", QUICK)
def test_test(name, runner, content, fitted, wanted, tmp_path, capfd) -> None:
    _attack("test", name, runner, content, fitted, wanted, tmp_path, capfd)


@pytest.mark.parametrize("name", ["no optimiser", "loops: of another kind"])
def test_resuming(name, runner, content, fitted, wanted, tmp_path, capfd) -> None:
    path = _change(content, name, tmp_path)
    status, _, message = _run("fit", runner, path, capfd)
    assert status == 2
    assert f"{path} cannot be restored" in message


COMMANDS = ("test", "fit", "validate")
CASES = [(COMMANDS[number % 3], name) for number, name in enumerate(KINDS)]
CASES += [(command, name) for name in STATE for command in ("test", "fit")]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "name"), CASES)
def test_every_kind(command, name, runner, content, fitted, wanted, tmp_path, capfd) -> None:
    _attack(command, name, runner, content, fitted, wanted, tmp_path, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS)[::4])
def test_map(name, runner, content, scenes, fitted, wanted, tmp_path, capfd) -> None:
    def run(path: Path, out: Path) -> int:
        config = runner.write()
        files = {key: scenes.root / "data" / f"{key}Hand" for key in ("S2L1C", "S1GRD")}
        given = [word for key, one in files.items() for word in ("--scene", f"{key}={min(one.iterdir())}")]
        words = ["map", "-c", config, "--ckpt_path", path, *given, "--out", out, "--crop", "64", "--probabilities"]
        return main([*map(str, words)])

    if "map" not in wanted:
        assert run(fitted.checkpoint, tmp_path / "sound") == 0
        wanted["map"] = _pixels(tmp_path / "sound")
    path = _change(content, name, tmp_path)
    if run(path, tmp_path / "out") == 0:
        assert (_pixels(tmp_path / "out") == wanted["map"]).all()
    else:
        message = capfd.readouterr().err
        assert path.name in message or name == "path: name too long", message  # that one is cut off
        assert name not in WHOLE


def _pixels(folder: Path) -> Any:
    import rasterio

    (path,) = folder.glob("*probabilities.tif")
    with rasterio.open(path) as raster:
        return raster.read()
