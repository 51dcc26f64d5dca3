"""Tasks and generators with random weights, and scenes for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml
from rasterio.transform import Affine

from terramind_plugin.builders import build_generator
from terramind_plugin.cli import main
from terramind_plugin.model.modalities import MODALITIES
from tests.generation.conftest import scatter_weights
from tests.runs.running import change, segmentation_config

PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)


def write_modality(path: Path, name: str, size: tuple[int, int], gap: Any = None, **changes: Any) -> Path:
    """Write a smooth image of a modality, without data at some index [rows, columns] if one is given."""
    entry = MODALITIES[name]
    y, x = np.mgrid[: size[0], : size[1]]
    values = np.stack(
        [
            band.mean + band.std * np.sin((x * (i + 1) + y * (i + 3)) / 97 + i) * 0.8
            for i, band in enumerate(entry.bands)
        ]
    ).astype(np.float32)
    if gap is not None:
        values[:, *gap] = np.nan
    profile = {"driver": "GTiff", "crs": "EPSG:32632", "transform": PLACE, "dtype": "float32", **changes}
    with rasterio.open(path, "w", count=len(values), height=size[0], width=size[1], **profile) as file:
        file.write(values)
        file.descriptions = entry.band_names
    return path


def read_raster(path: Path) -> np.ndarray:
    """Return all bands of a file."""
    with rasterio.open(path) as file:
        return file.read()


def refused(capsys: Any, words: Sequence[object]) -> str:
    """Run a command that fails, and return its one line."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("terramind: ") and "noise" not in line]
    assert len(lines) == 1
    assert not captured.out
    return lines[0]


def make_task(folder: Path, changes: dict[str, Any]) -> tuple[Path, Path]:
    """Return a configuration and a checkpoint of its task with random weights."""
    from terramind_plugin.integration.lightning_cli import make_cli

    config = folder / "config.yaml"
    base = segmentation_config(SimpleNamespace(root=folder))  # type: ignore[arg-type]
    config.write_text(yaml.safe_dump(change(base, changes)))
    task = make_cli(["--config", str(config)]).model
    with torch.no_grad():
        for name, parameter in task.named_parameters():
            if "head" in name and parameter.ndim == 4:
                parameter.mul_(20)  # as a trained model: sure here of one class, there of another
    checkpoint = folder / "best.ckpt"
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": {}}, checkpoint)
    return config, checkpoint


@pytest.fixture(scope="session")
def radar_task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return configuration and checkpoint of a task with one modality."""
    one = {
        "data.modalities": ["S1GRD"],
        "data.data_root": {"S1GRD": "nowhere"},
        "data.image_grep": {"S1GRD": "*"},
        "model_args.backbone_modalities": ["S1GRD"],
    }
    return make_task(tmp_path_factory.mktemp("radar"), one)


@pytest.fixture(scope="session")
def both_task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return configuration and checkpoint of a task with two modalities."""
    return make_task(tmp_path_factory.mktemp("both"), {})


def save_generator(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Path:
    """Write weights of a tiny generator that gives no constant images, as untrained decoders do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = scatter_weights(build_generator("terramind_v1_tiny", list(inputs), list(outputs)))
    torch.save(model.state_dict(), path)
    return path
