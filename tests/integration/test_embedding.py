"""`terramind_plugin.EmbeddingTask`: TerraTorch's task for several modalities, with places on the ground."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import torch
import yaml
from rasterio.transform import Affine

from terramind_plugin.builders import build_backbone
from terramind_plugin.errors import ConfigError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.model.standardisation import Standardisation
from tests.inference.conftest import PLACE, write_modality

NANO, DIM = "terramind_sim_nano", 128
NAMES = ("S2L2A", "S1GRD")


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return folders of three chips of 64 x 48 pixels, the second without data in its upper left patch."""
    root = tmp_path_factory.mktemp("chips")
    for name in NAMES:
        (root / name).mkdir()
        for number in range(3):
            moved = Affine(10, 0, PLACE.c + 1000 * number, 0, -10, PLACE.f)
            gap = (slice(0, 8), slice(0, 8)) if number == 1 else None
            write_modality(root / name / f"chip{number}.tif", name, (64, 48), gap, transform=moved)
    return {name: root / name for name in NAMES}


def _predict(chips: dict[str, Path], folder: Path, changes: dict[str, Any] | None = None, **arguments: Any) -> Path:
    from terramind_plugin.integration.lightning_cli import make_cli

    model_args = {
        "backbone": NANO, "backbone_pretrained": True, "backbone_modalities": list(chips), **(changes or {}),
    }  # fmt: skip
    out = folder / "embeddings"
    config = {
        "trainer": {
            "accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
            "default_root_dir": str(folder),
        },
        "data": {
            "class_path": "terramind_plugin.TerraMindDataModule",
            "init_args": {
                "batch_size": 2, "num_workers": 0, "modalities": list(chips),
                "predict_data_root": {name: str(path) for name, path in chips.items()},
            },
        },
        "model": {
            "class_path": "terramind_plugin.EmbeddingTask",
            "init_args": {"model_args": model_args, "output_dir": str(out), **arguments},
        },
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    cli = make_cli(["--config", str(folder / "config.yaml")])
    cli.trainer.predict(cli.model, datamodule=cli.datamodule)
    return out


def _features(chips: dict[str, Path], number: int, layer: int = -1) -> np.ndarray:
    backbone = build_backbone(NANO, list(chips), pretrained=True).eval()
    x = {}
    for name, folder in chips.items():
        entry = MODALITIES[name]
        with rasterio.open(folder / f"chip{number}.tif") as file:
            values = file.read()
        filled = np.where(np.isnan(values), np.array(entry.mean, np.float32)[:, None, None], values)
        x[name] = Standardisation(entry.mean, entry.std)(torch.from_numpy(filled)[None])
    with torch.no_grad():
        return backbone(x)[layer][0].T.reshape(DIM, 8, 6).numpy()


def test_georeferenced_maps_of_two_modalities(chips: dict[str, Path], tmp_path: Path) -> None:
    out = _predict(chips, tmp_path, layers=[-1, 2])
    names = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    files = [f"layer_0{layer}/chip{number}_embedding.tif" for layer in (0, 1) for number in range(3)]
    assert names == ["configuration_summary.json", *files]
    for number in range(3):
        with rasterio.open(out / f"layer_00/chip{number}_embedding.tif") as file:
            assert file.crs.to_epsg() == 32632
            assert file.transform == Affine(80, 0, PLACE.c + 1000 * number, 0, -80, PLACE.f)
            assert (file.count, file.shape) == (DIM, (8, 6))
            found = file.read()
        empty = np.isnan(found)
        assert empty.sum() == (DIM if number == 1 else 0)
        expected = _features(chips, number)
        np.testing.assert_allclose(found[~empty], expected[~empty], atol=2e-5)
    with rasterio.open(out / "layer_01/chip2_embedding.tif") as file:
        np.testing.assert_allclose(file.read(), _features(chips, 2, 2), atol=2e-5)
    summary = json.loads((out / "configuration_summary.json").read_text())
    assert (summary["backbone"], summary["n_layers_saved"]) == (NANO, 2)


def test_pooled_tables(chips: dict[str, Path], tmp_path: Path) -> None:
    out = _predict(chips, tmp_path, embedding_pooling="mean", output_format="parquet_joint")
    table = geopandas.read_parquet(out / "layer_00" / "embeddings.parquet").sort_values("file_id")
    assert list(table.file_id) == ["chip0", "chip1", "chip2"]
    assert table.crs.to_epsg() == 32632
    np.testing.assert_allclose(table.bounds.minx, [PLACE.c + 1000 * number for number in range(3)])
    np.testing.assert_allclose(table.embedding.iloc[2], _features(chips, 2).mean(axis=(1, 2)), atol=1e-5)
    (tmp_path / "each").mkdir()
    out = _predict(chips, tmp_path / "each", embedding_pooling="mean", output_format="parquet")
    assert sorted(path.name for path in (out / "layer_00").iterdir()) == [
        f"chip{i}_embedding.parquet" for i in range(3)
    ]
    one = geopandas.read_parquet(out / "layer_00" / "chip2_embedding.parquet")
    assert one.crs.to_epsg() == 32632
    np.testing.assert_array_equal(one.total_bounds, [PLACE.c + 2000, PLACE.f - 640, PLACE.c + 2480, PLACE.f])


def test_what_is_refused(chips: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="backbone_merge_method dict keeps modalities apart"):
        _predict(chips, tmp_path, {"backbone_merge_method": "dict"})
