"""Cache of the results of frozen parts: looks samples up, computes missing ones, and measures the saved time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from terramind_plugin.backbones.cache.keys import Fingerprint, describe_context, sample_keys
from terramind_plugin.backbones.cache.store import Store
from terramind_plugin.errors import ConfigError

Tensors = Mapping[str, Tensor]
"""Tensors [B, ...] by name."""
Compute = Callable[[Tensors, Tensors | None, list[bytes]], Tensors]
"""Function that computes the values of samples from their inputs, their present modalities and their keys."""
FOLDER = "cache"
"""Name of the default folder below the run's root."""
SECONDS = "seconds"
"""Name of the computing time in a value."""
GIB = 2**30


@dataclass
class LookUps:
    """Counts of look-ups since the last epoch."""

    looked_up: int = 0
    hits: int = 0
    look_up_seconds: float = 0.0
    """Seconds for keys, reading and storing."""
    seconds_spared: float = 0.0
    """Seconds of computation that hits have saved."""

    @property
    def hit_rate(self) -> float:
        """Return the share of samples that were found in the cache."""
        return self.hits / self.looked_up if self.looked_up else 0.0


class Cache:
    """Values of samples by key, on disk.

    Args:
        where: Folder of the file, or True for 'cache' under the run's root.
        name: Name of the file, without its ending.
        gib: Size limit in GiB.

    Raises:
        ConfigError: `where` is neither a folder nor True, or the size is not positive.
    """

    def __init__(self, where: str | Path | bool, name: str, gib: float) -> None:
        if where is False or not isinstance(where, str | Path | bool) or where == "":
            raise ConfigError(f"A cache is the path of a folder, or true for the default, got {where!r}.")
        if isinstance(gib, bool) or not isinstance(gib, int | float) or not gib > 0:
            raise ConfigError(f"The size of a cache is a number of GiB above 0, got {gib!r}.")
        self.where = where
        self.name = name
        self.gib = gib
        self.root = Path()
        """The run's root, for the default folder; set before the first look-up."""
        self.paused = False
        """True if the cache is switched off because it does not pay."""
        self.training = LookUps()
        self.evaluation = LookUps()
        self.seconds_saved = 0.0
        """Seconds saved so far, less the seconds of look-ups."""
        self._store: Store | None = None
        self._fingerprint = Fingerprint()

    @property
    def path(self) -> Path:
        """Return the file."""
        folder = self.root / FOLDER if self.where is True else Path(str(self.where)).expanduser()
        return folder / f"{self.name}.sqlite3"

    @property
    def store(self) -> Store:
        """Return the opened file."""
        if self._store is None or self._store.path != self.path:
            self._store = Store(self.path, int(self.gib * GIB))
        return self._store

    def recall(
        self, part: nn.Module, inputs: Tensors, present: Tensors | None, settings: Mapping[str, Any], compute: Compute
    ) -> dict[str, Tensor]:
        """Return the values of a batch by name, [B, ...]; shorter sequences end with zeros.

        The value of a sample is always the one that was stored first, even if it has just been computed again.

        Args:
            part: The frozen module that computes.
            inputs: Tensors [B, ...] by name.
            present: Boolean [B] for each input, False where a sample lacks it; None if all samples have all inputs.
            settings: Everything that values depend on, apart from weights and inputs.
            compute: Returns the values of samples that are not in the cache.
        """
        counts = self.training if torch.is_grad_enabled() else self.evaluation
        looking = not (self.paused and torch.is_grad_enabled())
        device = next(iter(inputs.values())).device
        start = time.perf_counter()
        context = describe_context(weights=self._fingerprint.of(part), **settings)
        keys = sample_keys(context, inputs, present)
        found: list[bytes | None] = self.store.get(keys) if looking else [None] * len(keys)
        missing = [index for index, value in enumerate(found) if value is None]
        if missing:
            before = time.perf_counter()
            rows = torch.tensor(missing, device=device)
            made = compute(
                {name: x[rows] for name, x in inputs.items()},
                None if present is None else {name: x[rows] for name, x in present.items()},
                [keys[index] for index in missing],
            )
            values = _unstack(made)
            seconds = time.perf_counter() - before
            each = torch.tensor(seconds / len(missing))
            fresh = {keys[index]: save({**value, SECONDS: each}) for index, value in zip(missing, values, strict=True)}
            if looking:
                fresh = self.store.put(fresh)
            found = [fresh[key] if value is None else value for key, value in zip(keys, found, strict=True)]
            start += seconds
        values = [load(value) for value in found if value is not None]
        costs = [float(value.pop(SECONDS)) for value in values]
        look_up = time.perf_counter() - start
        counts.look_up_seconds += look_up
        if looking:
            counts.looked_up += len(keys)
            counts.hits += len(keys) - len(missing)
            spared = sum(costs) - sum(costs[index] for index in missing)
            counts.seconds_spared += spared
            self.seconds_saved += spared - look_up
        return _stack(values, device)


def _stack(values: Sequence[Tensors], device: torch.device) -> dict[str, Tensor]:
    """Return the values of samples as tensors [B, ...] by name; shorter sequences end with zeros."""
    batch = {}
    for name in values[0]:
        rows = [value[name] for value in values]
        length = max(row.shape[0] for row in rows)
        if any(row.shape[0] < length for row in rows):
            rows = [torch.cat([row, row.new_zeros(length - row.shape[0], *row.shape[1:])]) for row in rows]
        batch[name] = torch.stack(rows).to(device, non_blocking=True)
    return batch


def _unstack(batch: Tensors) -> list[dict[str, Tensor]]:
    """Return the values of each sample, on the CPU."""
    hosts = {name: x.detach().to("cpu") for name, x in batch.items()}
    return [
        {name: x[index].contiguous() for name, x in hosts.items()} for index in range(len(next(iter(hosts.values()))))
    ]
