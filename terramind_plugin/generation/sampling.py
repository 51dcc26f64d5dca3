"""Drawing token ids: pure functions of scores and uniform random numbers.

Source of the filters: top-p sampling (arXiv:1904.09751), MaskGIT (arXiv:2202.04200).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NO_TEMPERATURE = 1e-10
"""Maximum temperature at which the most likely id is used."""
REJECTION_MISS = 1e-6
"""Accepted probability that all draws of a token miss the nucleus; the id is then drawn from the nucleus itself."""
MOST_DRAWS = 32
"""Maximum number of draws of a token that is cheaper than finding the whole nucleus."""
BITS = {torch.float32: (torch.int32, 0x3F800000), torch.float64: (torch.int64, 0x3FF0000000000000)}
"""Integer type with the bits of each float type (positive floats have the same order), and the integer for 1.0."""


def keep_top_k(logits: Tensor, top_k: int | float) -> Tensor:
    """Return scores [..., V] with minus infinity for all but the most likely ids; ties with the last one are kept.

    Args:
        logits: Scores [..., V].
        top_k: Number of ids to keep, or their share of V as a float; 0 for all.
    """
    vocabulary = logits.shape[-1]
    count = int(top_k * vocabulary) if isinstance(top_k, float) else top_k
    if top_k == 0 or count >= vocabulary:
        return logits
    least = logits.topk(max(count, 1), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -math.inf)


def find_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Return a boolean [..., V], True for the ids of the nucleus, without sorting and without waiting for a GPU.

    The nucleus is the smallest set of most likely ids whose joint probability exceeds `top_p`, so it is never empty. Of
    equally likely ids the first ones belong to it, as with a stable sort. Bisection finds the smallest probability in
    the nucleus: floats from 0 to 1 have the order of their bits, so that 30 halvings leave one float (62 in float64).

    Args:
        probabilities: Probabilities [..., V], float32 or float64, summing to 1.
        top_p: 0 keeps the likeliest id, 1 keeps all.
    """
    whole, one = BITS[probabilities.dtype]
    bits = probabilities.view(whole)
    least = torch.zeros_like(bits[..., :1])
    beyond = torch.full_like(least, one + 1)
    for _ in range(one.bit_length()):
        middle = least + ((beyond - least) >> 1)
        exceeds = torch.where(bits >= middle, probabilities, 0.0).sum(dim=-1, keepdim=True) > top_p
        least, beyond = torch.where(exceeds, middle, least), torch.where(exceeds, beyond, middle)
    above, tied = bits > least, bits == least
    left = top_p - torch.where(above, probabilities, 0.0).sum(dim=-1, keepdim=True)
    count = (left / least.view(probabilities.dtype)).floor() + 1
    everything = least == 0  # no set exceeds top_p
    return above | (tied & (everything | (tied.cumsum(dim=-1, dtype=torch.int32) <= count)))


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Return scores [..., V] with minus infinity outside the nucleus; see `find_nucleus`.

    Args:
        logits: Scores [..., V], float32 or float64.
        top_p: 0 or 1 for all ids.
    """
    if not 0 < top_p < 1:
        return logits
    return logits.masked_fill(~find_nucleus(logits.softmax(dim=-1), top_p), -math.inf)


def sample(
    logits: Tensor, draws: Tensor | None, *, temperature: float = 1.0, top_k: int | float = 0, top_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return token ids [B, M] and the confidence of each, [B, M] in [0, 1].

    Filters apply to the distribution at temperature 1. The confidence is the id's probability in the distribution from
    which it is drawn; at temperature 0 it is the unfiltered probability of the most likely id.

    Args:
        logits: Scores [B, M, V], any float type.
        draws: Uniform numbers [B, M, R], of which the last is used; None at temperature 0.
        temperature: 0 for the most likely id.
        top_k: As in `keep_top_k`.
        top_p: As in `keep_top_p`.
    """
    logits = _exact(logits)
    if temperature <= NO_TEMPERATURE or draws is None:
        best = logits.max(dim=-1)
        return best.indices, (best.values - logits.logsumexp(dim=-1)).exp()
    logits, uniform = keep_top_k(logits, top_k), draws[..., -1:].to(logits)
    return _draw((keep_top_p(logits, top_p) / temperature).softmax(dim=-1), uniform)


def sample_ids(
    logits: Tensor, draws: Tensor | None, *, temperature: float = 1.0, top_k: int | float = 0, top_p: float = 0.0
) -> Tensor:
    """Return token ids [B, M] from the distribution of `sample`, in less time with `count_draws` numbers for each.

    Args:
        logits: As in `sample`.
        draws: Uniform numbers [B, M, R]. With R > 1 an id is drawn from all ids until one is in the nucleus.
        temperature: As in `sample`; at most 1 for R > 1.
        top_k: As in `sample`.
        top_p: As in `sample`.
    """
    if draws is None or draws.shape[-1] == 1 or not 0 < top_p < 1 or temperature <= NO_TEMPERATURE:
        return sample(logits, draws, temperature=temperature, top_k=top_k, top_p=top_p)[0]
    rows = keep_top_k(_exact(logits), top_k).flatten(0, -2)
    flat = draws.to(rows).flatten(0, -2)
    if not may_read(rows.device):
        return _draw_without_reading(rows, flat, temperature, top_p).view(logits.shape[:-1])
    ids, missed = _draw_by_rejection(rows, flat[:, :-1], temperature, top_p)
    if len(missed):
        ids[missed] = sample(rows[missed], flat[missed], temperature=temperature, top_p=top_p)[0]
    return ids.view(logits.shape[:-1])


def may_read(device: torch.device) -> bool:
    """Return whether Python may read values of tensors without waiting: True on a CPU, False on a GPU."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def count_draws(top_p: float, temperature: float) -> int:
    """Return the number of uniform numbers that `sample_ids` needs for a token.

    With several numbers, ids are drawn until one is in the nucleus. Up to temperature 1 a draw hits the nucleus with a
    probability of at least `top_p`. On a CPU this takes less time than finding the nucleus: with sorting, decoding 196
    tokens of 15,360 ids in one step with the base size takes 1.2 times as long.

    Args:
        top_p: See `sample`.
        temperature: See `sample`.
    """
    if temperature > 1 or not 0 < top_p < 1:
        return 1
    draws = math.ceil(math.log(REJECTION_MISS) / math.log(1 - top_p))
    return draws + 1 if draws <= MOST_DRAWS else 1


def guide(unconditional: Tensor, conditional: Sequence[Tensor], strengths: Sequence[float]) -> Tensor:
    """Return scores moved away from the unconditional ones, towards those of each condition.

    Args:
        unconditional: Scores without the conditions, of any shape.
        conditional: Scores with each condition, of the same shape.
        strengths: Strength of each condition: 0 ignores it, 1 uses it unchanged, larger values exaggerate it.

    Source: classifier-free guidance (arXiv:2207.12598), several conditions as in arXiv:2206.01714.
    """
    moves = (strength * (scores - unconditional) for scores, strength in zip(conditional, strengths, strict=True))
    return unconditional + sum(moves)


def _exact(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _draw(probabilities: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return ids [...] and their probabilities [...].

    Args:
        probabilities: [..., V], summing to 1.
        uniform: [..., 1].
    """
    ids = _invert(probabilities, uniform)
    return ids[..., 0], probabilities.gather(-1, ids)[..., 0]


def _invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Return the ids [..., R] at which the cumulative probabilities [..., V] exceed uniform numbers [..., R].

    An id of probability 0 is never returned.
    """
    mass = probabilities.cumsum(dim=-1)
    total = mass[..., -1:]
    below = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    # Clamped because of NaN: an id outside the vocabulary would end the process on a GPU.
    return torch.searchsorted(mass, below, right=True).clamp_(max=mass.shape[-1] - 1)


def _draw_without_reading(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> Tensor:
    """Return the ids [N] that `_draw_by_rejection` finds, and those that it misses, without waiting for a GPU.

    Args:
        logits: [N, V].
        uniform: [N, R + 1], of which the last is for rows for which no other hits the nucleus.
        temperature: Above 0, at most 1.
        top_p: Between 0 and 1.
    """
    weights = logits.softmax(dim=-1)
    inside = find_nucleus(weights, top_p)
    drawn_from = weights if temperature == 1 else (logits / temperature).softmax(dim=-1)
    candidates = _invert(drawn_from, uniform[:, :-1])
    hits = inside.gather(1, candidates)
    first = candidates.gather(1, hits.to(torch.int8).argmax(dim=1, keepdim=True))
    others = _invert(torch.where(inside, drawn_from, 0.0), uniform[:, -1:])
    return torch.where(hits.any(dim=1, keepdim=True), first, others)[:, 0]


def _draw_by_rejection(logits: Tensor, uniform: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Return ids [N], and the indices of the rows for which no draw hit the nucleus.

    An id is in the nucleus if all likelier ids, and those before it that are as likely, have at most `top_p` together.

    Args:
        logits: [N, V].
        uniform: [N, R].
        temperature: Above 0, at most 1.
        top_p: Between 0 and 1.
    """
    weights = logits.softmax(dim=-1)
    drawn_from = weights if temperature == 1 else (logits / temperature).softmax(dim=-1)
    candidates = _invert(drawn_from, uniform)
    ids, rows = candidates[:, 0].clone(), torch.arange(len(logits), device=logits.device)
    left, scratch = weights, torch.empty_like(weights)
    numbers = torch.arange(logits.shape[1], device=logits.device)
    for attempt in range(candidates.shape[1]):
        candidate = candidates[rows, attempt]
        ids[rows] = candidate
        own = left.gather(1, candidate[:, None])
        mass = torch.ge(left, own, out=scratch[: len(rows)]).mul_(left).sum(dim=-1) - own[:, 0]
        outside = mass > top_p
        if outside.any():  # of equally likely ids, only those before the candidate count
            some, same = left[outside], own[outside]
            before = (some == same) & (numbers < candidate[outside, None])
            mass = torch.where((some > same) | before, some, 0.0).sum(dim=-1)
            outside = outside.masked_scatter(outside, mass > top_p)
        if not outside.any():
            return ids, rows[:0]
        rows, left = rows[outside], left[outside]
    return ids, rows
