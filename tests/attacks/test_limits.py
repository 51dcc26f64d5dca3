"""Numbers and texts that no command can take: one line, not a traceback or a hang."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from terramind_plugin.cli import main
from terramind_plugin.errors import ConfigError
from terramind_plugin.simulation.dataset import simulate
from terramind_plugin.system.files import MOST_ENTRIES, read_yaml
from tests.commands import refused
from tests.inference.conftest import write_modality
from tests.runs.running import Runner, segmentation_config

HUGE = str(2**80)
LEVELS = 40
BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, LEVELS))])
CYCLE = "a: &a [*a]"
DEEP = "a: " + "[" * 5000 + "]" * 5000


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("limits")
    return Runner(segmentation_config(simulate(folder / "scenes", size=64, chips=3)), folder).write()


@pytest.mark.parametrize("seed", [HUGE, "-1", str(2**32)])
def test_seeds(seed: str, config: Path, tmp_path: Path, capsys: Any) -> None:
    chip = write_modality(tmp_path / "chip.tif", "S2L2A", (32, 32))
    patches = tmp_path / "patches.csv"
    patches.write_text("path,label\n" + "".join(f"chip.tif,{label}\n" for label in "ab" for _ in range(2)))
    nano = ("--modality", "S2L2A", "--model", "terramind_sim_nano", "--out", tmp_path / "out")
    for words in (
        ["simulate", "--out", tmp_path / "out"],
        ["reconstruct", chip, *nano],
        ["generate", chip, "--to", "LULC", *nano],
        ["few-shot", patches, "--modality", "S2L2A", "--model", "terramind_sim_nano", "--ways", "2", "--queries", "1",
         "--out", tmp_path / "out"],
        ["zero-shot", "-c", config, "--target", "water", "--out", tmp_path / "out"],
    ):  # fmt: skip
        assert "seed must be a whole number from 0 to 4294967295" in refused(capsys, *words, "--seed", seed)
        assert not (tmp_path / "out").exists()
    seeded = tmp_path / "seeded.yaml"
    seeded.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"seed_everything": int(seed)}))
    assert "must be a whole number" in refused(capsys, "compare", "-c", seeded, "--out", tmp_path / "out")


def test_a_date_that_is_none(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "abc")
    scene = write_modality(tmp_path / "scene.tif", "S2L2A", (80, 70))
    words = [
        "generate",
        scene,
        "--modality",
        "S2L2A",
        "--to",
        "LULC",
        "--model",
        "terramind_sim_nano",
        "--out",
        tmp_path / "out",
    ]
    assert "SOURCE_DATE_EPOCH must be a number of seconds" in refused(capsys, *words)


@pytest.mark.parametrize("text", [BOMB, CYCLE], ids=["bomb", "cycle"])
def test_configurations_that_would_hang(text: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    raster = write_modality(tmp_path / "scene.tif", "S1GRD", (32, 32))
    for words in (
        ["compare", "-c", path, "--out", tmp_path / "out"],
        ["zero-shot", "-c", path, "--target", "water", "--out", tmp_path / "out"],
        ["map", "-c", path, "--ckpt_path", raster, "--scene", raster, "--out", tmp_path / "out"],
        ["merge", "--model", raster, "--config", path, "--out", tmp_path / "out.ckpt"],
        ["fit", "--config", path],
        ["fit", f"--config={path}"],
        ["predict", "--model", path],
    ):
        message = refused(capsys, *words)
        if words[0] != "merge":  # the checkpoint is read first
            assert "config.yaml" in message
            assert "once its aliases (*name) are written out" in message
    assert main(["check", "-c", str(path)]) == 2


def test_aliases_that_are_no_attack(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("base: &base {a: 1, b: [1, 2]}\nmore: [*base, *base]\nmerged: {<<: *base, c: 3}\n")
    assert read_yaml(path)["merged"] == {"a": 1, "b": [1, 2], "c": 3}
    path.write_text(f"a: &a [{'1, ' * 1000}]\nb: [{'*a, ' * (MOST_ENTRIES // 1000)}]")
    with pytest.raises(ConfigError, match="holds more than 100000 entries"):
        read_yaml(path)
    path.write_text(DEEP)
    with pytest.raises(ConfigError, match="nested too deeply"):
        read_yaml(path)
    path.write_text("")
    assert read_yaml(path) is None
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_yaml(path)
    path.write_text("when: 2026-13-45\n")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_yaml(path)
