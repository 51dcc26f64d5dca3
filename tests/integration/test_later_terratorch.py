"""What TerraTorch has brought since 1.2.11, with backbones of this package."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.windows import Window
from sklearn.ensemble import RandomForestClassifier
from torch.utils.data import DataLoader

from terramind_plugin.builders import build_backbone

NANO, PAIR = "terramind_sim_nano", ("S2L2A", "S1GRD")
MODEL = {
    "backbone": NANO, "backbone_pretrained": True, "backbone_modalities": list(PAIR),
    "necks": [{"name": "ReshapeTokensToImage"}],
}  # fmt: skip

pytestmark = pytest.mark.skipif(
    tuple(map(int, version("terratorch").split(".")[:3])) < (1, 2, 13), reason="TerraTorch 1.2.13 or later is needed"
)


def _samples(images: Callable[..., Any], count: int = 12) -> list[dict[str, Any]]:
    x = images(PAIR, count, 64, 64)
    labels = (torch.arange(count)[:, None] // torch.tensor([1, 2, 3])) % 2
    return [{"image": {name: x[name][i] for name in PAIR}, "label": labels[i]} for i in range(count)]


def _trainer(folder: Path) -> Any:
    from lightning.pytorch import Trainer

    return Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, enable_checkpointing=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pooled(images: Callable[..., Any]) -> np.ndarray:
    """Return the mean token [12, 128] of each sample."""
    backbone = build_backbone(NANO, list(PAIR), pretrained=True).eval()
    with torch.no_grad():
        return backbone(images(PAIR, 12, 64, 64))[-1].mean(dim=1).numpy()


@pytest.mark.parametrize("kind", ["EmbeddingDecodingTask", "EmbeddingClassificationTask"])
def test_forest_on_frozen_features(
    kind: str, images: Callable[..., Any], pooled: np.ndarray, tmp_path: Path, backbones: Any
) -> None:
    """The task fits a forest to the features of several modalities as scikit-learn alone does."""
    from terratorch import tasks

    samples = _samples(images)
    decoder = {
        "decoder": "SklearnDecoder",
        "decoder_num_classes": 3,
        "decoder_n_estimators": 5,
        "decoder_random_state": 0,
    }
    task = getattr(tasks, kind)(model_args={**MODEL, **decoder, "num_classes": 3})
    trainer = _trainer(tmp_path)
    trainer.fit(task, DataLoader(samples, batch_size=4))
    expected = RandomForestClassifier(n_estimators=5, random_state=0)
    expected.fit(pooled, np.stack([sample["label"] for sample in samples]))
    given: list[torch.Tensor] = []
    task.model.decoder.register_forward_hook(lambda decoder, inputs, output: given.append(output))
    with torch.no_grad():
        logits = task.eval()(images(PAIR, 12, 64, 64)).output
    # TerraTorch 1.2.13 puts a linear layer that nobody trains behind the forest, so look at what the forest says.
    probabilities = np.stack([each[:, 1] for each in expected.predict_proba(pooled)], axis=1)
    np.testing.assert_allclose(torch.sigmoid(given[0]).numpy(), probabilities, atol=1e-6)
    if kind == "EmbeddingClassificationTask":
        found = trainer.test(task, DataLoader(samples, batch_size=4), verbose=False)[0]
        labels = torch.stack([sample["label"] for sample in samples])
        right = ((logits > 0) == labels.bool()).float().mean()
        assert found["test/Multilabel_Accuracy"] == pytest.approx(float(right), abs=1e-6)


def test_stored_features(pooled: np.ndarray, tmp_path: Path) -> None:
    """`EmbeddingClassificationDataModule` reads features that were stored as tensors."""
    from terratorch.datamodules import EmbeddingClassificationDataModule

    torch.save(torch.from_numpy(pooled), tmp_path / "embeddings.pt")
    torch.save(torch.eye(12), tmp_path / "labels.pt")
    torch.save([f"chip{i}" for i in range(12)], tmp_path / "patch_ids.pt")
    data = EmbeddingClassificationDataModule(batch_size=5, test_data_root=str(tmp_path))
    data.setup("test")
    batches = list(data.test_dataloader())
    np.testing.assert_array_equal(torch.cat([batch["image"] for batch in batches]).numpy(), pooled)
    assert [name for batch in batches for name in batch["filename"]] == [f"chip{i}" for i in range(12)]


def test_tiles_from_a_file_to_a_file(
    images: Callable[..., Any], tiny: Callable[..., Any], tmp_path: Path, backbones: Any
) -> None:
    """Windows read by a source and written by a sink equal those of an image in memory."""
    from terratorch.tasks.tiled_inference import tiled_inference

    x = images(("S2L2A",), 1, 160, 128)
    backbone = tiny(("S2L2A",), depth=2)
    profile = {"driver": "GTiff", "width": 128, "height": 160, "dtype": "float32"}
    with rasterio.open(tmp_path / "scene.tif", "w", count=12, **profile) as file:
        file.write(x["S2L2A"][0].numpy())

    def forward(windows: Any) -> torch.Tensor:
        """Return maps [B, 192, 64, 64] of windows of either kind."""
        tokens = backbone({"S2L2A": windows} if torch.is_tensor(windows) else windows)[-1]
        return tokens.transpose(1, 2).unflatten(2, (4, 4)).repeat_interleave(16, 2).repeat_interleave(16, 3)

    class Sink:
        def __init__(self) -> None:
            self.total = np.zeros((192, 160, 128), np.float32)
            self.weight = np.zeros((160, 128), np.float32)

        def write(self, tile: Any, prediction: torch.Tensor) -> None:
            if tile.output_crop is not None:
                prediction = prediction[..., tile.output_crop[0], tile.output_crop[1]]
            self.total[:, tile.input_coords[0], tile.input_coords[1]] += (prediction * tile.blend_mask).numpy()
            self.weight[tile.input_coords[0], tile.input_coords[1]] += tile.blend_mask.numpy()

        def finalize(self) -> None:
            with rasterio.open(tmp_path / "map.tif", "w", count=192, **profile) as file:
                file.write(self.total / self.weight)

    tiles = {"crop": 64, "stride": 48, "delta": 0, "padding": False}
    with torch.no_grad(), rasterio.open(tmp_path / "scene.tif") as scene:

        def read(tile: Any) -> torch.Tensor:
            rows, columns = tile.input_coords
            return torch.from_numpy(scene.read(window=Window.from_slices(rows, columns)))

        blank = torch.zeros(1, 12, 160, 128)
        assert tiled_inference(forward, blank, source=read, sink=Sink(), **tiles) is None
        expected = tiled_inference(forward, x, **tiles)[0].numpy()
    with rasterio.open(tmp_path / "map.tif") as file:
        np.testing.assert_allclose(file.read(), expected, atol=1e-5)


def test_parts_of_a_combined_loss(images: Callable[..., Any], tmp_path: Path, backbones: Any) -> None:
    """Each part of a loss is logged beside their sum, under one name in training and in validation."""
    from terratorch.tasks import SemanticSegmentationTask

    x = images(PAIR, 4, 64, 64)
    samples = [{"image": {name: x[name][i] for name in PAIR}, "mask": (x["S1GRD"][i, 0] > 0).long()} for i in range(4)]
    necks = [{"name": "terramind_pyramid", "patch_size": 8}]
    model_args = {
        **MODEL, "necks": necks, "backbone_out_indices": [1, 2, 4, 5], "decoder": "terramind_unet",
        "decoder_channels": [16, 8, 8, 8], "num_classes": 2,
    }  # fmt: skip
    task = SemanticSegmentationTask(
        model_args=model_args, model_factory="EncoderDecoderFactory", loss={"ce": 0.25, "dice": 0.75},
        ignore_index=-1, plot_on_val=False,
    )  # fmt: skip
    trainer = _trainer(tmp_path)
    trainer.fit(task, DataLoader(samples, batch_size=2), DataLoader(samples, batch_size=2))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    for stage in ("train", "val"):
        parts = {name.removeprefix(f"{stage}/"): logged[name] for name in logged if name.startswith(stage)}
        assert parts["loss"] == pytest.approx(0.25 * parts["ce"] + 0.75 * parts["dice"], rel=1e-5)
    assert not [name for name in logged if name.endswith(("_step", "_epoch"))]
