"""Fit, validate and test through TerraTorch's command line: what trains, what does not, and from where it works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from terramind_plugin.backbones.encoder import TerraMindBackbone
from terramind_plugin.errors import ConfigError


def test_fit_trains_the_plugins_backbone(fitted: Any) -> None:
    trainer = fitted.cli.trainer
    assert isinstance(fitted.cli.model.model.encoder, TerraMindBackbone)
    assert trainer.global_step == 2  # four chips, batches of two
    assert trainer.callback_metrics["val/loss"].isfinite()
    assert fitted.checkpoint.is_file()


@pytest.mark.parametrize("command", ["validate", "test"])
def test_runs_from_another_folder(command: str, runner: Any, fitted: Any, tmp_path: Path) -> None:
    cli = runner.terratorch(command, None, "--ckpt_path", fitted.checkpoint, cwd=tmp_path)
    prefix = "val" if command == "validate" else "test"
    metrics = cli.trainer.callback_metrics
    assert metrics[f"{prefix}/mIoU"].isfinite()
    assert {f"{prefix}/IoU_Land", f"{prefix}/IoU_Water"} <= set(metrics)
    assert isinstance(cli.model.model.encoder, TerraMindBackbone)


class Gradients(Callback):
    """Remembers in each step which parts got a gradient, and the mode of the encoder."""

    def __init__(self) -> None:
        self.encoder: list[bool] = []
        self.decoder: list[bool] = []
        self.training: list[bool] = []
        self.epochs: list[int] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        def some(part: torch.nn.Module) -> bool:
            return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())

        self.encoder.append(some(pl_module.model.encoder))
        self.decoder.append(some(pl_module.model.decoder))
        self.training.append(pl_module.model.encoder.training)
        self.epochs.append(trainer.current_epoch)


WATCH = {"class_path": f"{__name__}.Gradients"}


def _watcher(cli: Any) -> Gradients:
    """Return the callback of a run that had WATCH among its callbacks."""
    return next(callback for callback in cli.trainer.callbacks if isinstance(callback, Gradients))


@pytest.mark.parametrize(
    ("changes", "encoder", "decoder"),
    [({}, True, True), ({"model.freeze_backbone": True}, False, True), ({"model.freeze_decoder": True}, True, False)],
)
def test_freezing(runner: Any, changes: dict[str, Any], encoder: bool, decoder: bool) -> None:
    cli = runner.terratorch("fit", changes | {"trainer.callbacks": [WATCH]})
    watcher = _watcher(cli)
    assert watcher.encoder == [encoder] * 2
    assert watcher.decoder == [decoder] * 2
    assert watcher.training == [encoder] * 2  # a frozen encoder stays in evaluation mode
    assert not any(block.training for block in cli.model.model.encoder.encoder) or encoder


UNFREEZE = {"class_path": "terramind_plugin.BackboneUnfreeze", "init_args": {"epoch": 1}}


def test_the_backbone_trains_from_its_epoch_on_with_its_own_rate(runner: Any) -> None:
    cli = runner.terratorch(
        "fit",
        {
            "trainer.max_epochs": 3,
            "trainer.callbacks": [UNFREEZE, WATCH],
            "model.lr_overrides": {"model.encoder.": 1e-5},
        },
    )
    watcher = _watcher(cli)
    assert watcher.encoder == [False, False, True, True, True, True]
    assert watcher.training == watcher.encoder
    assert all(watcher.decoder)
    rates = {group["lr"]: len(group["params"]) for group in cli.trainer.optimizers[0].param_groups}
    assert rates[1e-5] == len(list(cli.model.model.encoder.parameters()))
    assert set(rates) == {1e-5, 1e-3}


def test_a_resumed_run_goes_on_unfreezing(runner: Any, tmp_path: Path) -> None:
    keep = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(tmp_path), "save_last": True}}
    changes = {"trainer.enable_checkpointing": True, "trainer.callbacks": [UNFREEZE, keep, WATCH]}
    runner.terratorch("fit", changes)
    cli = runner.terratorch("fit", changes | {"trainer.max_epochs": 3}, "--ckpt_path", tmp_path / "last.ckpt")
    watcher = _watcher(cli)
    assert watcher.epochs == [1, 1, 2, 2]
    assert all(watcher.encoder)
    assert cli.trainer.global_step == 6
    # From a checkpoint beyond that epoch, too.
    cli = runner.terratorch("fit", changes | {"trainer.max_epochs": 4}, "--ckpt_path", tmp_path / "last.ckpt")
    watcher = _watcher(cli)
    assert watcher.epochs == [3, 3]
    assert all(watcher.encoder)


def test_unfreezing_needs_the_plugins_backbone(runner: Any) -> None:
    theirs = {"model_args.backbone": "terratorch_terramind_v1_tiny", "trainer.callbacks": [UNFREEZE],
              "model_args.necks": [{"name": "SelectIndices", "indices": [2, 5, 8, 11]},
                                   {"name": "ReshapeTokensToImage", "remove_cls_token": False},
                                   {"name": "LearnedInterpolateToPyramidal"}]}  # fmt: skip
    with pytest.raises(ConfigError, match="BackboneUnfreeze needs a TerraMind backbone of this plugin"):
        runner.terratorch("fit", theirs)


def test_missing_modalities_train_and_test(runner: Any, scenes: Any, tmp_path: Path) -> None:
    radar = tmp_path / "S1GRDHand"
    radar.mkdir()
    for path in sorted((scenes.root / "data" / "S1GRDHand").iterdir())[::2]:
        (radar / path.name).symlink_to(path)
    roots = {"S2L1C": str(scenes.root / "data" / "S2L1CHand"), "S1GRD": str(radar)}
    cli = runner.terratorch("fit", {"data.allow_missing_modalities": True, "data.data_root": roots})
    assert cli.trainer.global_step == 2
    assert cli.trainer.callback_metrics["train/loss"].isfinite()
    assert cli.trainer.callback_metrics["val/loss"].isfinite()


def test_stacked_dates(runner: Any, scenes: Any, tmp_path: Path) -> None:
    import numpy as np
    import rasterio

    folder = tmp_path / "dates"
    folder.mkdir()
    for path in sorted((scenes.root / "data" / "S2L1CHand").iterdir()):
        with rasterio.open(path) as raster:
            values, profile = raster.read([2, 3, 4]), raster.profile
        profile.update(count=9)
        with rasterio.open(folder / path.name, "w", **profile) as raster:
            raster.write(np.concatenate([values] * 3))
    bands = {"S2L1C": ["BLUE", "GREEN", "RED"]}
    cli = runner.terratorch(
        "fit",
        {
            "data.modalities": ["S2L1C"],
            "data.data_root": {"S2L1C": str(folder)},
            "data.dataset_bands": bands,
            "data.expand_temporal_dimension": True,
            "data.train_transform": [{"class_path": "albumentations.D4"}, {"class_path": "ToTensorV2"}],
            "model_args.backbone_modalities": ["S2L1C"],
            "model_args.backbone_bands": bands,
            "model_args.backbone_use_temporal": True,
            "model_args.backbone_temporal_pooling": "mean",
        },
    )
    assert cli.trainer.callback_metrics["val/loss"].isfinite()
