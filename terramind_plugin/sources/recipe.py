"""Writing a configuration that fine-tunes on chips, for `terramind check` and `terramind fit`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.model.variants import Variant, find_variant
from terramind_plugin.system.files import write_text

CHANNELS = {128: [64, 32, 16, 8], 192: [256, 128, 64, 32], 384: [256, 128, 64, 32]}
"""Channels of the decoder by the width of the model, as in the configurations of this repository."""
WIDE_CHANNELS = [512, 256, 128, 64]
LARGEST_BATCH = 8
"""Maximum number of chips in a batch."""
YAML_WIDTH = 110
"""Maximum number of characters in a line of YAML."""
MOST_CROP = 512
"""Maximum side of a training image in pixels."""


def write_recipe(
    path: Path, out: Path, modalities: Sequence[str], class_names: Sequence[str], sizes: Sequence[int], model: str
) -> None:
    """Write the configuration as YAML.

    Args:
        path: File to write.
        out: Folder of the chips, with its lists of splits.
        modalities: Modalities of the model.
        class_names: Name of each class of the labels.
        sizes: Heights and widths of the chips in pixels.
        model: Registry name of the backbone.
    """
    variant = find_variant(model)
    root = out.resolve()
    content = {
        "seed_everything": 0,
        "trainer": describe_trainer(str(root / "training")),
        "data": {
            "class_path": "terramind_plugin.TerraMindDataModule",
            "init_args": _data(root, modalities, class_names, sizes, variant),
        },
        "model": {
            "class_path": "terratorch.tasks.SemanticSegmentationTask",
            "init_args": {
                "model_factory": "EncoderDecoderFactory",
                "model_args": _model(model, modalities, len(class_names), variant),
                "loss": "dice",
                "ignore_index": -1,
                "class_names": list(class_names),
                "plot_on_val": False,
            },
        },
        **describe_optimizer(variant),
    }
    head = (
        "# Written by terramind chips.\n#\n"
        f"# Check:     terramind check -c {path}\n"
        f"# Train:     terramind fit -c {path}\n"
    )
    if variant.hub_repo is None:
        head += (
            "# Model:     the small one that ships with the package. For the published weights, write this YAML\n"
            "#            again: run the same terramind chips command with --model terramind_v1_base.\n"
        )
    write_text(path, head + yaml.safe_dump(content, sort_keys=False, width=YAML_WIDTH))


def _model(model: str, modalities: Sequence[str], classes: int, variant: Variant) -> dict[str, Any]:
    """Return the arguments of the model, with the features of four evenly spaced layers."""
    return {
        "backbone": model,
        "backbone_pretrained": True,
        "backbone_modalities": list(modalities),
        "backbone_out_indices": choose_layers(variant),
        **describe_decoder(variant),
        "head_dropout": 0.1,
        "num_classes": classes,
    }


def _data(
    root: Path, modalities: Sequence[str], class_names: Sequence[str], sizes: Sequence[int], variant: Variant
) -> dict[str, Any]:
    """Return the arguments of the data module; arguments as in `write_recipe`, `root` is the folder of the chips."""
    train = (root / "splits" / "train.txt").read_text().split()
    data: dict[str, Any] = {
        "task": "segmentation",
        "batch_size": min(len(train), LARGEST_BATCH),
        "num_workers": 1,
        "num_classes": len(class_names),
        "class_names": list(class_names),
        "modalities": list(modalities),
        "data_root": {name: str(root / name) for name in modalities},
        "label_data_root": str(root / "label"),
        "image_grep": dict.fromkeys(modalities, "*.tif"),
        "label_grep": "*.tif",
        **{f"{split}_split": str(root / "splits" / f"{split}.txt") for split in ("train", "val", "test")},
        "predict_split": str(root / "splits" / "test.txt"),
    }
    if any(MODALITIES[name].name in ("S2L2A", "S2L1C") for name in modalities):
        # The files are written without the offset of newer products.
        data["offsets"] = {name: 0 for name in modalities if name in ("S2L2A", "S2L1C")}
    return data | describe_transforms(choose_crop(sizes, variant.patch_size))


def describe_decoder(variant: Variant) -> dict[str, Any]:
    """Return the arguments of neck and decoder for a pixel-wise task."""
    return {
        "necks": [{"name": "terramind_pyramid", "patch_size": variant.patch_size}],
        "decoder": "terramind_unet",
        "decoder_channels": CHANNELS.get(variant.dim, WIDE_CHANNELS),
    }


def describe_optimizer(variant: Variant) -> dict[str, Any]:
    """Return the optimizer and scheduler sections of a configuration."""
    lr = 5e-4 if variant.dim == 128 else 1e-4
    return {
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr, "fused": True}},
        "lr_scheduler": {
            "class_path": "ReduceLROnPlateau",
            "init_args": {"monitor": "val/loss", "factor": 0.5, "patience": 3},
        },
    }


def describe_transforms(crop: int | None, random_crop: int | None = None) -> dict[str, Any]:
    """Return the transforms: dihedral symmetries in training, and crops if asked for.

    Args:
        crop: Side of the crops in pixels; None for whole chips.
        random_crop: Side of the crops in training, if it differs.
    """
    found: dict[str, Any] = {}
    if crop is not None:
        middle = [_describe_crop("CenterCrop", crop), {"class_path": "ToTensorV2"}]
        found |= {"val_transform": middle, "test_transform": middle}
    side = random_crop or crop
    cut = [] if side is None else [_describe_crop("RandomCrop", side)]
    return {"train_transform": [*cut, {"class_path": "albumentations.D4"}, {"class_path": "ToTensorV2"}], **found}


def _describe_crop(name: str, side: int) -> dict[str, Any]:
    return {"class_path": f"albumentations.{name}", "init_args": {"height": side, "width": side}}


def choose_layers(variant: Variant) -> list[int]:
    """Return four about evenly spaced layers of a model, including the last one."""
    step = variant.depth // 4 if variant.depth % 4 == 0 else None
    return [step * (one + 1) - 1 for one in range(4)] if step else [1, 2, 4, 5]


def describe_trainer(folder: str, monitor: str = "val/mIoU", mode: str = "max") -> dict[str, Any]:
    """Return the trainer section of a configuration.

    Args:
        folder: Folder of checkpoints and logs.
        monitor: Metric by which the best epoch is chosen.
        mode: 'max' if a larger metric is better, or 'min'.
    """
    return {
        "accelerator": "auto",
        "devices": 1,
        "max_epochs": 20,
        "log_every_n_steps": 5,
        "default_root_dir": folder,
        "logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": folder, "name": "logs"}},
        "callbacks": [
            {"class_path": "RichProgressBar"},
            {"class_path": "LearningRateMonitor", "init_args": {"logging_interval": "epoch"}},
            {
                "class_path": "ModelCheckpoint",
                "init_args": {
                    "dirpath": f"{folder}/checkpoints",
                    "filename": "best",
                    "monitor": monitor,
                    "mode": mode,
                    "enable_version_counter": False,
                },
            },
            {"class_path": "terramind_plugin.FiniteLoss"},
            {"class_path": "terramind_plugin.CompiledModel"},
            {"class_path": "terramind_plugin.SegmentationImages"},
            {"class_path": "terramind_plugin.GeoTiffWriter"},
        ],
    }


def choose_crop(sizes: Sequence[int], patch: int) -> int | None:
    """Return the side of a crop that fits into all chips, or None if whole chips can be used.

    The decoder halves images five times, so sides are multiples of twice the patch size.
    """
    smallest = min(sizes)
    if len(set(sizes)) == 1 and smallest % (2 * patch) == 0 and smallest <= MOST_CROP:
        return None
    step = 2 * patch if smallest >= 2 * patch else patch
    return max(step, min(smallest, MOST_CROP) // step * step)
