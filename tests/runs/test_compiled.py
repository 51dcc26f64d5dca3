"""Runs with a compiled model: the same losses, the same checkpoints, in one process and in two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from terramind_plugin.model import compiled
from tests.runs.running import Runner, fit_once

pytestmark = pytest.mark.usefixtures("fresh_graphs")
ROOT = Path(__file__).parents[2]
SMALL = {
    "model_args.backbone": "terramind_sim_nano",
    "model_args.backbone_out_indices": [1, 2, 4, 5],
    "model_args.necks": [{"name": "terramind_pyramid", "patch_size": 8}],
    "model_args.decoder": "terramind_unet",
    "model_args.head_dropout": 0.1,
    "data.drop_last": False,
}
"""A model that is compiled in seconds."""
WATCH = '''
import json
from pathlib import Path

from lightning.pytorch.callbacks import Callback


class Losses(Callback):
    """Writes down the losses of each process."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())

    def on_fit_end(self, trainer, pl_module):
        Path(trainer.default_root_dir, f"losses_{trainer.global_rank}.json").write_text(json.dumps(self.losses))
'''


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which runs leave their losses."""
    (tmp_path / "watch.py").write_text(WATCH)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def callbacks(mode: str) -> list[dict[str, Any]]:
    compiled_model = {"class_path": "terramind_plugin.CompiledModel", "init_args": {"mode": mode}}
    return [{"class_path": "watch.Losses"}, compiled_model]


def losses(folder: Path, rank: int = 0) -> list[float]:
    found: list[float] = json.loads((folder / f"losses_{rank}.json").read_text())
    return found


def use_quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let graphs run as they are traced, which takes seconds instead of minutes."""
    monkeypatch.setattr(
        "terramind_plugin.backbones.network.compile_model",
        lambda model, mode, backend: compiled.compile_model(model, mode, backend="eager"),
    )


@pytest.mark.slow
def test_losses_of_twenty_steps_are_those_without(runner: Runner, watched: Path) -> None:
    """With the default compiler, dropout and a last batch that is smaller.

    SGD, since AdamW turns the rounding of gradients that are nearly zero into whole steps.
    """
    changes = {**SMALL, "trainer.max_epochs": 10, "model.optimizer": "SGD", "model.lr": 1e-2, "data.batch_size": 3}
    runs = {}
    for mode in ("off", "default"):
        runner.terratorch("fit", {**changes, "trainer.callbacks": callbacks(mode)})
        runs[mode] = losses(watched)
    assert len(runs["off"]) == 20
    assert runs["default"] == pytest.approx(runs["off"], rel=1e-5)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"data.allow_missing_modalities": True, "model_args.backbone_modality_drop_rate": 0.3},
        {"model_args.backbone_lora": True, "trainer.accumulate_grad_batches": 2},
        {"model.freeze_backbone": True, "trainer.precision": "bf16-mixed"},
        {"model_args.backbone_activation_checkpointing": True, "trainer.gradient_clip_val": 1.0},
        {
            "model_args.backbone": "terramind_v1_tiny",
            "model_args.decoder": "UNetDecoder",
            "model_args.necks": [{"name": "terramind_pyramid"}],
            "model_args.backbone_out_indices": [2, 5, 8, 11],
        },
    ],
    ids=["missing modalities", "adapters, accumulated", "frozen, bfloat16", "checkpointing, clipped", "tiny"],
)
def test_two_graphs_without_a_break(
    runner: Runner, watched: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Losses are equal to the last bit: this compiler runs the graphs as they are."""
    use_quick_compiler(monkeypatch)
    runs = {}
    for mode in ("off", "default"):
        arguments = {**SMALL, "data.batch_size": 3, "trainer.max_epochs": 3, **changes}
        runner.terratorch("fit", {**arguments, "trainer.callbacks": callbacks(mode)})
        runs[mode] = losses(watched)
    assert runs["default"] == runs["off"]
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


@pytest.mark.slow
def test_checkpoints_go_both_ways(
    segmentation: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_quick_compiler(monkeypatch)
    paths = {}
    for mode, other in (("default", "off"), ("off", "default")):
        (tmp_path / mode).mkdir()
        fitted = fit_once(segmentation, tmp_path / mode, {**SMALL, **_with(mode, tmp_path / mode)})
        paths[mode] = torch.load(fitted.checkpoint, weights_only=False)["state_dict"]
        again = Runner(segmentation, tmp_path / mode)
        changes = {
            **SMALL,
            "trainer.callbacks": _with(other, tmp_path)["trainer.callbacks"][1:],
            "trainer.max_epochs": 2,
        }
        cli = again.terratorch("fit", changes, "--ckpt_path", fitted.checkpoint)
        assert cli.trainer.global_step == 4
        again.terratorch("test", changes, "--ckpt_path", fitted.checkpoint)
    assert list(paths["default"]) == list(paths["off"])
    assert not any("_orig_mod" in name for name in paths["default"])
    for name, value in paths["off"].items():
        assert torch.equal(paths["default"][name], value), name


def _with(mode: str, folder: Path) -> dict[str, Any]:
    """Return a change to callbacks that compile, with a checkpoint."""
    checkpoint = {"dirpath": str(folder), "filename": "best", "monitor": "val/loss", "enable_version_counter": False}
    return {
        "trainer.callbacks": [
            {"class_path": "ModelCheckpoint", "init_args": checkpoint},
            {"class_path": "terramind_plugin.CompiledModel", "init_args": {"mode": mode}},
        ]
    }


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_two_processes(runner: Runner, watched: Path, checkpointing: bool) -> None:
    """Plain DDP, although layers are left out and a modality is missing from whole batches."""
    changes = {
        **SMALL,
        "model_args.backbone_out_indices": [0, 1, 2, 3],
        "model_args.backbone_merge_method": "concat",
        "model_args.backbone_activation_checkpointing": checkpointing,
        "model_args.backbone_modalities": ["S2L1C", "S1GRD", "DEM"],
        "trainer.devices": 2,
        "trainer.strategy": "ddp",
        "trainer.max_epochs": 2,
        "data.batch_size": 1,
        "model.lr": 1e-4,
    }
    runs = {}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(watched)]), "HF_HUB_OFFLINE": "1"}
    for mode in ("off", "default"):
        config = runner.write({**changes, "trainer.callbacks": callbacks(mode)})
        command = [sys.executable, "-m", "terramind_plugin.cli", "fit", "--config", str(config)]
        done = subprocess.run(command, cwd=watched, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "without compilation" not in done.stderr + done.stdout
        runs[mode] = [losses(watched, rank) for rank in (0, 1)]
    assert len(runs["off"][0]) == 4
    for one, other in zip(runs["default"], runs["off"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
