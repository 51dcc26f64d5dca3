"""Decoding schedules: number of tokens and temperature of each step.

Source: MaskGIT (arXiv:2202.04200) for the cosine, 4M (arXiv:2312.06647) appendix for the rest; numbers as in their
public implementations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from terramind_plugin.errors import ConfigError, suggest

SMALLEST_TEMPERATURE = 1e-9
"""Lower bound of decreasing schedules, so that their last steps still sample."""

SCHEMES = ("roar", "maskgit")
USER_NAMES = {"steps": "decoding_steps", "temperature": "temps"}
"""Arguments of `Decoding` whose names in configurations differ."""


@dataclass(frozen=True)
class Step:
    """One decoding step."""

    count: int
    """Number of tokens, at least 1."""
    temperature: float


@dataclass(frozen=True)
class Decoding:
    """Settings for drawing the tokens of one modality.

    Raises:
        ConfigError: A value is not possible.
    """

    steps: int = 1
    """Number of decoding steps of an image modality, at most its number of tokens."""
    scheme: str = "roar"
    """Order of the tokens: 'roar' at random, 'maskgit' the most confident first."""
    counts: str = "linear"
    """Number of tokens per step: 'linear' (equal) or 'cosine' (few at first)."""
    temperature: float = 1.0
    """Temperature of the first step. Values below 1 favour likely tokens; 0 uses the most likely one."""
    temperatures: str = "constant"
    """Course over the steps: 'constant', 'linear' (to zero) or 'onex:<least>:<power>' (falling as 1 / x ** power)."""
    top_k: int | float = 0
    """Number of most likely ids to draw from, or their share of all ids as a float; 0 for all."""
    top_p: float = 0.8
    """Joint probability of the most likely ids to draw from; 0 or 1 for all."""
    guidance: float = 1.0
    """Strength of classifier-free guidance; 1 for none."""
    max_tokens: int = 3
    """Maximum number of tokens of a sequence: latitude, longitude and end."""

    def __post_init__(self) -> None:
        for name, count in (("steps", self.steps), ("max_tokens", self.max_tokens)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {count!r}.")
        for name, value, limit in (
            ("temperature", self.temperature, math.inf),
            ("top_k", self.top_k, math.inf),
            ("top_p", self.top_p, 1.0),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= limit:
                upto = "" if limit == math.inf else f" and at most {limit:g}"
                raise ConfigError(f"{name} must be a number of at least 0{upto}, got {value!r}.")
        if isinstance(self.top_k, float) and self.top_k > 1:
            raise ConfigError(f"top_k as a float is a share from 0 to 1, got {self.top_k}. Write {int(self.top_k)}.")
        for name, text, known in (("scheme", self.scheme, SCHEMES), ("counts", self.counts, tuple(_COUNTS))):
            if text not in known:
                raise ConfigError(f"Unknown {name} '{text}'.{suggest(str(text), known)} Known: {', '.join(known)}.")
        _temperatures(self.temperatures, 1.0, [1])

    def plan(self, total: int) -> list[Step]:
        """Return the steps that together decode `total` tokens, each token once."""
        counts = _COUNTS[self.counts](self.steps, total)
        temperatures = _temperatures(self.temperatures, self.temperature, counts)
        return [Step(count, degree) for count, degree in zip(counts, temperatures, strict=True) if count]


def plan_decoding(targets: Collection[str], **settings: Any) -> dict[str, Decoding]:
    """Return the settings of each target from arguments of `Decoding`, each of which is a value or a list by target.

    Raises:
        ConfigError: A list does not have one value for each target, or a value is not possible.
    """
    by_argument: dict[str, list[Any]] = {}
    for name, value in settings.items():
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        by_argument[name] = list(value) if is_list else [value] * len(targets)
        if len(by_argument[name]) != len(targets):
            shown = USER_NAMES.get(name, name)
            raise ConfigError(f"{shown} has {len(value)} values for the {len(targets)} modalities {list(targets)}.")
    return {
        target: Decoding(**{name: values[index] for name, values in by_argument.items()})
        for index, target in enumerate(targets)
    }


def linear_counts(steps: int, total: int) -> list[int]:
    """Return token counts that differ by at most one, larger ones first, without zeros.

    Args:
        steps: Number of steps.
        total: Number of tokens.
    """
    edges = np.linspace(0, total, steps + 1, dtype=int)
    return sorted((int(count) for count in np.diff(edges) if count), reverse=True)


def cosine_counts(steps: int, total: int) -> list[int]:
    """Return token counts that increase like the decrease of a cosine; some may be zero. Args as in `linear_counts`."""
    shares = [0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(steps)]
    counts: list[int] = []
    for before, after in pairwise(shares):
        counts.append(min(round(total * (before - after)), total - sum(counts)))
    return [*counts, total - sum(counts)]


_COUNTS: dict[str, Callable[[int, int], list[int]]] = {"linear": linear_counts, "cosine": cosine_counts}


def _temperatures(schedule: str, start: float, counts: Sequence[int]) -> list[float]:
    """Return a temperature for each step.

    Args:
        schedule: See `Decoding.temperatures`.
        start: Temperature of the first step.
        counts: Tokens of each step.

    Raises:
        ConfigError: The schedule is unknown.
    """
    total, done = sum(counts), np.cumsum(counts)
    name, *numbers = str(schedule).split(":")
    if start == 0 or (name == "constant" and not numbers):
        return [float(start)] * len(counts)
    if name == "linear" and not numbers:
        falling = start * (total - done) / total
        values = np.concatenate([[start], falling[:-1]])
    elif name == "onex" and len(numbers) == 2:
        try:
            least, power = (float(number) for number in numbers)
        except ValueError:
            raise ConfigError(f"temperatures '{schedule}': expected two numbers as in 'onex:0.1:0.5'.") from None
        curve = 1 / np.linspace(1, 100, num=max(total, len(counts))) ** power
        curve = (curve - curve.min()) / max(curve.max() - curve.min(), np.finfo(float).tiny)
        values = least + (start - least) * (1 - done / total) * curve[: len(counts)]
    else:
        raise ConfigError(f"Unknown temperatures '{schedule}'. Use constant, linear or onex:<least>:<power>.")
    return [float(value) for value in values.clip(min=SMALLEST_TEMPERATURE)]
