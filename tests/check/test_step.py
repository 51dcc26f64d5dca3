"""The step that `terramind check` tries says what fit would say, leaves nothing behind, and has limits."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from terramind_plugin.check.process import Attempt
from terramind_plugin.check.run import check
from terramind_plugin.cli import main
from terramind_plugin.samples.checks.findings import Finding, worst
from tests.check.spoiling import every_fifth
from tests.runs.running import change, segmentation_config

Write = Callable[[dict[str, Any]], Path]
D4 = {"class_path": "albumentations.D4"}


@pytest.fixture
def write(sound: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes a changed configuration into the working folder, which holds nothing else."""
    monkeypatch.chdir(tmp_path)

    def run(changes: dict[str, Any]) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(change(segmentation_config(sound), changes)))
        return path

    return run


def step(path: Path) -> Finding:
    """Return what is said of the step, after a look at what is left behind."""
    found = check(path, [], 2, step=True)
    assert [entry.name for entry in path.parent.iterdir()] == ["config.yaml"]
    (tried,) = [finding for finding in found if finding.check == "run: step"]
    assert "\n" not in tried.seen
    return tried


def select(*indices: int) -> dict[str, Any]:
    others = [{"name": "ReshapeTokensToImage"}, {"name": "LearnedInterpolateToPyramidal"}]
    return {
        "model_args.backbone_out_indices": [2, 5, 8, 11],
        "model_args.necks": [{"name": "SelectIndices", "indices": list(indices)}, *others],
    }


def logger(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"trainer.logger": {"class_path": kind, "init_args": arguments}}


def callback(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"trainer.callbacks": [{"class_path": kind, "init_args": arguments}]}


def crop(height: int, width: int) -> dict[str, Any]:
    return {"class_path": "albumentations.RandomCrop", "init_args": {"height": height, "width": width}}


FAILING: dict[str, tuple[dict[str, Any], str]] = {
    "no tensors": ({"data.train_transform": [D4]}, "no attribute 'long'.*AttributeError in terratorch"),
    "patch of the neck": ({"model_args.backbone": "terramind_sim_nano"}, "set the neck's patch_size"),
    "kept layers counted": (select(0, 1, 2, 3), "Layer 0 was not kept. out_indices kept"),
    "cache of what trains": ({"model_args.backbone_feature_cache": "cache"}, "Set freeze_backbone: true"),
    "no folder": ({"data.data_root": ""}, "The folder of S2L1C does not exist"),
    "null folder": ({"data.data_root": None}, "fit needs data.init_args.train_data_root"),
    "no logger to monitor": (callback("LearningRateMonitor", logging_interval="epoch"), "that has no logger"),
    "no wandb": (logger("WandbLogger", project="x"), "'wandb.*not met.*ModuleNotFoundError"),
    "no mlflow": (logger("MLFlowLogger", experiment_name="x"), "'mlflow.*not met.*ModuleNotFoundError"),
    "scheduler without its argument": ({"model.scheduler": "StepLR"}, "missing 1 required .*'step_size'"),
    "crop larger than the chips": (
        {"data.train_transform": [crop(128, 128)]},
        "exceeds image dimensions",
    ),
    "tiles without sizes": ({"model.tiled_inference_on_validation": True}, "configuration for the tiled inference"),
    "unknown strategy": ({"trainer.strategy": "dpp"}, "invalid strategy name"),
    "negative workers": ({"data.num_workers": -1}, "num_workers option should be non-negative"),
    "dates that are not there": ({"model_args.backbone_use_temporal": True}, r"Expected input shape \[B, C, T, H, W\]"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", every_fifth(FAILING))
def test_what_stops_fit_is_said(mistake: str, write: Write) -> None:
    if any(mistake == f"no {name}" and name in sys.modules for name in ("wandb", "mlflow")):
        pytest.skip("the library is installed")
    changes, text = FAILING[mistake]
    tried = step(write(changes))
    assert tried.verdict == "error"
    assert tried.seen.startswith("fit fails: ")
    assert re.search(text, tried.seen), tried.seen


WRITING: dict[str, dict[str, Any]] = {
    "all that writes": {
        **logger("TensorBoardLogger", save_dir="logs"),
        "trainer.enable_checkpointing": True,
        "trainer.enable_progress_bar": True,
        "model.plot_on_val": True,
        "trainer.callbacks": [
            {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "best", "monitor": "val/loss"}},
            {"class_path": "StateDictAwareModelCheckpoint", "init_args": {"monitor": "val/loss"}},
            {"class_path": "LearningRateMonitor", "init_args": {"logging_interval": "epoch"}},
            {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}},
            {"class_path": "RichProgressBar"},
            {"class_path": "terramind_plugin.SegmentationImages"},
            {"class_path": "terramind_plugin.GeoTiffWriter"},
        ],
    },
    "loggers by default": {"trainer.logger": True, "trainer.enable_checkpointing": True},
    "a search for the learning rate": callback("LearningRateFinder"),
    "a search for the batch size": callback("BatchSizeFinder"),
    "cache of what is frozen": {"model.freeze_backbone": True, "model_args.backbone_feature_cache": "cache"},
    "a profiler": {"trainer.profiler": "simple"},
    "layers by number": select(2, 5, 8, 11),
    "weights from the hub": {"model_args.backbone_pretrained": True},
    "no validation": {"trainer.limit_val_batches": 0},
    "odd size": {"data.train_transform": [crop(40, 50), {"class_path": "ToTensorV2"}]},
}  # fmt: skip


@pytest.mark.parametrize("setting", every_fifth(WRITING))
def test_a_step_that_works_leaves_nothing(setting: str, write: Write) -> None:
    tried = step(write(WRITING[setting]))
    assert (tried.verdict, "loss" in tried.seen) == ("ok", True), tried.seen


@pytest.mark.slow
def test_a_callback_that_writes_where_it_likes(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "scribbler.py").write_text(
        "from lightning.pytorch.callbacks import Callback\n"
        "class Scribbler(Callback):\n"
        "    def on_train_end(self, trainer, module):\n"
        f"        open({str(tmp_path / 'scribbled')!r}, 'w').close()\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "code")
    (tried,) = [f for f in check(write(callback("scribbler.Scribbler")), [], 2, step=True) if f.check == "run: step"]
    assert tried.verdict == "note"
    assert f"it needs {tmp_path / 'scribbled'}, and check neither writes files" in tried.seen
    assert not (tmp_path / "scribbled").exists()


def test_limits_in_time_and_memory(write: Write) -> None:
    path = write({})
    (late,) = Attempt(path, [], seconds=0.2).finish()
    assert (late.check, late.verdict) == ("run: step", "note")
    assert "not tried: it takes more than 0.2 s, " in late.seen
    # A layer of 2.4 GB, which is never filled: one of 150 MB once fitted into what earlier tests had freed.
    path = write({"model_args.decoder_channels": [8192, 16, 16, 8]})
    (large,) = Attempt(path, [], memory=20_000_000).finish()
    assert (large.verdict, "not tried: it needs more memory than is free" in large.seen) == ("note", True), large.seen


def test_a_machine_without_room_for_temporary_files(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    tried = step(write({}))
    assert (tried.verdict, "not tried: [Errno 2]" in tried.seen) == ("note", True)


def test_an_attempt_that_is_not_needed_ends(write: Write) -> None:
    attempt = Attempt(write({}), [])
    attempt.stop()
    assert not attempt.folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(attempt.pid, 0)


@pytest.mark.slow
def test_a_new_process_tries_the_same(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terramind_plugin.check.process.sys.platform", "other")
    assert step(write({})).verdict == "ok"


def test_rules_that_a_step_disproves_are_warnings(write: Write) -> None:
    # A callback that may do without its monitor, which is never logged.
    changes = callback("EarlyStopping", monitor="val/miou", strict=False)
    found = check(write(changes), [], 2, step=True)
    assert worst(found) == "warning"
    assert any("Training works all the same." in finding.seen for finding in found)


def test_the_command_says_what_it_does(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", "-c", str(write({})), "--samples", "2"]
    assert main([*words, "--no_step"]) == 0
    said = capsys.readouterr()
    stages = [
        "loading TerraTorch",
        "building data module and model",
        "headers of 36 files",
        "pixels of up to 2 samples",
    ]
    places = [said.err.index(stage) for stage in stages]
    assert places == sorted(places)
    assert "trying" not in said.err
    assert "run: step" not in said.out
