"""A configuration to change, and TerraTorch's and our command line in this process."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from terramind_plugin.simulation.dataset import SimulatedDataset

REPOSITORY = Path(__file__).parents[2]


def _folders(scenes: SimulatedDataset) -> dict[str, Any]:
    data, splits = scenes.root / "data", scenes.root / "splits"
    return {
        "data_root": {"S2L1C": str(data / "S2L1CHand"), "S1GRD": str(data / "S1GRDHand")},
        "label_data_root": str(data / "LabelHand"),
        "image_grep": {"S2L1C": "*_S2Hand.tif", "S1GRD": "*_S1Hand.tif"},
        "label_grep": "*_LabelHand.tif",
        "train_split": str(splits / "flood_train_data.txt"),
        "val_split": str(splits / "flood_valid_data.txt"),
        "test_split": str(splits / "flood_test_data.txt"),
        "predict_split": str(splits / "flood_test_data.txt"),
    }


def segmentation_config(scenes: SimulatedDataset) -> dict[str, Any]:
    return {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "callbacks": [{"class_path": "terramind_plugin.GeoTiffWriter"}],
        },
        "data": {
            "class_path": "terramind_plugin.TerraMindDataModule",
            "init_args": {
                "task": "segmentation",
                "batch_size": 2,
                "num_classes": 2,
                "class_names": ["Land", "Water"],
                "modalities": ["S2L1C", "S1GRD"],
                **_folders(scenes),
            },
        },
        "model": {
            "class_path": "terratorch.tasks.SemanticSegmentationTask",
            "init_args": {
                "model_factory": "EncoderDecoderFactory",
                "model_args": {
                    "backbone": "terramind_v1_tiny",
                    "backbone_pretrained": False,
                    "backbone_modalities": ["S2L1C", "S1GRD"],
                    "necks": [{"name": "terramind_pyramid"}],
                    "decoder": "UNetDecoder",
                    "decoder_channels": [32, 16, 16, 8],
                    "num_classes": 2,
                },
                "loss": "ce",
                "ignore_index": -1,
                "class_names": ["Land", "Water"],
                "plot_on_val": False,
                "lr": 1e-3,
            },
        },
    }


def change(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a configuration with values set, or removed where they are ...

    Args:
        config: A configuration.
        changes: Values by dotted key; 'model.' and 'data.' stand for their init_args, 'model_args.' for the model's.
    """
    config = copy.deepcopy(config)
    for key, value in changes.items():
        words = key.split(".")
        if words[0] == "model_args":
            words = ["model", "init_args", *words]
        elif words[0] in ("model", "data") and words[1:2] not in ([], ["class_path"], ["init_args"]):
            words.insert(1, "init_args")
        place = config
        for word in words[:-1]:
            place = place.setdefault(word, {})
        if value is ...:
            place.pop(words[-1], None)
        else:
            place[words[-1]] = value
    return config


@dataclass
class Runner:
    """Writes a configuration and runs a command line with it in this process."""

    base: dict[str, Any]
    folder: Path

    def write(self, changes: Mapping[str, Any] | None = None, base: Mapping[str, Any] | None = None) -> Path:
        """Return the path of the changed configuration."""
        path = self.folder / f"config{len(list(self.folder.glob('config*.yaml')))}.yaml"
        config = change(dict(base) if base is not None else self.base, changes or {})
        config["trainer"].setdefault("default_root_dir", str(self.folder))
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return path

    def terratorch(
        self,
        command: str,
        changes: Mapping[str, Any] | None = None,
        *words: str | Path,
        base: Mapping[str, Any] | None = None,
        cwd: Path = REPOSITORY,
        entry: Callable[[], Any] | None = None,
    ) -> Any:
        """Run `terratorch COMMAND --config ... WORDS` and return Lightning's CLI object."""
        from terratorch.cli_tools import build_lightning_cli

        path = self.write(changes, base)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(cwd)
            patch.setattr(sys, "argv", ["terratorch", command, "--config", str(path), *map(str, words)])
            return (entry or build_lightning_cli)()

    def terramind(
        self,
        command: str,
        changes: Mapping[str, Any] | None = None,
        *words: str | Path,
        base: Mapping[str, Any] | None = None,
    ) -> int:
        """Run `terramind COMMAND --config ... WORDS` and return its exit status."""
        from terramind_plugin.cli import main

        path = self.write(changes, base)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["terramind"])
            return main([command, "--config", str(path), *map(str, words)])


CHECKPOINT = {
    "class_path": "ModelCheckpoint",
    "init_args": {"filename": "best", "monitor": "val/loss"},
}


@dataclass(frozen=True)
class Fitted:
    """A finished training run."""

    cli: Any
    checkpoint: Path
    folder: Path


def fit_once(base: dict[str, Any], folder: Path, extra: Mapping[str, Any] | None = None) -> Fitted:
    """Train with a checkpoint and return what came out."""
    checkpoint = copy.deepcopy(CHECKPOINT)
    checkpoint["init_args"]["dirpath"] = str(folder)  # type: ignore[index]
    callbacks: Sequence[Any] = [checkpoint, {"class_path": "terramind_plugin.FiniteLoss"}]
    changes = {"trainer.enable_checkpointing": True, "trainer.callbacks": callbacks, **(extra or {})}
    cli = Runner(base, folder).terratorch("fit", changes)
    return Fitted(cli, folder / "best.ckpt", folder)
