"""Remembering: look up what was computed before, compute the rest, count what that saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from terramind_plugin.cache.store import Store
from terramind_plugin.errors import ConfigError

Value = dict[str, Tensor]
"""What is remembered of one sample."""
FOLDER = "memo"
"""Name of the folder under the run's root where none is named."""
SECONDS = "seconds"
"""Name in a value of the time that it took to compute."""
GIB = 2**30


@dataclass
class Statistics:
    """Counts since the last `restart`."""

    looked_up: int = 0
    hits: int = 0
    compute_seconds: float = 0.0
    look_up_seconds: float = 0.0
    """All but computing: keys, reading, storing."""

    @property
    def hit_rate(self) -> float:
        """Share of samples that were there."""
        return self.hits / self.looked_up if self.looked_up else 0.0


class Memo:
    """Values of samples by key, on disk.

    Args:
        where: Folder of the file, or True for 'memo' under the run's root.
        name: Of the file.
        gib: Size that it may have, in GiB.

    Raises:
        ConfigError: `where` is neither, or the size is not positive.
    """

    def __init__(self, where: str | Path | bool, name: str, gib: float) -> None:
        if where is False or not isinstance(where, str | Path | bool) or where == "":
            raise ConfigError(f"A memo is the path of a folder, or true for the default, got {where!r}.")
        if isinstance(gib, bool) or not isinstance(gib, int | float) or not gib > 0:
            raise ConfigError(f"The size of a memo is a number of GiB above 0, got {gib!r}.")
        self.where = where
        self.name = name
        self.gib = gib
        self.root = Path()
        """The run's root, for the default folder; set before the first look-up."""
        self.resting = False
        """Whether training goes on without looking up."""
        self.training = Statistics()
        self.evaluation = Statistics()
        self.seconds_saved = 0.0
        """Since the beginning, less what looking up took."""
        self._store: Store | None = None

    @property
    def path(self) -> Path:
        """The file."""
        folder = self.root / FOLDER if self.where is True else Path(str(self.where)).expanduser()
        return folder / f"{self.name}.sqlite3"

    @property
    def store(self) -> Store:
        """The opened file."""
        if self._store is None or self._store.path != self.path:
            self._store = Store(self.path, int(self.gib * GIB))
        return self._store

    def remember(
        self, make_keys: Callable[[], Sequence[bytes]], compute: Callable[[list[int], Sequence[bytes]], list[Value]]
    ) -> list[Value]:
        """Return a value for each sample, on the CPU.

        A value is what was first stored for the sample, also for one that has just been computed.

        Args:
            make_keys: Returns a key for each sample of the batch.
            compute: Returns the values of the samples at some positions; it is given all keys, too.
        """
        counts = self.training if torch.is_grad_enabled() else self.evaluation
        start = time.perf_counter()
        keys = make_keys()
        looking = not (self.resting and torch.is_grad_enabled())
        found: list[bytes | None] = [None] * len(keys)
        if looking:
            found = self.store.get(keys)
        missing = [index for index, value in enumerate(found) if value is None]
        looked = time.perf_counter()
        if missing:
            made = compute(missing, keys)
            computed = time.perf_counter()
            each = torch.tensor((computed - looked) / len(missing))
            fresh = {keys[index]: save({**value, SECONDS: each}) for index, value in zip(missing, made, strict=True)}
            if looking:
                fresh = self.store.put(fresh)
            found = [fresh[key] if value is None else value for key, value in zip(keys, found, strict=True)]
            counts.compute_seconds += computed - looked
            start += computed - looked
        values = [load(value) for value in found if value is not None]
        seconds = [float(value.pop(SECONDS)) for value in values]
        look_up = time.perf_counter() - start
        counts.look_up_seconds += look_up
        if looking:
            counts.looked_up += len(keys)
            counts.hits += len(keys) - len(missing)
            self.seconds_saved += sum(seconds) - sum(seconds[index] for index in missing) - look_up
        return values


def stack(values: Sequence[Value], device: torch.device) -> dict[str, Tensor]:
    """Return the values of a batch by name, [B, ...]; shorter sequences end with zeros.

    Args:
        values: One for each sample, with the same names.
        device: To move them to.
    """
    batch = {}
    for name in values[0]:
        rows = [value[name] for value in values]
        length = max(row.shape[0] for row in rows)
        if any(row.shape[0] < length for row in rows):
            rows = [torch.cat([row, row.new_zeros(length - row.shape[0], *row.shape[1:])]) for row in rows]
        batch[name] = torch.stack(rows).to(device, non_blocking=True)
    return batch


def unstack(batch: Mapping[str, Tensor]) -> list[Value]:
    """Return what is remembered of each sample, from tensors [B, ...] by name."""
    hosts = {name: x.detach().to("cpu") for name, x in batch.items()}
    return [
        {name: x[index].contiguous() for name, x in hosts.items()} for index in range(len(next(iter(hosts.values()))))
    ]
