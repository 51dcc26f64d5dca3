"""Random numbers that belong to positions in a scene, so that overlapping windows draw the same numbers.

A number is a hash of the seed, its purpose and its position, computed in integers and exact float32 operations. A CPU
and a GPU therefore draw the same numbers, each on its own device.

Source: SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014) with a position as
its counter; normal numbers by inversion of the distribution function.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from terramind_plugin.errors import ConfigError
from terramind_plugin.tokenizers.noise import Noise

ORDER, UNIFORM, NORMAL = 0, 1, 2
AT_ONCE = 2**16
"""Number of hashes that a CPU computes at once, so that they stay in its cache."""
BINS = 8
"""Number of mantissa bits of a tail probability that select a bin of the normal table, with interpolation in a bin."""
MANTISSA = 23
"""Number of mantissa bits of a float32."""


def _signed(word: int) -> int:
    """Return the int64 number that has the given 64 bits."""
    return word - 2**64 if word >= 2**63 else word


STEP, FIRST, SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""Step of SplitMix64's counter, and the factors of its hash."""


class SceneNoise(Noise):
    """Random numbers for windows of a scene, each of which depends only on the seed, its purpose and its position.

    Neighbouring windows therefore draw the same tokens if their scores agree, and start from the same noise. Numbers
    do not depend on the batch or on other windows.

    Args:
        seed: Seed of the scene.
        corners: Row and column in pixels of the first pixel of each window.
        size: Height and width of a window in pixels.
        patch: Height and width of a token in pixels.
        device: Device on which numbers are drawn.
    """

    def __init__(
        self,
        seed: int,
        corners: Sequence[tuple[int, int]],
        size: tuple[int, int],
        patch: int,
        device: torch.device | str = "cpu",
    ) -> None:
        # Numbers without a position, such as those for texts, depend on the first pixel of the window.
        super().__init__([torch.Generator().manual_seed(_mix(seed, *corner)) for corner in corners])
        self.seed = seed
        self.corners = list(corners)
        self.tokens = size[0] // patch, size[1] // patch
        self.patch = patch
        self.device = torch.device(device)
        self._draws = 0
        self._order: Tensor | None = None

    def order(self, count: int) -> Tensor:
        """Return the indices of the tokens of each window in random order, [B, count].

        Raises:
            ConfigError: The windows have another number of tokens.
        """
        rows, columns = self.tokens
        if count != rows * columns:
            raise ConfigError(f"Windows of {rows} x {columns} tokens have no order of {count}.")
        self._order = self._positions(ORDER, 1).flatten(1).argsort(dim=1, stable=True)
        return self._order

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers in [0, 1), [B, *shape]; those of tokens belong to positions, in the last order returned."""
        count, *each = shape
        if count != self.tokens[0] * self.tokens[1] or len(each) != 1:
            return super().uniform(*shape)
        numbers = self._positions(UNIFORM, each[0]).flatten(2).transpose(1, 2)
        if self._order is None:
            return numbers
        order, self._order = self._order, None
        return numbers.gather(1, order[..., None].expand_as(numbers))

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers [B, channels, height, width] that belong to pixels of the scene."""
        return self._draw(NORMAL, self.corners, shape)

    def _positions(self, kind: int, each: int) -> Tensor:
        """Return numbers for each token, [B, each, rows, columns]."""
        corners = [(row // self.patch, column // self.patch) for row, column in self.corners]
        return self._draw(kind, corners, (each, *self.tokens))

    def _draw(self, kind: int, corners: Sequence[tuple[int, int]], shape: Sequence[int]) -> Tensor:
        """Return the next numbers of a purpose for windows, [B, channels, height, width], float32.

        Args:
            kind: Purpose.
            corners: Row and column of the first position of each window.
            shape: Channels, height and width of a window.
        """
        self._draws += 1
        channels, height, width = shape
        state = np.random.SeedSequence([self.seed, kind, self._draws]).generate_state(channels, np.uint64)
        keys = torch.from_numpy(state.view(np.int64)).to(self.device, non_blocking=True)
        # On a GPU all windows at once, because launches are slow; on a CPU pieces that fit into its cache.
        together = len(corners) if self.device.type != "cpu" else 1
        out = torch.empty(len(corners), *shape, device=self.device)
        for at in range(0, len(corners), together):
            some = corners[at : at + together]
            each = channels if self.device.type != "cpu" else max(1, 2 * AT_ONCE // (height * width))
            for channel in range(0, channels, each):
                bits = _hash(keys[channel : channel + each], some, height, width)
                out[at : at + together, channel : channel + each] = _normal(bits) if kind == NORMAL else _uniform(bits)
        return out


def _hash(keys: Tensor, corners: Sequence[tuple[int, int]], height: int, width: int) -> Tensor:
    """Return 32 random bits for each key and position, int32 [B, keys, height, width].

    Args:
        keys: Int64 [keys].
        corners: Row and column of the first position of each window.
        height: Number of rows of a window.
        width: Number of columns of a window.
    """
    device = keys.device
    odd = [column % 2 for _, column in corners]
    # One hash of 64 bits gives the bits of two columns.
    starts = torch.tensor([(row << 32) + column // 2 for row, column in corners]).to(device, non_blocking=True)
    rows = torch.arange(height, device=device) << 32
    columns = torch.arange((width + max(odd) + 1) // 2, device=device)
    counter = starts[:, None, None, None] + rows[:, None] + columns
    state = counter * STEP + keys[:, None, None]
    for shift, factor in ((30, FIRST), (27, SECOND), (31, 1)):
        # Shifts of tensors keep the sign: the mask zeroes the bits that come in from the left.
        state ^= (state >> shift) & (2 ** (64 - shift) - 1)
        if factor != 1:
            state *= factor
    bits = state.view(torch.int32)
    if any(odd):
        return torch.stack([one[..., first : first + width] for one, first in zip(bits, odd, strict=True)])
    return bits[..., :width]


def _uniform(bits: Tensor) -> Tensor:
    """Return numbers in [0, 1), float32, from the upper 24 of 32 bits."""
    return ((bits >> 8) & (2**24 - 1)).float().mul_(2.0**-24)


def _normal(bits: Tensor) -> Tensor:
    """Return standard normal numbers, float32, from 32 bits: a sign, and a tail probability in steps of 2 ** -32.

    All operations are exact or rounded once, so that all devices give the same numbers.
    """
    values, slopes = _normal_table(bits.device)
    tail = ((bits & (2**31 - 1)) | 1).float().view(torch.int32) - (127 << MANTISSA)
    number = (tail >> (MANTISSA - BINS)).flatten()
    between: Tensor = (tail & (2 ** (MANTISSA - BINS) - 1)).float().mul_(2.0 ** (BINS - MANTISSA))
    between *= slopes.index_select(0, number).view(bits.shape)
    between += values.index_select(0, number).view(bits.shape)
    between *= (bits >> 31) | 1
    return between


@lru_cache(maxsize=8)
def _normal_table(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return normal values at the edges of bins of tail probabilities from 2 ** -32 to 1 / 2, and their differences."""
    edges = np.arange((31 << BINS) + 2, dtype=np.int64)
    powers = ((edges + (127 << BINS)) << (MANTISSA - BINS)).astype(np.int32).view(np.float32).astype(np.float64)
    inverse = NormalDist().inv_cdf
    values = torch.tensor([-inverse(min(power, 0.5)) for power in powers * 2.0**-32], dtype=torch.float64)
    return values[:-1].float().to(device), values.diff().float().to(device)


def _mix(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
