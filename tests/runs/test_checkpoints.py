"""Checkpoints: TerraTorch's own load and give the same numbers; another model's are refused; the hub is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from terramind_plugin.backbones.encoder import TerraMindBackbone
from tests.runs.running import Fitted, fit_once

NECKS = [
    {"name": "SelectIndices", "indices": [2, 5, 8, 11]},
    {"name": "ReshapeTokensToImage", "remove_cls_token": False},
    {"name": "LearnedInterpolateToPyramidal"},
]
"""Those of the published configurations, which both backbones can have."""


@pytest.fixture(scope="module")
def theirs(segmentation: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Return a training run of TerraTorch's own TerraMind."""
    changes = {"model_args.backbone": "terratorch_terramind_v1_tiny", "model_args.necks": NECKS}
    fitted = fit_once(segmentation, tmp_path_factory.mktemp("theirs"), changes)
    assert not isinstance(fitted.cli.model.model.encoder, TerraMindBackbone)
    return fitted


@pytest.fixture(scope="module")
def plain(theirs: Fitted) -> Path:
    """Return its checkpoint as TerraTorch writes it without the plugin: the backbone is called terramind_v1_tiny."""
    content = torch.load(theirs.checkpoint, weights_only=True)
    content["hyper_parameters"]["model_args"]["backbone"] = "terramind_v1_tiny"
    path = theirs.folder / "plain.ckpt"
    torch.save(content, path)
    return path


def _metrics(cli: Any) -> dict[str, float]:
    return {name: float(value) for name, value in cli.trainer.callback_metrics.items() if name.startswith("test/")}


def test_their_checkpoint_tests_the_same_with_our_backbone(runner: Any, theirs: Fitted, plain: Path) -> None:
    changes = {"model_args.necks": NECKS, "model_args.backbone": "terratorch_terramind_v1_tiny"}
    expected = runner.terratorch("test", changes, "--ckpt_path", theirs.checkpoint)
    assert not isinstance(expected.model.model.encoder, TerraMindBackbone)
    ours = runner.terratorch("test", {"model_args.necks": NECKS}, "--ckpt_path", plain)
    assert isinstance(ours.model.model.encoder, TerraMindBackbone)
    assert _metrics(ours) == pytest.approx(_metrics(expected), abs=1e-4, nan_ok=True)
    assert _metrics(ours)["test/loss"] > 0


def test_terramind_takes_both_names(runner: Any, theirs: Fitted, plain: Path) -> None:
    for path in (theirs.checkpoint, plain):
        assert runner.terramind("test", {"model_args.necks": NECKS}, "--ckpt_path", path) == 0


def test_a_checkpoint_of_another_model_is_refused(
    runner: Any, fitted: Fitted, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = {"model_args.backbone": "terramind_v1_small", "model_args.backbone_modalities": ["S1GRD", "S2L1C"]}
    for command in ("test", "fit"):
        assert runner.terramind(command, changes, "--ckpt_path", fitted.checkpoint) == 2
        message = capfd.readouterr().err.rpartition("terramind: ")[2]
        assert f"{fitted.checkpoint} is a checkpoint of another model" in message
        assert "backbone: terramind_v1_tiny in the checkpoint, terramind_v1_small in the configuration" in message
        assert "backbone_modalities: ['S2L1C', 'S1GRD'] in the checkpoint" in message


def test_the_hub_is_not_needed_for_a_trained_model(runner: Any, fitted: Fitted, tmp_path: Path) -> None:
    content = torch.load(fitted.checkpoint, weights_only=True)
    content["hyper_parameters"]["model_args"]["backbone_pretrained"] = True
    path = tmp_path / "pretrained.ckpt"
    torch.save(content, path)
    assert runner.terramind("test", {"model_args.backbone_pretrained": True}, "--ckpt_path", path) == 0
    assert runner.terramind("test", None, "--ckpt_path", path) == 0


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", b"PK\x03\x04 damaged"])
def test_files_that_are_no_checkpoints(
    runner: Any, tmp_path: Path, content: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "broken.ckpt"
    if content is not None:
        path.write_bytes(content)
    assert runner.terramind("test", None, "--ckpt_path", path) == 2
    message = capfd.readouterr().err.rpartition("terramind: ")[2]
    assert str(path) in message
    assert ("not found" if content is None else "cannot be read") in message


def test_the_configuration_wins_over_the_checkpoint(runner: Any, fitted: Fitted, tmp_path: Path) -> None:
    changes = {"model.output_on_inference": "logits"}
    options = ["--ckpt_path", fitted.checkpoint, "--predict_output_dir", tmp_path / "out"]
    assert runner.terramind("predict", changes, *options) == 0
    (path,) = (tmp_path / "out").iterdir()
    assert path.name.endswith("_logits.tif")


def test_the_default_checkpoint_is_the_best_one(runner: Any, tmp_path: Path) -> None:
    changes = {
        "trainer.enable_checkpointing": True, "trainer.callbacks": [], "trainer.max_epochs": 3, "model.lr": 0.05,
        "trainer.default_root_dir": str(tmp_path / "run"),
    }  # fmt: skip
    cli = runner.terratorch("fit", changes)
    kept = [callback for callback in cli.trainer.checkpoint_callbacks if callback.best_model_path]
    assert kept
    assert all(callback.monitor == "val/loss" and Path(callback.best_model_path).is_file() for callback in kept)


@pytest.mark.parametrize(("name", "still"), [("generator_sha256", True), ("encoder_norm.weight", False)])
def test_weights_that_a_checkpoint_lacks_are_fetched(tmp_path: Path, name: str, still: bool) -> None:
    from jsonargparse import Namespace

    from terramind_plugin.integration.lightning_cli import check_checkpoint

    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": {f"model.encoder.{name}": torch.zeros(32)}, "hyper_parameters": {}}, path)
    arguments = {"backbone_pretrained": True}
    check_checkpoint(Namespace(model=Namespace(init_args=Namespace(model_args=arguments))), path)
    assert arguments["backbone_pretrained"] is still
