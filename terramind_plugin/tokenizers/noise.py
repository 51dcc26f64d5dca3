"""Random numbers of a batch, with a generator for each sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from terramind_plugin.errors import ConfigError


class Noise:
    """Random numbers of a batch; each sample has its own generator, so that its numbers do not depend on the batch.

    Args:
        generators: Generator of each sample.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = list(generators)

    @classmethod
    def from_seed(cls, seed: int | Sequence[int] | None, batch: int) -> Noise:
        """Return the noise of a batch.

        Args:
            seed: One seed for every sample, or one for each sample; None for new seeds in each call.
            batch: Number of samples.

        Raises:
            ConfigError: There are not as many seeds as samples.
        """
        if seed is None:
            fresh = torch.Generator()
            seeds = [fresh.seed() for _ in range(batch)]
        elif isinstance(seed, int):
            seeds = [seed] * batch
        else:
            seeds = [int(one) for one in seed]
        if len(seeds) != batch:
            raise ConfigError(
                f"Got {len(seeds)} seeds for {batch} samples. Give one for each, or a single one for all."
            )
        return cls([torch.Generator().manual_seed(one) for one in seeds])

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers in [0, 1), [B, *shape], float32."""
        return torch.stack([torch.rand(shape, generator=one, device=one.device) for one in self.generators])

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers, [B, *shape], float32."""
        return torch.stack([torch.randn(shape, generator=one, device=one.device) for one in self.generators])

    def order(self, count: int) -> Tensor:
        """Return the numbers 0 to count - 1 in a random order for each sample, [B, count]."""
        return torch.stack([torch.randperm(count, generator=one, device=one.device) for one in self.generators])


def draw_noise(
    batch: int,
    shape: Sequence[int],
    *,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    seed: int | Sequence[int] | None = None,
) -> Tensor:
    """Return standard normal noise [batch, *shape], float32.

    With a seed, or a generator for each sample, a sample's noise does not depend on the batch it is in.

    Args:
        batch: Number of samples.
        shape: Shape of one sample.
        generator: One generator for all samples, which draw from it one after the other, or one for each sample.
        seed: One seed for every sample, or one for each sample; 0 if neither a seed nor a generator is given.

    Raises:
        ConfigError: Both are given, or their number differs from that of the samples.
    """
    if generator is not None and seed is not None:
        raise ConfigError("Give either a generator or a seed, not both.")
    if generator is None:
        return Noise.from_seed(0 if seed is None else seed, batch).normal(*shape)
    generators = [generator] * batch if isinstance(generator, torch.Generator) else list(generator)
    if len(generators) != batch:
        raise ConfigError(
            f"Got {len(generators)} generators for {batch} samples. Give one for each, or a single one for all."
        )
    return Noise(generators).normal(*shape)


def send(numbers: Tensor, device: torch.device) -> Tensor:
    """Return random numbers on a device; the copy to a GPU is from pinned memory and does not block."""
    if device.type == "cuda" and numbers.device.type == "cpu":
        numbers = numbers.pin_memory()
    return numbers.to(device, non_blocking=True)
