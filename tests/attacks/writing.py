"""Every command that writes files, with inputs on which it runs in a few seconds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from terramind_plugin.raster.writer import write_geotiff

NANO = "terramind_sim_nano"
RANDOM = ("--pretrained", "false")


@dataclass(frozen=True)
class Inputs:
    """Files that commands read."""

    root: Path
    """A simulated data set is in 'scenes', and what else is needed beside it."""
    config: Path
    """Configuration of a task."""
    checkpoint: Path
    """Of the task."""

    def words(self, command: str, out: Path) -> list[str]:
        """Return a command line that writes into a folder."""
        data = self.root / "scenes" / "data"
        chip = sorted((data / "S2L2AHand").iterdir())[0]
        model = ["--modality", "S2L2A", "--model", NANO, *RANDOM, "--out", out]
        task = ["-c", self.config, "--ckpt_path", self.checkpoint]
        encoder = ["--model", NANO, *RANDOM, "--modalities", "S1GRD", "--layers", "5"]
        here = {
            "simulate": ["--chips", "3", "--size", "32", "--out", out],
            "splits": ["--csv_dir", self.root / "lists", "--out", out],
            "figure": ["--data", data, "--predictions", self.root / "predictions", "--out", out / "figure.png"],
            "merge": ["--model", self.root / "lora.ckpt", "--out", out / "merged.ckpt"],
            "export": ["--model", self.root / "stage.ckpt", "--out", out / "weights.safetensors"],
            "tokenize": ["--model", NANO, "--data", f"LULC={self.root / 'cover'}", "--tokenizer_ckpt_path",
                         f"LULC={self.root / 'tokenizer.pt'}", "--out", out],
            "reconstruct": [chip, "--modality", "S2L2A", "--model", NANO, *RANDOM, "--steps", "1", "--out", out],
            "generate": [chip, "--modality", "S2L2A", "--model", NANO, *RANDOM, "--steps", "1", "--to", "LULC,coords",
                         "--out", out],
            "generate-scene": [self.root / "scene.tif", "--modality", "S1GRD", "--model", NANO, *RANDOM, "--steps",
                               "1", "--to", "LULC", "--accelerator", "cpu", "--out", out],
            "embed": [self.root / "scene.tif", "--modality", "S1GRD", "--model", NANO, *RANDOM, "--format", "parquet",
                      "--accelerator", "cpu", "--out", out],
            "embed-zarr": [self.root / "scene.tif", "--modality", "S1GRD", "--model", NANO, *RANDOM, "--format",
                           "zarr", "--dtype", "int8", "--accelerator", "cpu", "--out", out],
            "embed-chips": [*sorted((data / "S2L2AHand").iterdir()), *model, "--accelerator", "cpu", "--preview"],
            "export-onnx": [*encoder, "--out", out / "a.onnx"],
            "export-torch": [*encoder, "--out", out / "a.pt2"],
            "export-hub": [*encoder[:-2], "--format", "hub", "--out", out / "hub"],
            "map": [*task, "--scene", self.root / "scene.tif", "--accelerator", "cpu", "--crop", "64", "--out", out],
            "predict": [*task, "--predict_output_dir", out],
            "fit": ["-c", self.config, "--trainer.default_root_dir", out, "--trainer.enable_checkpointing", "true"],
            "localise": [chip, *model],
            "few-shot": [self.root / "classes", *model, "--ways", "2", "--queries", "1", "--episodes", "20"],
            "zero-shot": ["-c", self.root / "nano.yaml", "--target", "water", "--inputs", "S1GRD", "--out", out],
            "compare": ["-c", self.config, "--arms", "frozen", "--seeds", "1", "--out", out],
            "check": ["-c", self.config, "--samples", "2", "--sheet", out / "sheet.png"],
        }[command]  # fmt: skip
        name = command if command in ("zero-shot", "few-shot") else command.split("-")[0]
        return [name, *map(str, here)]


COMMANDS = (
    "simulate", "splits", "figure", "merge", "export", "tokenize", "reconstruct", "generate", "generate-scene", "map",
    "embed", "embed-zarr", "embed-chips", "export-onnx", "export-torch", "export-hub", "predict", "fit", "localise",
    "few-shot", "zero-shot", "compare", "check",
)  # fmt: skip


def make_inputs(root: Path) -> Inputs:
    """Write what all commands read."""
    from terramind_plugin.builders import build_backbone, build_image_tokenizer
    from terramind_plugin.integration.lightning_cli import make_cli
    from terramind_plugin.simulation.dataset import simulate
    from tests.inference.conftest import PLACE, write_modality
    from tests.runs.running import change, segmentation_config

    scenes = simulate(root / "scenes", chips=8, size=64)
    one = {
        "data.modalities": ["S1GRD"],
        "data.data_root": {"S1GRD": str(root / "scenes" / "data" / "S1GRDHand")},
        "data.image_grep": {"S1GRD": "*_S1Hand.tif"},
        "data.batch_size": 4,
        "data.predict_split": str(root / "scenes" / "splits" / "flood_train_data.txt"),
        "model_args.backbone_modalities": ["S1GRD"],
        "model_args.decoder_channels": [8, 8, 8, 8],
        "trainer.default_root_dir": str(root / "run"),
    }
    base = change(segmentation_config(scenes), one)
    variants: dict[str, dict[str, Any]] = {
        "config": {},
        "nano": {"model_args.backbone": NANO, "model_args.backbone_pretrained": False},
        "lora": {"model_args.backbone_lora": {"rank": 2}, "model_args.backbone_ckpt_path": str(root / "base.pt")},
    }
    torch.save(build_backbone("terramind_v1_tiny", ["S1GRD"]).state_dict(), root / "base.pt")
    for name, changes in variants.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(change(base, changes)))
    for name, file in (("config", "task.ckpt"), ("lora", "lora.ckpt")):
        task = make_cli(["--config", str(root / f"{name}.yaml")]).model
        hyper = {"model_args": dict(task.hparams["model_args"])} if name == "lora" else {}
        content = {"state_dict": task.state_dict(), "hyper_parameters": hyper, "pytorch-lightning_version": "2.6.0"}
        torch.save(content, root / file)
    torch.save(build_image_tokenizer(f"{NANO}_tokenizer_lulc", decoder=False).state_dict(), root / "tokenizer.pt")
    write_modality(root / "scene.tif", "S1GRD", (300, 200))
    (root / "cover").mkdir()
    cover = np.random.default_rng(0).integers(0, 10, (1, 512, 512), np.uint8)
    write_geotiff(root / "cover" / "a.tif", cover, crs="EPSG:32632", transform=PLACE)
    _add_simple_inputs(root)
    return Inputs(root, root / "config.yaml", root / "task.ckpt")


def make_few_inputs(root: Path) -> Inputs:
    """Write what `simulate`, `splits`, `figure` and `export` read."""
    from terramind_plugin.simulation.dataset import simulate

    simulate(root / "scenes", chips=3, size=32)
    _add_simple_inputs(root)
    return Inputs(root, root / "none.yaml", root / "none.ckpt")


def _add_simple_inputs(root: Path) -> None:
    torch.save({"state_dict": {"model.weight": torch.randn(60_000)}}, root / "stage.ckpt")
    (root / "lists").mkdir()
    (root / "lists" / "flood_test_data.csv").write_text("Ghana_103272_S1Hand.tif,Ghana_103272_LabelHand.tif\n" * 2)
    (root / "predictions").mkdir()
    for number, path in enumerate(sorted((root / "scenes" / "data" / "LabelHand").iterdir())):
        name = path.name.replace("_LabelHand.tif", "")
        (root / "predictions" / f"{name}_S2Hand_pred.tif").write_bytes(path.read_bytes())
        folder = root / "classes" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).symlink_to(root / "scenes" / "data" / "S2L2AHand" / f"{name}_S2L2AHand.tif")


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Give an empty file system of some KiB.

    Args:
        folder: Where to mount it; made if it is not there.
        size: KiB.
    """
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def can_mount(folder: Path) -> bool:
    """Return whether this process may mount a file system."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return False
    try:
        with small_disk(folder, 64):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def call(words: list[str]) -> int:
    """Run a command in this process and return its exit status."""
    from terramind_plugin.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["terramind"])
        patch.setattr("logging.raiseExceptions", False)  # handlers of earlier runs have streams that pytest closed
        torch.manual_seed(0)  # of random weights
        try:
            return main(words)
        except SystemExit as error:
            return int(error.code or 0)
