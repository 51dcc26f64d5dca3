"""Mistakes in a configuration: `terramind` says the cause in one line and exits with 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

MISTAKES = {
    "backbone": ({"model_args.backbone": "terramind_v1_tinny"}, "Did you mean 'terramind_v1_tiny'?"),
    "source": ({"model_args.backbone": "teramind_v1_tiny"}, "teramind_v1_tiny.*Did you mean 'terramind_v1_tiny'?"),
    "band": ({"model_args.backbone_bands": {"S2L1C": ["GREN"]}}, "Unknown band 'GREN' for modality S2L1C"),
    "band key": ({"model_args.backbone_bands": {"S2L1X": ["RED"]}}, "Unknown modality 'S2L1X'"),
    "backbone key": ({"model_args.backbone_merge": "mean"}, "terramind_v1_tiny has no argument 'merge'"),
    "decoder": ({"model_args.decoder": "UNetDecoderr"}, "UNetDecoderr.*Did you mean .*UNetDecoder'?"),
    "decoder key": ({"model_args.decoder_channel": [1]}, "UNetDecoder.*unexpected keyword argument 'channel'"),
    "neck": ({"model_args.necks": [{"name": "terramind_pyramids"}]}, "Did you mean 'terramind_pyramid'?"),
    "task": ({"model.class_path": "terratorch.tasks.SegmentationTsk"}, "^terramind: model: .*'SegmentationTsk'"),
    "task key": ({"model.ignore_indx": 3}, "^terramind: model: .*Option 'ignore_indx' is not accepted"),
    "loss": ({"model.loss": "dicee"}, "Loss type 'dicee' is not valid"),
    "data": ({"data.class_path": "terramind_plugin.DataModule"}, "^terramind: data: .*It has: .*TerraMindDataModule"),
    "data key": ({"data.batchsize": 3}, "^terramind: data: .*Option 'batchsize' is not accepted"),
    "modality": ({"data.modalities": ["S2L1C", "S1"]}, "Modality 'S1' is ambiguous: write S1GRD or S1RTC"),
    "callback": ({"trainer.callbacks": [{"class_path": "terramind_plugin.FiniteLos"}]}, "It has: .*FiniteLoss"),
    "trainer key": ({"trainer.max_epoch": 3}, "does not accept option 'trainer.max_epoch'"),
    "split": ({"data.train_split": "/nowhere.txt"}, "Split file not found: /nowhere.txt"),
    "batch size": ({"data.batch_size": 5}, "No training batch: 4 training samples do not fill one batch of 5"),
    "models disagree": ({"model_args.backbone_modalities": ["S2L1C"]}, "modality 'S1GRD' that it does not take"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_cause_in_one_line(mistake: str, runner: Any, capfd: pytest.CaptureFixture[str]) -> None:
    import re

    changes, message = MISTAKES[mistake]
    assert runner.terramind("fit", changes) == 2
    *_, last = capfd.readouterr().err.strip().splitlines()
    assert last.startswith("terramind: ")
    assert re.search(message, last)
    assert "NoneType" not in last
    assert "Namespace" not in last


def test_weights_that_are_nowhere(runner: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert runner.terramind("fit", {"model_args.backbone_pretrained": True}) == 2
    lines = capfd.readouterr().err.partition("terramind: ")[2].strip().splitlines()
    assert lines[0].startswith("The weights of terramind_v1_tiny are not on this machine")
    assert lines[-1].endswith("backbone_pretrained: false.")


def _spoil(scenes: Any, tmp_path: Path, value: float) -> dict[str, Any]:
    """Return changes to a folder of labels in which one file holds a value."""
    folder = tmp_path / "labels"
    folder.mkdir()
    for path in (scenes.root / "data" / "LabelHand").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    with rasterio.open(folder / f"{scenes.splits['train'][0]}_LabelHand.tif", "r+") as raster:
        raster.write(np.full((1, *raster.shape), value, raster.dtypes[0]))
    return {"data.label_data_root": str(folder)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_label_out_of_range(
    runner: Any, scenes: Any, tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = _spoil(scenes, tmp_path, 99) | {"data.num_workers": workers}
    assert runner.terramind("fit", changes) == 2
    message = capfd.readouterr().err.rpartition("terramind: ")[2]
    assert f"{scenes.splits['train'][0]}_LabelHand.tif holds label values 99 (4096 pixels)" in message
    assert "Traceback" not in message


def test_statistics_are_printed_as_yaml(runner: Any, scenes: Any, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    assert runner.terramind("compute_statistics") == 0
    out = capsys.readouterr().out
    result = yaml.safe_load(out[out.index("means:") :])
    assert {name: len(numbers) for name, numbers in result["means"].items()} == {"S2L1C": 13, "S1GRD": 2}
    # They can be used as they are.
    assert runner.terramind("fit", {f"data.{key}": value for key, value in result.items()}) == 0
