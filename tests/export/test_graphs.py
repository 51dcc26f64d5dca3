"""Graphs in files: opened by onnxruntime and torch alone, with the same outputs for any batch."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from terramind_plugin.builders import build_backbone
from terramind_plugin.cli import main
from terramind_plugin.export.graphs import METADATA
from terramind_plugin.model.modalities import MODALITIES

AGREEMENT = 1e-4


def _export(*words: Any) -> int:
    return main(["export", *map(str, words)])


def _described(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """Return the description that a file's metadata holds: JSON, but for names."""
    plain = {"model", "task", "weights", "made_by"}
    metadata = session.get_modelmeta().custom_metadata_map
    return {name: text if name in plain else json.loads(text) for name, text in metadata.items()}


def _agree(got: Any, want: torch.Tensor) -> None:
    got = torch.as_tensor(got)
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= AGREEMENT * float(want.abs().max())


@torch.no_grad()
def test_onnx_of_an_encoder(tmp_path: Path, image: Any, capsys: Any) -> None:
    out = tmp_path / "encoder.onnx"
    assert _export("--model", "terramind_sim_nano", "--modalities", "S2L2A", "--format", "onnx", "--out", out) == 0
    assert f"{out} (" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["encoder.onnx"]
    session = onnxruntime.InferenceSession(str(out))
    (read,) = session.get_inputs()
    assert (read.name, read.shape, read.type) == ("S2L2A", ["batch", 12, 64, 64], "tensor(float)")
    backbone = build_backbone("terramind_sim_nano", ["S2L2A"], pretrained=True).eval()
    for batch in (1, 5):
        x = image("S2L2A", batch)
        for got, want in zip(session.run(None, {"S2L2A": x.numpy()}), backbone({"S2L2A": x}), strict=True):
            _agree(got, want)
    described = _described(session)
    entry = MODALITIES["S2L2A"]
    (wanted,) = described["inputs"]
    assert (wanted["bands"], wanted["units"]) == (list(entry.band_names), entry.units)
    assert (wanted["mean"], wanted["std"]) == (list(entry.mean), list(entry.std))
    assert wanted["expects"].startswith("standardised: (x - mean) / std")
    assert [one.name for one in session.get_outputs()] == [f"layer_{number}" for number in range(6)]
    assert described["model"] == "terramind_sim_nano"


@pytest.mark.slow
@torch.no_grad()
def test_onnx_of_a_whole_fine_tuned_model(tuned: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "floods.onnx"
    assert _export("--model", tuned.checkpoint, "--format", "onnx", "--crop", 64, "--out", out) == 0
    assert not [node for node in onnx.load(out).graph.node if node.op_type == "BatchNormalization"]
    session = onnxruntime.InferenceSession(str(out))
    want = tuned.task(tuned.images).output
    _agree(session.run(["scores"], {name: x.numpy() for name, x in tuned.images.items()})[0], want)
    described = _described(session)
    assert described["class_names"] == ["Land", "Water"]
    optical, radar = described["inputs"]
    assert (optical["name"], optical["offset"], len(optical["bands"])) == ("S2L1C", -1000, 13)
    assert (radar["mean"], radar["std"], radar["units"]) == ([-11, -19], [4, 5], "dB")


@pytest.mark.slow
@torch.no_grad()
def test_program_of_torch_export(tuned: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "floods.pt2"
    words = ("--modalities", "S1GRD,S2L1C", "--crop", 64, "--standardize")
    assert _export("--model", tuned.checkpoint, "--format", "torch", *words, "--out", out) == 0
    stored = {METADATA: ""}
    program = torch.export.load(out, extra_files=stored).module()
    described = json.loads(stored[METADATA])
    assert [one["name"] for one in described["inputs"]] == ["S1GRD", "S2L1C"]
    assert described["inputs"][0]["expects"].startswith("values as in the files")
    entry = MODALITIES["S2L1C"]
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (entry.mean, entry.std))
    optical = tuned.images["S2L1C"] * std + mean + 1000
    radar = tuned.images["S1GRD"] * torch.tensor([[[4.0]], [[5.0]]]) + torch.tensor([[[-11.0]], [[-19.0]]])
    want = tuned.task(tuned.images).output
    _agree(program(radar, optical), want)
    _agree(program(radar[:1], optical[:1]), want[:1])


@torch.no_grad()
def test_some_layers(tmp_path: Path, image: Any) -> None:
    words = ("--model", "terramind_sim_nano", "--modalities", "DEM", "--layers", "2,5")
    assert _export(*words, "--out", tmp_path / "a.pt2") == 0
    x = image("DEM", 1)
    got = torch.export.load(tmp_path / "a.pt2").module()(x)
    wanted = build_backbone("terramind_sim_nano", ["DEM"], pretrained=True).eval()({"DEM": x})
    for mine, layer in zip(got, (2, 5), strict=True):
        _agree(mine, wanted[layer])


def test_what_cannot_be_exported(tuned: SimpleNamespace, tmp_path: Path, capsys: Any) -> None:
    nano = ("--model", "terramind_sim_nano")
    empty = tmp_path / "empty.ckpt"
    torch.save({"state_dict": tuned.task.state_dict()}, empty)
    cases = {
        ("--format", "onnx", *nano, "--out", "a.onnx"): "Name the inputs of terramind_sim_nano: --modalities S2L2A",
        ("--format", "onnx", *nano, "--modalities", "S2L2A", "--out", "a.pt2"): "must end in .onnx, got a.pt2",
        (*nano, "--modalities", "S2L2B", "--out", "a.onnx"): "Did you mean 'S2L2A'?",
        (*nano, "--modalities", "DEM", "--crop", "60", "--out", "a.onnx"): "a multiple of the patch size, 8",
        (*nano, "--modalities", "DEM", "--layers", "7", "--out", "a.onnx"): "in ascending order, 0 to 5",
        (*nano, "--modalities", "DEM", "--dtype", "float16", "--out", "a.onnx"): "is for the formats hub and weights",
        (*nano, "--modalities", "DEM", "--standardize", "--out", "a"): "--standardize is for onnx and torch",
        (*nano, "--format", "hub", "--modalities", "DEM", "--out", "a.onnx"): "--format hub writes a folder",
        (*nano, "--out", "a.safetensors"): "names no checkpoint",
        ("--model", "terramind_v1_bas", "--modalities", "DEM", "--out", "a.onnx"): "Did you mean 'terramind_v1_base'?",
        ("--model", "none.ckpt", "--out", "a.onnx"): "Checkpoint not found: none.ckpt",
        ("--model", tuned.checkpoint, "--modalities", "DEM", "--out", "a.onnx"): "Its inputs: S2L1C, S1GRD",
        ("--model", tuned.checkpoint, "--layers", "1", "--out", "a.onnx"): "--layers is for backbones",
        ("--model", tuned.checkpoint, "--modalities", "S1GRD", "--out", "a"): "holds the whole model",
        ("--model", empty, "--config", tmp_path / "b.yaml", "--out", "a.onnx"): "There is no configuration",
        ("--model", "terramind_v1_base", "--modalities", "DEM", "--out", "a.onnx"): "--pretrained false",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for words, message in cases.items():
            assert _export(*words) == 2, words
            error = capsys.readouterr().err
            assert message in error, (words, error)
    assert [path.name for path in tmp_path.iterdir()] == ["empty.ckpt"]


@pytest.mark.slow
def test_the_published_size_with_two_inputs(tmp_path: Path, image: Any) -> None:
    out = tmp_path / "base.onnx"
    assert _export(
        "--model", "terramind_v1_base", "--pretrained", "false", "--modalities", "S2L2A,S1GRD", "--out", out
    ) == 0  # fmt: skip
    session = onnxruntime.InferenceSession(str(out))
    x = {name: image(name, 2, 224, 224).numpy() for name in ("S2L2A", "S1GRD")}
    assert session.run(["layer_11"], x)[0].shape == (2, 196, 768)


@pytest.mark.slow
@torch.no_grad()
def test_onnx_that_standardises_its_inputs(tuned: SimpleNamespace, tmp_path: Path) -> None:
    words = ("--modalities", "S1GRD", "--crop", 64, "--standardize", "--out", tmp_path / "radar.onnx")
    assert _export("--model", tuned.checkpoint, *words) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "radar.onnx"))
    radar = tuned.images["S1GRD"].numpy() * np.float32([[[4]], [[5]]]) + np.float32([[[-11]], [[-19]]])
    _agree(session.run(None, {"S1GRD": radar})[0], tuned.task.model({"S1GRD": tuned.images["S1GRD"]}).output)
