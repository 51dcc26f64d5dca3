"""Order of the samples in an epoch and the share of each process, which depend only on seed and epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import ConfigError, DataError, suggest

Numbers = NDArray[np.int64]

VALIDATION_SHARE = 20
"""Interval of validation samples: without a validation split, every 20th sample is used for validation."""


def draw_order(
    shards: Sequence[Numbers],
    subsets: Sequence[str],
    *,
    shuffle: bool,
    seed: int,
    epoch: int,
    buffer: int,
    weights: Mapping[str, float] | None = None,
) -> Numbers:
    """Return the numbers of the samples of an epoch, each at most once.

    Shuffling reorders the shards and then moves each sample by less than `buffer` places, like a shuffle buffer of that
    size. Consecutive reads therefore stay close to each other, and no samples need to be held in memory.

    Args:
        shards: Numbers of each shard's samples.
        subsets: Subset of each shard.
        shuffle: Whether to shuffle; otherwise samples come shard by shard.
        seed: Seed of the order, not negative.
        epoch: Number of the epoch.
        buffer: Number of places; 1 keeps the order of samples within a shard.
        weights: Share of each subset; the epoch ends when the first subset has no sample left. None for all samples.

    Raises:
        ConfigError: A weight is negative, of an unknown subset, or no weight is above 0.
        DataError: No sample is left.
    """
    random = np.random.default_rng([seed, epoch])
    names = list(dict.fromkeys(subsets))
    if weights is None:
        return _shuffled(shards, random, buffer) if shuffle else _joined(shards)
    shares = check_weights(weights, names)
    parts = {}
    for name in (name for name in names if shares.get(name)):
        chosen = [numbers for numbers, subset in zip(shards, subsets, strict=True) if subset == name]
        parts[name] = _shuffled(chosen, random, buffer) if shuffle else _joined(chosen)
    total = min(len(part) / shares[name] for name, part in parts.items())
    counts = {name: min(int(total * shares[name] + 1e-9), len(part)) for name, part in parts.items()}
    if not sum(counts.values()):
        raise DataError(f"weights leave no sample: {', '.join(f'{n} has {len(p)}' for n, p in parts.items())}.")
    # Sample k of n of a subset comes at (k + 0.5) / n of the epoch, so that the shares hold throughout the epoch.
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts.values() if count])
    numbers = _joined([parts[name][:count] for name, count in counts.items()])
    return np.asarray(numbers[places.argsort(kind="stable")])


def check_weights(weights: Mapping[str, float], subsets: Sequence[str]) -> dict[str, float]:
    """Return the share of each subset; shares sum to 1.

    Args:
        weights: Weight by subset, of any sum.
        subsets: Names of the subsets.

    Raises:
        ConfigError: A weight is negative, of an unknown subset, or no weight is above 0.
    """
    for name, weight in weights.items():
        if name not in subsets:
            raise ConfigError(f"weights names '{name}'.{suggest(name, subsets)} Known: {', '.join(subsets)}.")
        if not 0 <= weight < np.inf:
            raise ConfigError(f"weights.{name} must be 0 or more, got {weight}.")
    total = sum(weights.values())
    if not total > 0:
        raise ConfigError(f"weights must hold a number above 0, got {dict(weights)}.")
    return {name: weight / total for name, weight in weights.items()}


def _joined(shards: Sequence[Numbers]) -> Numbers:
    return np.concatenate([np.zeros(0, np.int64), *shards])


def _shuffled(shards: Sequence[Numbers], random: np.random.Generator, buffer: int) -> Numbers:
    joined = _joined([shards[number] for number in random.permutation(len(shards))])
    moved = np.arange(len(joined)) + random.random(len(joined)) * buffer
    return np.asarray(joined[moved.argsort(kind="stable")])


def part_of(
    order: Numbers,
    *,
    rank: int,
    ranks: int,
    worker: int,
    workers: int,
    batch_size: int = 1,
    first_step: int = 0,
) -> Numbers:
    """Return the samples of one worker process, so that all processes together use each sample once.

    Batches are assigned to workers in turn, in the order in which a DataLoader requests them. The batches of a rank are
    therefore the same for any number of workers.

    Args:
        order: Samples of the epoch.
        rank: Number of the process in a distributed run.
        ranks: Number of processes in the distributed run.
        worker: Number of the worker of the loader.
        workers: Number of workers; 1 if there are none.
        batch_size: Number of samples in a batch of the loader.
        first_step: Number of batches of the rank to leave out, because they were used before.
    """
    begin = (
        np.arange(first_step + worker, -(-len(order) // (batch_size * ranks)), workers) * ranks + rank
    ) * batch_size
    places = (begin[:, None] + np.arange(batch_size)).ravel()
    return np.asarray(order[places[places < len(order)]])
