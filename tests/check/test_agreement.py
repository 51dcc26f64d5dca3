"""Hundreds of changed configurations: the check never falls over, and what it calls an error is what stops fit."""

from __future__ import annotations

import copy
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from terramind_plugin.check.run import check
from terramind_plugin.cli import main
from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.simulation.dataset import SimulatedDataset, simulate
from tests.runs.running import change, segmentation_config

SEED, MUTATED, COMPARED = 17, 300, 60
TENSOR = {"class_path": "ToTensorV2"}
FLIP = {"class_path": "albumentations.D4"}
L1C = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]
SPOILS = ("files: splits", "values:", "labels:")
"""Checks whose errors spoil a run without stopping it."""


def crop(side: int) -> dict[str, Any]:
    return {"class_path": "albumentations.RandomCrop", "init_args": {"height": side, "width": side}}


def callbacks(kind: str, **arguments: Any) -> list[dict[str, Any]]:
    return [{"class_path": kind, "init_args": arguments}]


def necks(*indices: int) -> list[dict[str, Any]]:
    names = [{"name": "ReshapeTokensToImage"}, {"name": "LearnedInterpolateToPyramidal"}]
    return [{"name": "SelectIndices", "indices": list(indices)}, *names]


VALUES: dict[str, list[Any]] = {
    "data.batch_size": [0, 1, 3, 4, 50, None],
    "data.num_workers": [-1, "two"],
    "data.modalities": [["S2L1C"], ["S1GRD"], ["S1GRD", "S2L1C"], ["S2L1C", "S1GRD", "DEM"], [], "S2L1C",
                        ["S2L1C", "S1"]],
    "data.data_root": [None, "", {}, {"S2L1C": "/nowhere", "S1GRD": "/nowhere"}, {"S2L1C": "/nowhere"}],
    "data.label_data_root": [None, "", "/nowhere", ...],
    "data.image_grep": [{"S2L1C": "*_S2Hand.tif"}, {"S2L1C": "*.png", "S1GRD": "*.png"}, "*.tif"],
    "data.train_split": [None, "/nowhere.txt", ...],
    "data.train_transform": [[FLIP], [TENSOR], [FLIP, TENSOR], [crop(32), TENSOR], [crop(40), TENSOR],
                             [crop(128), TENSOR], [TENSOR, FLIP], [], [{"class_path": "albumentations.Resize"}]],
    "data.val_transform": [[FLIP], [TENSOR], [crop(48), TENSOR]],
    "data.dataset_bands": [{"S2L1C": L1C}, {"S2L1C": L1C[:12]}, {"S1GRD": ["VV"]}, {"S1GRD": ["VV", "VX"]}],
    "data.output_bands": [{"S2L1C": ["B04", "B03"]}, {"S1GRD": ["VV"]}],
    "data.means": [{"S1GRD": [-12.0]}, {"S1GRD": [-12.0, -20.0]}, {"S2L1C": [1.0]}],
    "data.stds": [{"S1GRD": [5.0, 0.0]}, {"S1GRD": [5.0, 5.0]}],
    "data.task": ["regression", "classification", None, "detection"],
    "data.num_classes": [1, 2, 3, None, "two"],
    "data.class_names": [None, ["a", "b"], ["a"]],
    "data.allow_missing_modalities": [True],
    "data.drop_last": [False],
    "data.train_repeats": [0, 2],
    "data.expand_temporal_dimension": [True],
    "data.constant_scale": [{"S2L1C": 0.0001}, {"S2": 1}],
    "model.loss": ["dice", "focal", "jaccard", "lovasz", "mse", ["ce", "dice"], {"ce": 0.5, "dice": 0.5}, None, 3],
    "model.ignore_index": [None, 255, -100],
    "model.freeze_backbone": [True, "yes", "perhaps"],
    "model.freeze_decoder": [True],
    "model.class_weights": [[0.3, 0.7], [1.0], [0.1, 0.2, 0.7]],
    "model.class_names": [None, ["Land"], ["Water", "Land"]],
    "model.optimizer": ["AdamW", "SGD", "Adamm"],
    "model.optimizer_hparams": [{"weight_decay": 0.1}, {"weight_dcay": 0.1}],
    "model.scheduler": ["StepLR", "ReduceLROnPlateau", "CosineAnnealingLR"],
    "model.scheduler_hparams": [{"step_size": 2}, {"T_max": 4}, {"patience": 2}],
    "model.lr": [1e-5, "fast", 0],
    "model.lr_overrides": [{"encoder": 1e-6}, {"nowhere": 1e-6}],
    "model.model_factory": ["EncoderDecoderFactry", None],
    "model.plot_on_val": [True],
    "model.tiled_inference_on_validation": [True],
    "model.class_path": ["terratorch.tasks.PixelwiseRegressionTask", "terratorch.tasks.ClassificationTask", "Task"],
    "model_args.backbone": ["terramind_sim_nano", "terramind_v1_tiny_tim", "terratorch_terramind_v1_tiny", "resnet",
                            None],
    "model_args.backbone_modalities": [["S2L1C"], ["S1GRD", "S2L1C"], ["S2L1C", "S1GRD", "DEM"], None,
                                       ["S2L2A", "S1GRD"]],
    "model_args.backbone_pretrained": [[[1]], "maybe", "false", None, 3],
    "model_args.backbone_merge_method": ["max", "concat", "dict", "none", None, "sum"],
    "model_args.backbone_out_indices": [[2, 5, 8, 11], [11], [3, 2], [2, 5, 8, 12], []],
    "model_args.backbone_bands": [{"S1GRD": ["VH", "VV"]}, {"S2L1C": ["RED", "GREEN"]}, {"S9": ["RED"]}],
    "model_args.backbone_img_size": [64, 100],
    "model_args.backbone_drop_path_rate": [0.1, -1, 2],
    "model_args.backbone_lora": [{"rank": 4}, {"rnk": 4}, True],
    "model_args.backbone_use_temporal": [True],
    "model_args.backbone_temporal_pooling": ["mean", "sum"],
    "model_args.backbone_feature_cache": ["cache"],
    "model_args.backbone_padding": ["constant", None, "mirror"],
    "model_args.backbone_patch_size": [8, 16],
    "model_args.necks": [necks(2, 5, 8, 11), necks(0, 1, 2, 3), necks(2, 5, 8, 12), necks(1, 2), None, [],
                         [{"name": "terramind_pyramid", "patch_size": 8}], [{"nme": "x"}]],
    "model_args.decoder": ["FCNDecoder", "UperNetDecoder", "terramind_unet", "IdentityDecoder", None, "smp_Unet"],
    "model_args.decoder_channels": [64, [32, 16, 8], [64, 32, 16, 8], ...],
    "model_args.num_classes": [1, 3, None, ...],
    "model_args.head_dropout": [0.2, 2],
    "model_args.rescale": [False],
    "model_args.peft_config": [{"peft_config_kwargs": {}}, {"method": "LORA"}],
    "trainer.precision": ["bf16-mixed", "16-mixed", "64-true", "8"],
    "trainer.logger": [True, *callbacks("CSVLogger", save_dir="logs"), *callbacks("TensorBoardLogger", save_dir="logs"),
                       *callbacks("TensorBoardLogger"), *callbacks("WandbLogger", project="x"), 3],
    "trainer.callbacks": [callbacks("EarlyStopping", monitor="val/loss"), callbacks("EarlyStopping", monitor="val/los"),
                          callbacks("EarlyStopping"), callbacks("LearningRateMonitor"), callbacks("RichProgressBar"),
                          callbacks("terramind_plugin.SegmentationImages"), callbacks("terramind_plugin.FiniteLoss"),
                          callbacks("terramind_plugin.BackboneUnfreeze", epoch=1),
                          callbacks("StochasticWeightAveraging"), [3], None],
    "trainer.enable_checkpointing": [True],
    "trainer.accumulate_grad_batches": [0, 2],
    "trainer.gradient_clip_val": [1.0, "high"],
    "trainer.gradient_clip_algorithm": ["norm", "nrm"],
    "trainer.val_check_interval": [1, 2, 0.5, 1000],
    "trainer.check_val_every_n_epoch": [1, 3],
    "trainer.deterministic": [True],
    "trainer.strategy": ["auto", "dpp"],
    "trainer.devices": [0, "auto"],
    "trainer.accelerator": ["auto", "tpuu"],
    "trainer.detect_anomaly": [True],
    "trainer.max_epoch": [3],
    "seed_everything": [7, True, "x"],
    "optimizer.class_path": ["torch.optim.AdamW", "torch.optim.Adm"],
    "lr_scheduler": [{"class_path": "ReduceLROnPlateau", "init_args": {"monitor": "val/loss"}},
                     {"class_path": "ReduceLROnPlateau"}, {"class_path": "StepLR", "init_args": {"step_size": 1}}],
    "unknown": [1],
}  # fmt: skip


def mutate(config: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Return a copy of a configuration with one to three values changed."""
    chosen = draw.sample(sorted(VALUES), draw.choice([1, 1, 2, 3]))
    return change(config, {key: copy.deepcopy(draw.choice(VALUES[key])) for key in chosen})


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> SimulatedDataset:
    """Return twelve chips, of which eight are for training."""
    return simulate(tmp_path_factory.mktemp("few"), size=64, chips=12)


def drawn(few: SimulatedDataset, count: int) -> list[dict[str, Any]]:
    draw = random.Random(SEED)
    return [mutate(segmentation_config(few), draw) for _ in range(count)]


def stopping(found: list[Finding]) -> list[str]:
    return [str(f) for f in found if f.verdict == "error" and not f.check.startswith(SPOILS)]


def fits(path: Path) -> int:
    """Return the exit status of two steps of training and validation; 1 for a traceback of a library."""
    words = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["terramind"])
        patch.setenv("HF_HUB_OFFLINE", "1")
        try:
            return main(["fit", "-c", str(path), *words])
        except (Exception, SystemExit):  # whatever a library raises at a wrong argument
            return 1


def compare(config: dict[str, Any], folder: Path) -> tuple[list[str], int]:
    """Return what check says would stop fit, and what fit says."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    found = check(path, [], 2, step=True)
    assert not any(finding.seen.startswith("not tried") for finding in found), found
    assert [entry.name for entry in folder.iterdir()] == ["config.yaml"]
    return stopping(found), fits(path)


def agree(configs: list[dict[str, Any]], root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    differing = []
    for number, config in enumerate(configs):
        folder = root / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        errors, status = compare(config, folder)
        if bool(errors) != bool(status):
            differing.append((number, errors, status, config))
    assert differing == []


def test_a_few_agree_with_fit(few: SimulatedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agree(drawn(few, 2), tmp_path, monkeypatch)


@pytest.mark.slow
def test_many_agree_with_fit(few: SimulatedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agree(drawn(few, COMPARED), tmp_path, monkeypatch)


@pytest.mark.slow
def test_no_change_makes_the_check_fall_over(
    few: SimulatedDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    for config in drawn(few, MUTATED):
        path.write_text(yaml.safe_dump(config))
        status = main(["check", "-c", str(path), "--samples", "2", "--no_step"])
        said = "".join(capfd.readouterr())
        assert status in (0, 2)
        assert "Traceback" not in said
        assert not any(text in said for text in ("Expected a <class", "previous exception", "TrainerFn"))
