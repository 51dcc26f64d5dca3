"""A fine-tuned checkpoint with random weights, and its map of one scene."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from terramind_plugin.cli import main
from tests.conftest import one_thread
from tests.inference.conftest import write_modality
from tests.runs.running import change, segmentation_config

MODALITIES = ("S2L1C", "S1GRD")
NANO = {
    "model_args.backbone": "terramind_sim_nano",
    "model_args.backbone_out_indices": [1, 2, 4, 5],
    "model_args.necks": [{"name": "terramind_pyramid", "patch_size": 8}],
    "model_args.decoder": "terramind_unet",
    "data.means": {"S1GRD": [-11.0, -19.0]},
    "data.stds": {"S1GRD": [4.0, 5.0]},
    "data.offsets": {"S2L1C": -1000},
}
"""Changes to the common configuration: the small model, and statistics of its own."""


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Any:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Return a task whose norms have learnt something, its configuration, and a checkpoint as Lightning writes it."""
    from terramind_plugin.integration.lightning_cli import make_cli

    folder = tmp_path_factory.mktemp("tuned")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(change(segmentation_config(SimpleNamespace(root=folder)), NANO)))  # type: ignore[arg-type]
    cli = make_cli(["--config", str(config)])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cli.model.train()
        images = {"S2L1C": torch.randn(4, 13, 64, 64), "S1GRD": torch.randn(4, 2, 64, 64)}
        for _ in range(3):
            cli.model.model(images)
        for name, parameter in cli.model.model.named_parameters():
            if "head" in name and parameter.ndim == 4:
                parameter.data.mul_(20)
    cli.model.eval()
    checkpoint = folder / "best.ckpt"
    torch.save(
        {
            "state_dict": cli.model.state_dict(),
            "pytorch-lightning_version": "2.6.0",
            "hyper_parameters": dict(cli.model.hparams),
            "TerraMindDataModule": cli.datamodule.state_dict(),
        },
        checkpoint,
    )
    return SimpleNamespace(folder=folder, config=config, checkpoint=checkpoint, task=cli.model, images=images)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a file of each modality, with a gap in one."""
    folder = tmp_path_factory.mktemp("scene")
    files = {"S2L1C": folder / "a_S2Hand.tif", "S1GRD": folder / "a_S1Hand.tif"}
    for name, path in files.items():
        write_modality(path, name, (96, 80), (slice(10, 20), slice(10, 30)) if name == "S1GRD" else None)
    return files


@pytest.fixture(scope="session")
def map_with(scene: dict[str, Path]) -> Callable[..., int]:
    """Return a function that maps the scene with windows of 64 pixels, and returns the exit status."""

    def run(out: Path, *words: Any) -> int:
        scenes = [word for name, path in scene.items() for word in ("--scene", f"{name}={path}")]
        fixed = [*scenes, "--out", out, "--accelerator", "cpu", "--crop", "64", "--probabilities"]
        return main([str(word) for word in ["map", *words, *fixed]])

    return run


@pytest.fixture(scope="session")
def folder(tuned: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint as a folder for the hub."""
    out = tmp_path_factory.mktemp("hub") / "floods"
    assert main(["export", "--model", str(tuned.checkpoint), "--format", "hub", "--crop", "64", "--out", str(out)]) == 0
    return out
