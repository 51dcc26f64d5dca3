"""The callback that compiles the model of a run."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from terramind_plugin.model.compiled import check_mode, compile_model, find_call

logger = logging.getLogger("terramind_plugin")


class CompiledModel(Callback):
    """Compiles backbone, neck and decoder of any of TerraTorch's tasks, so that a GPU does not wait for Python.

    Each shape of a batch has a graph of its own, the first one at once, others when they have come often. What is left
    runs as before, such as the last, smaller batch of an epoch. Checkpoints have the same names as without. If
    compilation fails, the log says why in one line, and training goes on without.

    Args:
        mode: 'graphs' compiles on a GPU, with CUDA graphs, and changes nothing on a CPU; 'default' compiles on any
            device, without CUDA graphs; 'off' does nothing.
    """

    def __init__(self, mode: str = "graphs") -> None:
        self.mode = check_mode(mode)
        self._parts: list[nn.Module] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compile the task's model; compilation itself takes place in the first step."""
        if self.mode == "off" or (self.mode == "graphs" and trainer.strategy.root_device.type != "cuda"):
            return
        self._parts = parts_of(pl_module)
        for part in self._parts:
            compile_model(part, self.mode)
        if not self._parts:
            logger.warning("CompiledModel: %s has no model to compile; it runs as it is.", type(pl_module).__name__)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Make room for gradients that are added up: those of CUDA graphs lie where the next step writes its own."""
        if self._parts and trainer.accumulate_grad_batches > 1:
            for parameter in pl_module.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say once if the task never calls what is compiled."""
        calls = [find_call(part) for part in self._parts]
        if self._parts and not any(call is not None and call.calls for call in calls):
            logger.warning("CompiledModel: %s calls no compiled part; it runs as it is.", type(pl_module).__name__)
            self._parts = []


def parts_of(task: LightningModule) -> list[nn.Module]:
    """Return the parts of a task to compile: its whole model, or the backbone of a detector."""
    model: Any = getattr(task, "model", None)
    if not isinstance(model, nn.Module):
        return []
    detector: Any = getattr(model, "torchvision_model", None)
    backbone = getattr(detector, "backbone", None)
    return [backbone if isinstance(backbone, nn.Module) else model]
