"""Broken configurations of sound data, each by one mistake: the mistake is named, with its verdict and a remedy."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.check.spoiling import every_fifth

PYRAMID = {"name": "terramind_pyramid"}
TERRATORCH_NECKS = [{"name": "ReshapeTokensToImage"}, {"name": "LearnedInterpolateToPyramidal"}]


def callback(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"trainer.callbacks": [{"class_path": kind, "init_args": arguments}]}


def scheduler(**arguments: Any) -> dict[str, Any]:
    return {"lr_scheduler": {"class_path": "ReduceLROnPlateau", "init_args": {"monitor": "val/loss", **arguments}}}


def optimizer(**arguments: Any) -> dict[str, Any]:
    return {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": arguments}}


def transform(class_path: str, **arguments: Any) -> dict[str, Any]:
    entries = [{"class_path": class_path, "init_args": arguments}, {"class_path": "ToTensorV2"}]
    return {"data.train_transform": entries}


def necks(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"model_args.necks": list(entries)}


# Changes, finding, verdict, pattern.
ROWS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "part": ({"trainr": {"max_epochs": 1}}, "yaml: parsing", "error", "trainr.*Did you mean 'trainer'"),
    "trainer key": ({"trainer.max_epoch": 3}, "yaml: parsing", "error", "'max_epoch'.*Did you mean 'max_epochs'"),
    "data key": ({"data.batchsize": 3}, "yaml: parsing", "error", "'batchsize'.*Did you mean 'batch_size'"),
    "data key of the parent": ({"data.label_gerp": 3}, "yaml: parsing", "error", "Did you mean 'label_grep'"),
    "task key": ({"model.ignore_indx": 3}, "yaml: parsing", "error", "Did you mean 'ignore_index'"),
    "model key": ({"model_args.nekcs": []}, "yaml: keys", "error", "Did you mean 'necks'"),
    "backbone key": ({"model_args.backbone_merge_metod": "mean"}, "yaml: keys", "error", "backbone_merge_method"),
    "decoder key": ({"model_args.decoder_channel": [1]}, "yaml: keys", "error", "Did you mean 'decoder_channels'"),
    "head key": ({"model_args.head_dropot": 0.1}, "yaml: model", "error", "SegmentationHead.*'dropot'"),
    "neck key": (necks({**PYRAMID, "indice": [0]}), "yaml: keys", "error", "Did you mean 'indices'"),
    "neck without a name": (necks({"nme": "x"}), "yaml: keys", "error", "a neck without a name"),
    "callback key": (callback("ModelCheckpoint", monitr="x"), "yaml: parsing", "error", "Did you mean 'monitor'"),
    "optimizer key": (optimizer(weight_decy=0.1), "yaml: parsing", "error", "Did you mean 'weight_decay'"),
    "scheduler key": (scheduler(patienc=3), "yaml: parsing", "error", "Did you mean 'patience'"),
    "transform key": (transform("albumentations.HorizontalFlip", prob=1), "yaml: data", "error", "'prob'"),
    "LoRA key": ({"model_args.backbone_lora": {"rnk": 4}}, "yaml: model", "error", "Did you mean 'rank'"),
    "backbone": ({"model_args.backbone": "terramind_v1_tinny"}, "yaml: model", "error", "'terramind_v1_tiny'"),
    "source": ({"model_args.backbone": "teramind_v1_tiny"}, "yaml: model", "error", "'terramind_v1_tiny'"),
    "decoder": ({"model_args.decoder": "UNetDecoderr"}, "yaml: model", "error", "Did you mean .*UNetDecoder'"),
    "our decoder": ({"model_args.decoder": "terramind_une"}, "yaml: model", "error", "Did you mean 'terramind_unet'"),
    "key of our decoder": ({"model_args.decoder": "terramind_unet", "model_args.decoder_channel": [1]}, "yaml: keys",
                           "error", "Did you mean 'decoder_channels'"),
    "neck": (necks({"name": "terramind_pyramids"}), "yaml: model", "error", "Did you mean 'terramind_pyramid'"),
    "task": ({"model.class_path": "terratorch.tasks.SemanticSegmentationTsk"}, "yaml: parsing", "error",
             "Did you mean 'SemanticSegmentationTask'"),
    "data module": ({"data.class_path": "terramind_plugin.DataModule"}, "yaml: parsing", "error",
                    "TerraMindDataModule"),
    "callback": (callback("terramind_plugin.FiniteLos"), "yaml: parsing", "error", "Did you mean 'FiniteLoss'"),
    "Lightning's callback": (callback("EarlyStoping"), "yaml: parsing", "error", "Did you mean 'EarlyStopping'"),
    "optimizer": ({"optimizer": {"class_path": "torch.optim.AdamWW"}}, "yaml: parsing", "error", "'AdamW'"),
    "loss": ({"model.loss": "dicee"}, "yaml: model", "error", "'dicee' is not valid"),
    "factory": ({"model.model_factory": "EncoderFactory"}, "yaml: model", "error", "EncoderFactory"),
    "transform": (transform("albumentations.HorzontalFlip"), "yaml: data", "error", "Did you mean 'HorizontalFlip'"),
    "transform's module": (transform("albumentation.D4"), "yaml: data", "error", "No module named 'albumentation'"),
    "merge method": ({"model_args.backbone_merge_method": "meen"}, "yaml: model", "error", "Did you mean 'mean'"),
    "ambiguous modality": ({"data.modalities": ["S2L1C", "S1"]}, "yaml: data", "error", "write S1GRD or S1RTC"),
    "modality": ({"data.modalities": ["S2L1C", "S1GDR"]}, "yaml: data", "error", "S1GDR.*Did you mean 'S1GRD'|S1GRD"),
    "model's modality": ({"model_args.backbone_modalities": ["S2L1C", "S1GDR"]}, "yaml: model", "error", "'S1GRD'"),
    "thought": ({"model_args.backbone": "terramind_v1_tiny_tim", "model_args.backbone_tim_modalities": ["LULCC"]},
                "yaml: model", "error", "Did you mean 'LULC'"),
    "name of means": ({"data.means": {"S1GDR": [0, 0]}, "data.stds": {"S1GDR": [1, 1]}}, "yaml: data", "error",
                      "S1GRD"),
    "name of a pattern": ({"data.image_grep": {"S2L1C": "*_S2Hand.tif", "S1GDR": "*_S1Hand.tif"}}, "yaml: data",
                          "error", "an entry 'S1GDR'.*S1GRD"),
    "band": ({"model_args.backbone_bands": {"S2L1C": ["GREN"]}}, "yaml: model", "error", "Did you mean 'GREEN'"),
    "modality of bands": ({"model_args.backbone_bands": {"S2L1X": ["RED"]}}, "yaml: model", "error", "'S2L1C'"),
    "band of files": ({"data.dataset_bands": {"S2L1C": ["B01", "B2X"]}}, "yaml: data", "error", "Unknown band 'B2X'"),
    "band not in files": ({"data.dataset_bands": {"S1GRD": ["VV", "VH"]}, "data.output_bands": {"S1GRD": ["VX"]}},
                          "yaml: data", "error", "Unknown band 'VX'"),
    "modalities": ({"model_args.backbone_modalities": ["S2L1C"]}, "yaml: modalities", "error", "S1GRD"),
    "modalities to spare": ({"model_args.backbone_modalities": ["S2L1C", "S1GRD", "DEM"]}, "yaml: modalities",
                            "warning", "the model expects .*DEM"),
    "classes": ({"model_args.num_classes": 3}, "yaml: classes", "error", "num_classes is 2 in data, 3 in model"),
    "class names": ({"data.class_names": ["Land", "Water", "Ice"]}, "yaml: classes", "error", "names, expected 2"),
    "order of classes": ({"model.class_names": ["Water", "Land"]}, "yaml: classes", "error", "the same names in one"),
    "class weights": ({"model.class_weights": [1, 2, 3]}, "yaml: classes", "error", "3 class_weights, expected 2"),
    "bands": ({"model_args.backbone_bands": {"S2L1C": ["RED", "GREEN"]}}, "yaml: bands", "error", "the model expects"),
    "order of bands": ({"model_args.backbone_bands": {"S1GRD": ["VH", "VV"]}}, "yaml: bands", "warning", "same order"),
    "batch of 0": ({"data.batch_size": 0}, "yaml: batch size", "error", "Give at least 1"),
    "batch of many": ({"data.batch_size": "many"}, "yaml: parsing", "error", "batch_size.*Got value: many"),
    "stds of 0": ({"data.means": {"S1GRD": [0, 1]}, "data.stds": {"S1GRD": [0, 1]}}, "yaml: data", "error", "positive"),
    "one mean of two": ({"data.means": {"S1GRD": [0]}}, "yaml: data", "error", "1 means and 2 stds"),
    "means of L2A": ({"data.means": {"S2L1C": [1.0] * 12}, "data.stds": {"S2L1C": [1.0] * 12}},
                     "values: S2L1C statistics", "error", "12 means for 13 bands"),
    "checkpoint": ({"model_args.backbone_ckpt_path": "/nowhere.pt"}, "yaml: weights", "error",
                   "/nowhere.pt is not a file"),
    "layer": ({"model_args.backbone_out_indices": [2, 5, 8, 12]}, "yaml: layers", "error", "layer 12.*0 to 11"),
    "layer of a neck": (necks({"name": "SelectIndices", "indices": [2, 5, 8, 12]}, *TERRATORCH_NECKS), "yaml: layers",
                        "error", "SelectIndices names layer 12"),
    "layer of the pyramid": (necks({**PYRAMID, "indices": [2, 5, 8, 12]}), "yaml: model", "error",
                             "four layers out of"),
    "three layers": ({"model_args.backbone_out_indices": [2, 5, 8]}, "yaml: model", "error", "at least four layers"),
    "monitor": (callback("ModelCheckpoint", monitor="val/miou"), "yaml: monitor", "error", "Did you mean 'val/mIoU'"),
    "monitor of testing": (callback("EarlyStopping", monitor="test/loss"), "yaml: monitor", "error", "'val/loss'"),
    "monitor by other name": (callback("EarlyStopping", monitor="val_loss"), "yaml: monitor", "error", "'val/loss'"),
    "monitor of no class": (callback("ModelCheckpoint", monitor="val/IoU_Fire"), "yaml: monitor", "error",
                            "never logged"),
    "scheduler's monitor": (scheduler(monitor="val/los"), "yaml: monitor", "error", "lr_scheduler monitors 'val/los'"),
    "the last epoch": ({"trainer.enable_checkpointing": None}, "run: checkpoint", "note", "the last epoch, not"),
    "GPU": ({"trainer.accelerator": "gpu"}, "run: hardware", "error", "accelerator: auto"),
    "half precision": ({"trainer.precision": "16-mixed"}, "run: precision", "note", "bf16-mixed"),
    "precision": ({"trainer.precision": "17"}, "yaml: parsing", "error", "trainer.precision"),
    "task's scheduler": ({"model.scheduler": "CosineAnnealing"}, "yaml: scheduler", "error", "Did you mean 'Cosine"),
    "task's scheduler key": ({"model.scheduler": "StepLR", "model.scheduler_hparams": {"step_sise": 2}},
                             "yaml: scheduler", "error", "Did you mean 'step_size'"),
    "task's optimizer key": ({"model.optimizer_hparams": {"weight_decy": 0.1}, "model.optimizer": "AdamW"},
                             "yaml: optimizer", "error", "Did you mean 'weight_decay'"),
    "one batch": ({"trainer.limit_train_batches": 1.0}, "run: batches", "note", "all batches, not one"),
    "two learning rates": ({"model.lr": 3e-4, **optimizer(lr=1e-4)}, "yaml: learning rate", "warning", "the latter"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", every_fifth(ROWS))
def test_a_mistake_is_named(mistake: str, sound: Any, check: Any) -> None:
    import torch

    if mistake in ("GPU", "half precision") and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    changes, where, verdict, text = ROWS[mistake]
    found = check(sound, changes)
    named = [finding for finding in found if finding.check == where and re.search(text, str(finding))]
    assert named, [str(finding) for finding in found]
    assert [finding.verdict for finding in named] == [verdict] * len(named)


SOUND: dict[str, dict[str, Any]] = {
    "as it is": {},
    "classes in monitors": callback("ModelCheckpoint", monitor="val/IoU_Water"),
    "the newest": callback("ModelCheckpoint", monitor="step", mode="max"),
    "accuracy of a class": callback("ModelCheckpoint", monitor="train/Class_Accuracy_Land"),
    "scheduler": scheduler(patience=3),
    "transforms": transform("albumentations.RandomCrop", height=32, width=32),
    "TerraTorch's necks": necks({"name": "SelectIndices", "indices": [2, 5, 8, 11]}, *TERRATORCH_NECKS),
    "bands by other names": {
        "data.dataset_bands": {"S1GRD": ["VV", "VH"]},
        "model_args.backbone_bands": {"S1GRD": ["vv", "vh"]},
    },
    "selected bands": {
        "data.dataset_bands": {"S2L1C": [f"B{n:02}" for n in range(1, 9)] + ["B8A", "B09", "B10", "B11", "B12"]},
        "data.output_bands": {"S2L1C": ["B02", "B03", "B04", "B8A"]},
        "model_args.backbone_bands": {"S2L1C": ["BLUE", "GREEN", "RED", "NIR_NARROW"]},
    },
    "thoughts": {"model_args.backbone": "terramind_v1_tiny_tim"},
    "two losses": {"model.loss": {"ce": 0.5, "dice": 0.5}, **callback("EarlyStopping", monitor="val/dice")},
}  # fmt: skip


@pytest.mark.parametrize("variant", every_fifth(SOUND))
def test_a_sound_configuration_raises_no_alarm(variant: str, sound: Any, check: Any) -> None:
    assert [str(finding) for finding in check(sound, SOUND[variant]) if finding.verdict != "note"] == []
