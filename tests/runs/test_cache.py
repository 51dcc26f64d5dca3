"""Memos in real runs: the same losses, hit rates in the logs, several processes, real chips."""

from __future__ import annotations

import csv
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from terramind_plugin.backbones.cache.store import Store
from tests.runs.real_chips import CHIPS, ENDINGS, changes_to, needs_chips
from tests.runs.running import Runner

PROGRAM = Path(sys.executable).with_name("terratorch")
D4 = [{"class_path": "albumentations.D4"}, {"class_path": "ToTensorV2"}]
CROP = [
    {"class_path": "albumentations.RandomCrop", "init_args": {"height": 32, "width": 32}},
    {"class_path": "ToTensorV2"},
]
TIM = {"model_args.backbone": "terramind_v1_tiny_tim"}
ARMS = {
    "tim": lambda folder: {**TIM, "model_args.backbone_tim_cache": str(folder)},
    "features": lambda folder: {"model.freeze_backbone": True, "model_args.backbone_feature_cache": str(folder)},
    "both": lambda folder: {
        **TIM,
        "model.freeze_backbone": True,
        "model_args.backbone_tim_cache": str(folder),
        "model_args.backbone_feature_cache": str(folder),
        "model_args.backbone_feature_cache_dtype": "float32",
    },
}


def _log(folder: Path, name: str) -> dict[str, Any]:
    init_args = {"save_dir": str(folder), "name": name, "version": 0}
    return {"trainer.logger": {"class_path": "CSVLogger", "init_args": init_args}, "trainer.log_every_n_steps": 1}


def _column(folder: Path, name: str, metric: str) -> list[float]:
    with open(folder / name / "version_0" / "metrics.csv", newline="") as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]


@pytest.mark.parametrize("arm", ARMS)
def test_a_warm_cache_gives_the_same_losses(runner: Runner, tmp_path: Path, arm: str) -> None:
    changes = {**ARMS[arm](tmp_path / "cache"), "trainer.max_epochs": 3, "data.train_transform": D4}
    for name in ("cold", "warm"):
        runner.terratorch("fit", {**changes, **_log(tmp_path, name)})
    cold, warm = (_column(tmp_path, name, "train/loss") for name in ("cold", "warm"))
    assert len(cold) == 6
    assert warm == cold
    assert _column(tmp_path, "warm", "val/loss") == _column(tmp_path, "cold", "val/loss")
    file = "features" if arm != "tim" else "tim"
    assert _column(tmp_path, "warm", f"cache/{file}_hit_rate") == [1.0, 1.0, 1.0]
    assert _column(tmp_path, "cold", f"cache/{file}_hit_rate")[0] < 1
    assert _column(tmp_path, "warm", f"cache/{file}_evaluation_hit_rate")[-1] == 1
    if arm == "tim":  # one thought takes much longer than looking up, even here
        assert _column(tmp_path, "warm", f"cache/{file}_seconds_saved")[-1] > 0


def test_the_default_is_under_the_runs_root(runner: Runner, tmp_path: Path) -> None:
    changes = {**TIM, "model_args.backbone_tim_cache": True, "trainer.default_root_dir": str(tmp_path / "root")}
    runner.terratorch("fit", changes)
    assert (tmp_path / "root" / "cache" / "tim.sqlite3").is_file()


def test_random_crops_are_not_remembered_for_ever(
    runner: Runner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {
        **ARMS["tim"](tmp_path / "cache"),
        **_log(tmp_path, "crops"),
        "trainer.max_epochs": 11,
        "data.train_transform": CROP,
    }
    with caplog.at_level(logging.WARNING):
        runner.terratorch("fit", changes)
    said = [record.message for record in caplog.records if "only 0.0 % of 32 training samples" in record.message]
    assert len(said) == 1
    assert _column(tmp_path, "crops", "cache/tim_evaluation_hit_rate")[-1] == 1


def test_a_backbone_that_trains_has_no_feature_cache(runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="freeze_backbone: true"):
        runner.terratorch("fit", {"model_args.backbone_feature_cache": str(tmp_path / "cache")})


@needs_chips
@pytest.mark.parametrize("arm", ["tim", "features"])
def test_real_chips(runner: Runner, spain: dict[str, Any], tmp_path: Path, arm: str) -> None:
    changes = {**spain, **ARMS[arm](tmp_path / "cache"), "trainer.max_epochs": 2}
    for name in ("cold", "warm"):
        runner.terratorch("fit", {**changes, **_log(tmp_path, name)})
    assert _column(tmp_path, "warm", "train/loss") == _column(tmp_path, "cold", "train/loss")
    assert _column(tmp_path, "warm", f"cache/{arm}_hit_rate") == [1.0, 1.0]


@needs_chips
@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_real_radar_chips(runner: Runner, tmp_path: Path, arm: str) -> None:
    """As they are, 512 x 512; one is all NaN and counts as missing."""
    names = sorted(path.name.removesuffix("_S1Hand.tif") for path in (CHIPS / "S1GRDHand").glob("*.tif"))
    data = changes_to(tmp_path, dict.fromkeys(("train", "val", "test", "predict"), names), ["S1GRD"])
    folders = {"data.data_root": {"S1GRD": str(CHIPS / "S1GRDHand")}, "data.label_data_root": str(CHIPS / "LabelHand")}
    changes = {**data, **folders, **ARMS[arm](tmp_path / "cache"), "data.allow_missing_modalities": True}
    assert set(ENDINGS) >= {"S1GRDHand"}
    for name in ("cold", "warm"):
        runner.terratorch("fit", {**changes, **_log(tmp_path, name)})
    assert _column(tmp_path, "warm", "train/loss") == _column(tmp_path, "cold", "train/loss")


@pytest.mark.slow
def test_killed_and_two_at_once(runner: Runner, tmp_path: Path) -> None:
    """A run is killed in the middle of filling; two more fill the same cache at once; a last one finds it all."""
    cache = tmp_path / "cache"
    changes = {**ARMS["tim"](cache), "trainer.max_epochs": 3, "data.train_transform": D4}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen[bytes]:
        config = runner.write({**changes, **_log(tmp_path, name)})
        words = [PROGRAM, "fit", "--config", config]
        return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    killed = start("killed")
    deadline = time.monotonic() + 120
    while not (cache / "tim.sqlite3").exists() or Store(cache / "tim.sqlite3", 10**9).size() == 0:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    for process in [start("one"), start("two")]:
        assert process.wait(300) == 0
    assert start("last").wait(300) == 0
    losses = {name: _column(tmp_path, name, "train/loss") for name in ("one", "two", "last")}
    assert losses["one"] == losses["two"] == losses["last"]
    assert _column(tmp_path, "last", "cache/tim_hit_rate") == [1.0, 1.0, 1.0]


@pytest.mark.slow
def test_two_processes_of_one_run(runner: Runner, tmp_path: Path) -> None:
    ddp = {"trainer.devices": 2, "trainer.strategy": "ddp", "data.batch_size": 1, "trainer.max_epochs": 2}
    changes = {**ARMS["tim"](tmp_path / "cache"), **ddp}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for name in ("cold", "warm"):
        config = runner.write({**changes, **_log(tmp_path, name)})
        words = [PROGRAM, "fit", "--config", str(config)]
        result = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert result.returncode == 0, result.stderr[-3000:]
    assert _column(tmp_path, "warm", "train/loss") == _column(tmp_path, "cold", "train/loss")
    assert _column(tmp_path, "warm", "cache/tim_hit_rate") == [1.0, 1.0]
