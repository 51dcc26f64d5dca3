"""Trial run of a new graph before it is used, so that an error in it does not end a training run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

CAPTURE = 3
"""Calls of a CUDA graph until it is replayed: PyTorch warms up in the first one and captures in the second."""


def rehearse(call: Callable[[], Any], module: nn.Module | None, times: int) -> None:
    """Run a graph, and its backward pass if there is one, and discard the results.

    Compilers work on the backward pass late: without this, an error of theirs would come out of `loss.backward()`,
    where nothing can run without the graph any more. Random numbers and buffers are afterwards as they were before.

    Args:
        call: Function that runs the graph.
        module: Module of the graph; None without a backward pass.
        times: Number of runs.
    """
    weights = [] if module is None else [one for one in module.parameters() if one.requires_grad]
    with _kept(module):
        for _ in range(times):
            results = [one for one in tensors_in(call()) if one.requires_grad]
            if results and weights:
                # Not backward(), which would add to gradients and start the exchange between processes.
                torch.autograd.grad(sum(one.float().sum() for one in results), weights, allow_unused=True)  # type: ignore[arg-type]


@contextmanager
def _kept(module: nn.Module | None) -> Iterator[None]:
    """Restore the random state and buffers, such as the statistics of batch normalisation, afterwards."""
    buffers = (
        [(one, one.detach().clone()) for one in module.buffers()] if module is not None and module.training else []
    )
    weights = [] if module is None else module.parameters()
    with torch.random.fork_rng({one.device.index for one in weights if one.device.type == "cuda"}):
        try:
            yield
        finally:
            with torch.no_grad():
                for one, before in buffers:
                    one.copy_(before)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in an argument or a result: in mappings, lists, tuples and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))
