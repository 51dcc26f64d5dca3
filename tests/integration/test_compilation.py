"""The callback that compiles: on which devices, which parts, and what it says."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from terramind_plugin import CompiledModel, FiniteLoss
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.integration.compilation import network_of
from terramind_plugin.model.compiled import find_call
from tests.reads import Reads


def trainer(device="cpu", accumulate=1):
    return SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device(device)), accumulate_grad_batches=accumulate
    )


class Task(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model


@pytest.mark.parametrize(
    ("mode", "device", "compiled"),
    [
        ("graphs", "cpu", False),
        ("graphs", "cuda", True),
        ("default", "cpu", True),
        ("off", "cuda", False),
    ],
)
def test_which_devices(mode, device, compiled):
    task = Task(nn.Linear(2, 2))
    callback = CompiledModel(mode)
    for stage in ("fit", "test"):
        callback.setup(trainer(device), task, stage)
    assert (find_call(task.model) is not None) == compiled


def test_wrong_modes_are_refused():
    with pytest.raises(ConfigError, match="Unknown mode 'fast'"):
        CompiledModel("fast")


def test_a_detector_is_compiled_up_to_its_neck():
    detector = nn.Module()
    detector.torchvision_model = nn.Module()
    detector.torchvision_model.backbone = nn.Linear(2, 2)
    assert network_of(Task(detector)) is detector.torchvision_model.backbone
    assert network_of(SimpleNamespace(model="none")) is None


@pytest.mark.parametrize(("accumulate", "copied"), [(1, 0), (3, 2)])
def test_gradients_that_add_up_have_memory_of_their_own(accumulate, copied):
    """Autograd would otherwise keep what a CUDA graph has written, which the next step overwrites."""
    task = Task(nn.Linear(2, 2))
    task.unused = nn.Parameter(torch.zeros(()))
    run, callback = trainer("cuda", accumulate), CompiledModel()
    callback.setup(run, task, "fit")
    copies = 0
    for batch_idx in range(6):
        callback.on_train_batch_start(run, task, None, batch_idx)
        if batch_idx % accumulate == 0:
            task.zero_grad()
        nn.functional.linear(torch.ones(1, 2), task.model.weight).sum().backward()
        before = task.model.weight.grad.data_ptr()
        callback.on_after_backward(run, task)
        copies += task.model.weight.grad.data_ptr() != before
    assert copies == copied
    assert task.model.weight.grad.tolist() == [[accumulate] * 2] * 2
    assert task.unused.grad is None


def test_a_task_that_calls_nothing_is_told_once(caplog):
    task = Task(nn.Linear(2, 2))
    callback = CompiledModel("default")
    callback.setup(trainer(), task, "fit")
    for _ in range(2):
        callback.on_train_epoch_end(trainer(), task)
    said = [record.getMessage() for record in caplog.records if record.name == "terramind_plugin"]
    assert said == ["CompiledModel: Task calls no compiled part; it runs uncompiled."]


def test_finite_losses_of_many_steps_are_read_once():
    callback = FiniteLoss()
    here = SimpleNamespace(log_every_n_steps=3, current_epoch=0)
    for step, loss in enumerate([1.0, 2.0, 3.0]):
        callback._unchecked.append((step, torch.tensor(loss), None))
    with Reads() as reads:
        callback._check(here)
    assert len(reads.names) == 1
    callback._unchecked = [(0, torch.tensor(1.0), None), (1, torch.tensor(torch.nan), {"filename": ["x.tif"]})]
    with pytest.raises(DataError, match="The loss is nan in epoch 0, step 1"):
        callback._check(here)
