"""The callback that compiles the model of a run."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from terramind_plugin.backbones.network import compile_network
from terramind_plugin.model.compiled import CompiledCall, check_mode, compiles_on, find_call

logger = logging.getLogger("terramind_plugin")


class CompiledModel(Callback):
    """Compiles backbone, neck and decoder of any of TerraTorch's tasks, so that a GPU does not wait for Python.

    Each shape of a batch needs its own graph. The first shape is compiled at once, further shapes after they have
    occurred often. All other batches, such as the smaller last batch of an epoch, run without compilation. The names in
    checkpoints do not change. If compilation fails, the log gives the reason in one line, and training continues
    without compilation. Gradients must be set to None between steps, as Lightning does: zeros would overwrite memory
    that CUDA graphs use for other results.

    Args:
        mode: 'graphs' compiles on a GPU, with CUDA graphs, and has no effect on a CPU; 'default' compiles on any
            device, without CUDA graphs; 'off' does nothing.
    """

    def __init__(self, mode: str = "graphs") -> None:
        self.mode = check_mode(mode)
        self._parts: list[nn.Module] = []
        self._is_first = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compile the task's model; compilation itself takes place in the first step."""
        if not compiles_on(self.mode, trainer.strategy.root_device.type):
            return
        network = network_of(pl_module)
        self._parts = [] if network is None else compile_network(network, self.mode)
        if not self._parts:
            logger.warning("CompiledModel: %s has no model to compile; it runs uncompiled.", type(pl_module).__name__)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Record whether gradients are new or are added to those of earlier batches."""
        self._is_first = batch_idx % trainer.accumulate_grad_batches == 0

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy gradients to which others will be added: the next step overwrites the memory of CUDA graphs."""
        if self._parts and self.mode == "graphs" and trainer.accumulate_grad_batches > 1 and self._is_first:
            for parameter in pl_module.parameters():
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.clone()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn once if the task never calls the compiled parts."""
        calls = [call for part in self._parts for call in _calls_of(part)]
        if self._parts and not any(call.calls for call in calls):
            logger.warning("CompiledModel: %s calls no compiled part; it runs uncompiled.", type(pl_module).__name__)
            self._parts = []


def _calls_of(part: nn.Module) -> list[CompiledCall]:
    """Return the compiled calls of a part and of its methods."""
    found = [find_call(part), *part.__dict__.values()]
    return [call for call in found if isinstance(call, CompiledCall)]


def network_of(task: LightningModule) -> nn.Module | None:
    """Return the network of a task to compile: its whole model, or the backbone and neck of a detector; None if none.

    The shapes behind the backbone of a detector depend on the number of detected boxes.
    """
    model: Any = getattr(task, "model", None)
    found = getattr(getattr(model, "torchvision_model", None), "backbone", model)
    return found if isinstance(found, nn.Module) else None
