"""What TerraTorch's vLLM plugins import from vLLM, and what vLLM's engine does with a model of TerraTorch.

The engine is a stand-in that keeps to vLLM's documented interface (vllm/model_executor/models/terratorch.py,
vllm/model_executor/models/utils.py, vllm/plugins/__init__.py): which classes it builds from config.json, which names of
weights it takes, and the tensors that it hands on.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

BATCH_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class IOProcessor:
    """Base class of vLLM's plugins for inputs and outputs."""

    def __init__(self, vllm_config: Any, renderer: Any = None) -> None:
        self.vllm_config = vllm_config


def install(patch: pytest.MonkeyPatch) -> None:
    """Put vLLM's modules into sys.modules, with the names that TerraTorch imports."""
    anything = type("Anything", (), {})
    contents = {
        "vllm": {"__version__": "0.25.0"},
        "vllm.config": {"VllmConfig": anything},
        "vllm.entrypoints.pooling.pooling.protocol": {"IOProcessorRequest": anything, "IOProcessorResponse": anything},
        "vllm.inputs": {"PromptType": anything},
        "vllm.outputs": {"PoolingRequestOutput": anything},
        "vllm.plugins.io_processors.interface": {
            "IOProcessor": IOProcessor, "IOProcessorInput": anything, "IOProcessorOutput": anything,
        },
        "vllm.renderers": {"BaseRenderer": anything},
    }  # fmt: skip
    for name, names in contents.items():
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            if path not in contents or end == len(parts):
                module = ModuleType(path)
                module.__path__ = []
                patch.setitem(__import__("sys").modules, path, module)
        for attribute, value in names.items():
            setattr(module, attribute, value)


class Engine(nn.Module):
    """The part of vLLM's engine that runs a model: builds it from config.json, loads its weights, and calls it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from terratorch.vllm import DummyDataGenerator, InferenceRunner

        config = json.loads((folder / "config.json").read_text())
        assert config["architectures"] == ["Terratorch"]
        hf_config = SimpleNamespace(to_dict=lambda: config)
        self.config = SimpleNamespace(model_config=SimpleNamespace(hf_config=hf_config))
        self.inference_runner = InferenceRunner(config["pretrained_cfg"])
        self.model = self.inference_runner.model
        self._load({f"inference_runner.model.{name}": x for name, x in load_file(folder / "model.safetensors").items()})
        self.eval()
        # The engine measures memory with such a batch before it serves.
        dummy = DummyDataGenerator(config["pretrained_cfg"]).get_dummy_mm_data()
        self.run(dummy)

    def _load(self, weights: dict[str, torch.Tensor]) -> None:
        parameters = dict(self.named_parameters())
        statistics = {name: x for name, x in self.named_buffers() if name.endswith(BATCH_STATISTICS)}
        for name, value in weights.items():
            target = parameters.get(name, statistics.get(name))
            if target is None:
                raise ValueError(f"There is no module or parameter named '{name}' in Terratorch")
            target.data.copy_(value)
        missing = set(parameters) - set(weights)
        if missing:
            raise ValueError(f"Following weights were not initialized from checkpoint: {missing}")

    @torch.inference_mode()
    def run(self, data: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the model's output for the tensors of one prompt, to which the engine adds the batch."""
        output: torch.Tensor = self.inference_runner(**{name: x[None].float() for name, x in data.items()}).output
        return output


def answer(output: torch.Tensor) -> Any:
    """Return what the engine answers a prompt with."""
    return SimpleNamespace(outputs=SimpleNamespace(data=output))
