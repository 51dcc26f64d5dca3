"""Keys of samples: digests of everything that a result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from terramind_plugin._version import NUMERICS
from terramind_plugin.model.checkpoints import bytes_of, hash_weights
from terramind_plugin.model.inputs import InputSpec
from terramind_plugin.system.parallel import map_in_threads


class Fingerprint:
    """SHA-256 of a module's weights, computed again when the weights were changed or moved.

    Writing to a tensor (by loading, an optimiser, `.to()`) changes its version or address. Writing to its `.data` does
    not, so the last number of each tensor is compared as well, which detects a tensor that was written as a whole. The
    comparison runs in each step and must be cheap.
    """

    def __init__(self) -> None:
        self._state: list[Any] = []
        self._ends: list[Tensor] = []
        """Last number of each tensor, as a view, so that the tensor's memory is not reused meanwhile."""
        self._probe = torch.empty(0)
        self._digest = ""

    def of(self, module: nn.Module) -> str:
        """Return the digest as hexadecimal digits."""
        tensors = list_tensors(module)
        state = [(x.data_ptr(), 0 if x.is_inference() else x._version, x.shape) for x in tensors]
        if state == self._state and torch.equal(torch.stack(self._ends), self._probe):
            return self._digest
        self._digest = hash_weights(module.state_dict())
        self._state = state
        self._ends = [x.detach()[(-1,) * x.ndim] for x in tensors if x.numel()]
        self._probe = torch.stack(self._ends)
        return self._digest

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, _: Mapping[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]  # a copy has tensors of its own


def list_tensors(module: nn.Module) -> list[Tensor]:
    """Return all parameters and buffers, several times as fast as torch's methods, which also build names."""
    found: list[Tensor | None] = []
    modules: list[nn.Module | None] = [module]
    while modules:
        part = modules.pop()
        if part is not None:
            found += part._parameters.values()
            found += part._buffers.values()
            modules += part._modules.values()
    return [x for x in found if x is not None]


def describe_context(**settings: Any) -> bytes:
    """Return a digest of what all samples share: settings, precision and the version of the numerics.

    Args:
        settings: Everything that the result depends on; its `repr` must be complete.
    """
    devices = ("cuda", "cpu")
    precision = [str(torch.get_autocast_dtype(name)) if torch.is_autocast_enabled(name) else "" for name in devices]
    parts = {
        "numerics": NUMERICS,
        "autocast": precision,
        "matmul": torch.get_float32_matmul_precision(),
        **{name: repr(value) for name, value in settings.items()},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()


def describe_specs(specs: tuple[InputSpec, ...]) -> list[Any]:
    """Return a description that distinguishes sets of inputs."""
    return [(spec.name, spec.key, spec.channels, spec.band_sources) for spec in specs]


def sample_keys(context: bytes, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> list[bytes]:
    """Return a key for each sample of a batch: a digest of the exact values of its inputs.

    On a GPU this copies the inputs to the host once in each step.

    Args:
        context: Result of `describe_context`.
        inputs: Tensors [B, ...] by name.
        present: For each input a boolean [B], False where a sample lacks it; None if all samples have all.
    """
    hosts = {name: x.detach().to("cpu").contiguous() for name, x in inputs.items()}
    held = [list(hosts)] * len(next(iter(hosts.values())))
    if present is not None:
        masks = torch.stack([present[name] for name in hosts], dim=1).tolist()
        # For a sample without any input, models use all inputs.
        held = [[name for name, has in zip(hosts, mask, strict=True) if has or not any(mask)] for mask in masks]

    def key_of(index: int) -> bytes:
        digest = hashlib.sha256(context)
        for name in sorted(held[index]):
            x = hosts[name][index]
            digest.update(f"{name} {x.dtype} {list(x.shape)}".encode())
            digest.update(bytes_of(x))
        return digest.digest()

    return map_in_threads(key_of, range(len(held)), sum(x.nbytes for x in hosts.values()))


def seed_of(key: bytes, seed: int) -> int:
    """Return a seed that is a function of a sample's key and of the user's seed."""
    return int.from_bytes(hashlib.sha256(key + str(seed).encode()).digest()[:8], "big") >> 1
