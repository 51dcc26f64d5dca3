"""vLLM with this package: the entry point, and TerraTorch's plugin over a stand-in for the engine."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.io import MemoryFile

from terramind_plugin.model.modalities import MODALITIES
from tests.export import vllm_stub
from tests.inference.conftest import write_modality
from tests.runs.running import REPOSITORY

GROUP = "vllm.general_plugins"


def entry_points() -> list[EntryPoint]:
    """Return what the installed package tells vLLM."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [EntryPoint(name, value, GROUP) for name, value in project["entry-points"][GROUP].items()]


def standardised(request: Path) -> dict[str, torch.Tensor]:
    """Return the files of a request as the task was trained with."""
    entry = MODALITIES["S2L1C"]
    numbers = {"S2L1C": (entry.mean, entry.std, -1000), "S1GRD": ((-11, -19), (4, 5), 0)}
    images = {}
    for name, (mean, std, offset) in numbers.items():
        (path,) = (request / name).iterdir()
        with rasterio.open(path) as file:
            x = torch.from_numpy(file.read()) + offset
        images[name] = ((x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])[None]
    return images


PROCESS = """
import sys
from importlib.metadata import EntryPoint

for name, value in {entries}:
    load = EntryPoint(name, value, "vllm.general_plugins").load()
    load()
    load()  # vLLM calls plugins several times
assert "terratorch" not in sys.modules, "engines without a model of TerraTorch do not wait for it"
from terratorch.registry import BACKBONE_REGISTRY

print(type(BACKBONE_REGISTRY.build("terramind_v1_tiny", modalities=["S1GRD"], pretrained=False)).__module__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("plugin", [True, False])
def test_the_engines_process(plugin: bool) -> None:
    entries = [(one.name, one.value) for one in entry_points()] if plugin else []
    result = subprocess.run(
        [sys.executable, "-c", PROCESS.format(entries=entries)],
        capture_output=True, text=True, check=True, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert result.stdout.split()[-1].startswith("terramind_plugin." if plugin else "terratorch.")


def test_the_entry_point() -> None:
    (entry,) = entry_points()
    assert entry.name == "terramind_plugin"
    entry.load()()
    entry.load()()
    from terratorch.registry import BACKBONE_REGISTRY

    model = BACKBONE_REGISTRY.build("terramind_v1_tiny", modalities=["S1GRD"], pretrained=False, out_indices=[2])
    assert type(model).__module__.startswith("terramind_plugin.")


@pytest.mark.parametrize("names", [("x_S2Hand.tif", "x_S1Hand.tif"), ("one.tif", "another.tif"), ("a.tif", "a.tif")])
def test_a_request(
    names: tuple[str, str], folder: Path, tuned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin reads a request, the engine runs its tiles, and the plugin makes the task's class map of them."""
    vllm_stub.install(monkeypatch)
    for module in [name for name in sys.modules if name.startswith("terratorch.vllm")]:
        monkeypatch.delitem(sys.modules, module)
    from terratorch.tasks.tiled_inference import tiled_inference
    from terratorch.vllm.plugins.segmentation.terramind_segmentation_io_processor import (
        TerramindSegmentationIOProcessor,
    )

    engine = vllm_stub.Engine(folder)
    processor = TerramindSegmentationIOProcessor(engine.config, None)
    assert processor.tiled_inference_parameters.h_crop == 64
    request = tmp_path / "request"
    for modality, name in zip(("S2L1C", "S1GRD"), names, strict=True):
        (request / modality).mkdir(parents=True)
        write_modality(request / modality / name, modality, (96, 80))
    data = {"data_format": "path", "out_data_format": "b64_json", "data": str(request)}
    prompts = processor.pre_process(processor.parse_data(data))
    outputs = [engine.run(prompt["multi_modal_data"]["image"]) for prompt in prompts]
    answered = [vllm_stub.answer(output) for output in outputs]
    response = processor.post_process(answered)
    with MemoryFile(base64.b64decode(response.data)) as memory, memory.open() as file:
        classes = file.read(1)
        assert file.crs == "EPSG:32632"
    # The task itself, over standardised files and TerraTorch's tiles of them.
    parameters = processor.tiled_inference_parameters.model_dump()
    with torch.inference_mode():
        scores = tiled_inference(lambda x: tuned.task(x).output, standardised(request), **parameters)
    wanted = scores[0].argmax(dim=0).numpy()
    assert len(np.unique(wanted)) == 2
    assert (classes == wanted).mean() > 0.99  # the plugin hands on float16
    shutil.rmtree(request / "S1GRD")
    with pytest.raises(ValueError, match=r"S1GRD has no folder .*: a request needs a folder for each modality"):
        processor.pre_process(processor.parse_data(data))
