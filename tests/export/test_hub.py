"""Folders for the hub: read back by our commands from the hub's cache, with the same map."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml
from safetensors.torch import load_file

from terramind_plugin.cli import main
from terramind_plugin.integration.fine_tuned import describe_task
from tests.hub import cached_file


def _read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


@pytest.fixture
def on_hub(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the exported folder as it lies in the hub's cache under somebody/floods."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = cached_file(tmp_path / "cache", "somebody/floods", "").parent / ("0123456789" * 4)
    shutil.copytree(folder, snapshot, dirs_exist_ok=True)
    return snapshot


def test_what_the_folder_holds(folder: Path, tuned: SimpleNamespace) -> None:
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Terratorch"]
    settings = config["pretrained_cfg"]
    assert settings["input"]["data"]["S1GRD"] == {"type": "torch.Tensor", "shape": [2, 64, 64]}
    assert settings["model"]["class_path"] == "terratorch.tasks.SemanticSegmentationTask"
    args = settings["model"]["init_args"]["model_args"]
    assert (args["backbone"], args["num_classes"], "backbone_pretrained" in args) == ("terramind_sim_nano", 2, False)
    data = settings["data"]["init_args"]
    assert (data["means"]["S1GRD"], data["offsets"], data["class_names"]) == (
        [-11, -19],
        {"S2L1C": -1000},
        ["Land", "Water"],
    )
    assert str(tuned.folder) not in (folder / "config.json").read_text()
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        assert torch.equal(value, tuned.task.model.state_dict()[name]), name
    assert set(dict(tuned.task.model.named_parameters())) <= set(tensors)
    card = (folder / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert (head["pipeline_tag"], head["library_name"]) == ("image-segmentation", "terratorch")
    for text in (
        "terramind map --model hub:ORG/NAME",
        "| S1GRD | 2 x 64 x 64 | VV, VH | dB | -11, -19 | 4, 5 |",
        "| 1 | Water |",
    ):
        assert text in card, text


def test_the_same_map_from_a_configuration_a_checkpoint_a_folder_and_the_hub(
    on_hub: Path, folder: Path, tuned: SimpleNamespace, map_with: Any, tmp_path: Path
) -> None:
    ways = {
        "configuration": ("-c", tuned.config, "--ckpt_path", tuned.checkpoint),
        "checkpoint": ("--model", tuned.checkpoint),
        "folder": ("--model", folder),
        "hub": ("--model", "hub:somebody/floods"),
        "hub and configuration": ("--model", "hub:somebody/floods", "--config", tuned.config),
    }
    for name, words in ways.items():
        assert map_with(tmp_path / name, *words) == 0, name
        for ending in ("probabilities", "pred"):
            made, wanted = (_read(tmp_path / one / f"a_S2Hand_{ending}.tif") for one in (name, "configuration"))
            np.testing.assert_array_equal(made, wanted, name)
    assert len(np.unique(wanted)) == 2
    with rasterio.open(tmp_path / "hub" / "a_S2Hand_pred.tif") as file:
        assert file.tags()["weights"] == "hub:somebody/floods 012345678901"
        assert (file.tags()["class_0"], file.tags()["class_1"]) == ("Land", "Water")


def test_windows_are_as_large_as_the_inputs_that_config_json_names(
    on_hub: Path, scene: dict[str, Path], tmp_path: Path
) -> None:
    words = [word for name, path in scene.items() for word in ("--scene", f"{name}={path}")]
    assert main(["map", "--model", "hub:somebody/floods", *words, "--accelerator", "cpu", "--out", str(tmp_path)]) == 0
    with rasterio.open(tmp_path / "a_S2Hand_pred.tif") as file:
        assert file.tags()["windows"].startswith("crop 64, ")


def test_a_repository_as_others_publish_it(
    on_hub: Path, tuned: SimpleNamespace, map_with: Any, tmp_path: Path, caplog: Any
) -> None:
    """Its weights are a state_dict with 'model.', its data module is not installed, and it has no card of ours."""
    config = json.loads((on_hub / "config.json").read_text())
    settings = config["pretrained_cfg"]
    data = settings["data"]
    kept = {name: data["init_args"][name] for name in ("means", "stds", "modalities", "num_classes", "offsets")}
    settings["data"] = {"class_path": "not_there.FloodDataModule", "init_args": {**kept, "data_root": "/data/floods"}}
    settings["model"]["init_args"]["model_args"]["backbone_pretrained"] = True
    settings |= {"seed_everything": 0, "trainer": {"max_epochs": 3}, "optimizer": {"class_path": "torch.optim.AdamW"}}
    (on_hub / "config.json").write_text(
        json.dumps({"architectures": ["Terratorch"], "num_classes": 0, "pretrained_cfg": settings})
    )
    (on_hub / "model.safetensors").unlink()
    torch.save({"state_dict": tuned.task.state_dict()}, on_hub / "floods.pt")
    assert map_with(tmp_path / "hub", "--model", "hub:somebody/floods") == 0
    assert "its data module not_there.FloodDataModule is not installed" in caplog.text
    assert map_with(tmp_path / "own", "--model", tuned.checkpoint) == 0
    np.testing.assert_array_equal(*(_read(tmp_path / name / "a_S2Hand_probabilities.tif") for name in ("hub", "own")))


def test_embeddings_are_those_of_the_checkpoint(
    on_hub: Path, tuned: SimpleNamespace, scene: dict[str, Path], tmp_path: Path
) -> None:
    words = [word for name, path in scene.items() for word in ("--scene", f"{name}={path}")]
    for name, model in (("hub", "hub:somebody/floods"), ("own", tuned.checkpoint)):
        run = ["embed", *words, "--model", model, "--accelerator", "cpu", "--out", tmp_path / name]
        assert main(list(map(str, run))) == 0
    made, wanted = (_read(next((tmp_path / name).glob("*.tif"))) for name in ("hub", "own"))
    assert np.isfinite(wanted).any()
    np.testing.assert_array_equal(made, wanted)


def test_repositories_that_are_no_task(on_hub: Path, map_with: Any, tmp_path: Path, capsys: Any) -> None:
    def refused(*words: Any) -> str:
        capsys.readouterr()
        assert map_with(tmp_path / "out", *words) == 2
        return str(capsys.readouterr().err)

    hub = ("--model", "hub:somebody/floods")
    whole = (on_hub / "config.json").read_text()
    smaller = json.loads(whole)
    smaller["pretrained_cfg"]["model"]["init_args"]["model_args"]["decoder_channels"] = [16, 16, 16, 8]
    other = json.dumps(smaller)
    for text, message in {
        "{": "is not valid JSON",
        "[]": "does not contain its task",
        '{"pretrained_cfg": 3}': "pretrained_cfg is a int, expected the settings of task and data",
        '{"pretrained_cfg": {"model": {"class_path": "a"}}}': "must have a class_path and init_args",
        whole.replace("terramind_pyramid", "terramind_other"): "terramind_other",
        other: "does not fit the configured task",
    }.items():
        (on_hub / "config.json").write_text(text)
        assert message in refused(*hub), message
    (on_hub / "config.json").unlink()
    assert "there is no config.json with pretrained_cfg beside it" in refused(*hub)
    assert "not on this machine and could not be listed" in refused("--model", "hub:somebody/nothing")
    assert "terramind_v1_base is not a fine-tuned model" in refused("--model", "terramind_v1_base")
    assert "Give a fine-tuned model: --config YAML and --ckpt_path FILE" in refused()
    assert "Both --model" in refused(*hub, "--ckpt_path", "a.ckpt")
    assert not (tmp_path / "out").exists()


def test_an_encoder_for_the_hub(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "encoder"
    words = ["--model", "terramind_sim_nano", "--modalities", "S2L2A", "--format", "hub"]
    assert main(["export", *words, "--dtype", "float16", "--out", str(out)]) == 0
    settings = json.loads((out / "config.json").read_text())["pretrained_cfg"]["model"]["init_args"]
    assert settings["model_args"] == {"backbone": "terramind_sim_nano", "backbone_modalities": ["S2L2A"]}
    assert load_file(out / "model.safetensors")["encoder.0.attn.qkv.weight"].dtype == torch.float16
    # A folder of weights is a model of the other commands as well: its size is read from it.
    onnx = ["export", "--model", str(out), "--modalities", "S2L2A", "--out", str(tmp_path / "a.onnx")]
    assert main(onnx) == 0
    # The folder is ours, so it is written anew; another's is not.
    assert main(["export", *words, "--out", str(out)]) == 0
    assert load_file(out / "model.safetensors")["encoder.0.attn.qkv.weight"].dtype == torch.float32
    (out / "config.json").write_text('{"architectures": ["Other"]}')
    assert main(["export", *words, "--out", str(out)]) == 2
    assert "was not written by terramind export and is kept" in capsys.readouterr().err
    assert main(["export", "--model", str(out), "--modalities", "S2L2A", "--format", "hub", "--out", str(out)]) == 2
    assert "is an input and would be overwritten" in capsys.readouterr().err


def test_a_checkpoint_says_how_its_files_are_read(tuned: SimpleNamespace) -> None:
    settings, size = describe_task(tuned.checkpoint)
    assert size is None
    data = settings["data"]["init_args"]
    assert data["offsets"] == {"S2L1C": -1000}
    assert data["means"]["S1GRD"] == [-11, -19]
    assert data["task"] == "segmentation"
    assert "data_root" not in data
