"""Pictures of generated modalities in TensorBoard."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from terramind_plugin.integration.drawing import GeneratedPainter, find_tim, paint_codes
from terramind_plugin.model.modalities import resolve
from terramind_plugin.plotting.pictures import class_picture
from terramind_plugin.tokenizers.variants import tokenizers_of


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with random weights of the tokenizer of land cover."""
    from terramind_plugin.builders import build_image_tokenizer

    path = tmp_path_factory.mktemp("tokenizer") / "lulc.pt"
    torch.save(build_image_tokenizer("terramind_v1_tokenizer_lulc").state_dict(), path)
    return path


def _width(folder: Path) -> int:
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    tag = events.Tags()["images"][0]
    return Image.open(io.BytesIO(events.Images(tag)[0].encoded_image_string)).width


def test_a_panel_for_the_thought(runner: Any, tmp_path: Path, tokenizer_file: Path) -> None:
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path), "version": 0}}
    widths = []
    for name, backbone in (("plain", "terramind_v1_tiny"), ("tim", "terramind_v1_tiny_tim")):
        logger["init_args"]["name"] = name  # type: ignore[index]
        images = {
            "class_path": "terramind_plugin.SegmentationImages",
            "init_args": {"samples": 1, "tokenizer_ckpt_paths": {"LULC": str(tokenizer_file)}},
        }
        changes = {
            "trainer.logger": logger,
            "trainer.callbacks": [images],
            "trainer.num_sanity_val_steps": 0,
            "model_args.backbone": backbone,
        }
        cli = runner.terratorch("fit", changes)
        widths.append(_width(tmp_path / name / "version_0"))
    assert widths[1] > widths[0]
    tim = find_tim(cli.model)
    assert tim is not None
    pictures = GeneratedPainter({"LULC": tokenizer_file}).paint(tim, 0)
    assert list(pictures) == ["LULC (generated)"]
    picture = pictures["LULC (generated)"]
    assert picture.shape == (64, 64, 3)  # the map has the size of the chip
    colors = class_picture(np.arange(10)[None], resolve("LULC").class_colors)[0]
    assert all(any(np.allclose(pixel, color) for color in colors) for pixel in picture.reshape(-1, 3)[::97])
    assert list(GeneratedPainter().paint(tim, 0)) == ["LULC (generated, tokens)"]


def test_codes_as_colours() -> None:
    ids = torch.arange(15360).view(120, 128)
    picture = paint_codes(ids, tokenizers_of()["S1GRD"])
    assert picture.shape == (120, 128, 3)
    assert picture.min() == 0
    assert picture.max() == 1
    same = paint_codes(torch.full((2, 2), 7), tokenizers_of()["LULC"])
    assert (same == same[0, 0]).all()
