"""Drawing token ids step by step from a function that scores them.

Source: ROAR, a random order, from 4M (arXiv:2312.06647); MaskGIT, the most confident first (arXiv:2202.04200).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from terramind_plugin.generation.sampling import NO_TEMPERATURE, count_draws, sample_ids
from terramind_plugin.generation.schedules import Decoding
from terramind_plugin.model.embeddings import PAD_ID
from terramind_plugin.tokenizers.noise import Noise, send

DrawFunction = Callable[[Tensor, Tensor | None, float], Any]
"""Function of the positions of tokens [B, M], of uniform numbers [B, M, R] (None for the most likely ids), and of a
temperature. It returns token ids [B, M] and, for 'maskgit', their confidence [B, M]."""
Reveal = Callable[[Tensor, Tensor], None]
"""Function called after each step except the last with the positions [B, M] and ids [B, M] of all decoded tokens."""

START = 5
"""Token id that begins a generated sequence, '[S_1]'."""
STOP = 6
"""Token id that ends a generated sequence, '[S_2]'."""
SENTINELS = range(4, 204)
"""Token ids '[S_0]' to '[S_199]', each of which starts a part of a sequence."""


def fill_in_random_order(
    draw: DrawFunction, reveal: Reveal, total: int, how: Decoding, noise: Noise, device: torch.device
) -> Tensor:
    """Return token ids [B, total], drawn in a random order that differs between samples.

    Args:
        draw: Function that draws tokens.
        reveal: Function called after each step except the last.
        total: Number of tokens.
        how: Steps and sampling.
        noise: Random numbers.
        device: Device of the scores.
    """
    order = send(noise.order(total), device)
    draws = _draws(noise, total, how, count_draws(how.top_p, how.temperature), device)
    ids = torch.zeros_like(order)
    done = 0
    for step in how.plan(total):
        now = slice(done, done + step.count)
        index = order[:, now]
        drawn = draw(index, None if draws is None else draws[:, now], step.temperature)
        ids.scatter_(1, index, drawn)
        done += step.count
        if done < total:
            known = order[:, :done]
            reveal(known, ids.gather(1, known))
    return ids


def fill_in_by_confidence(
    draw: DrawFunction, reveal: Reveal, total: int, how: Decoding, noise: Noise, device: torch.device
) -> Tensor:
    """Return token ids [B, total]; each step draws all missing tokens and keeps the most confident ones.

    Args as in `fill_in_random_order`. At temperature 0 the confidence is the probability of the most likely id; in the
    public implementation all draws then have the same confidence.
    """
    batch = len(noise.generators)
    remaining = torch.arange(total, device=device).expand(batch, total)
    ids = torch.zeros_like(remaining)
    known = remaining[:, :0]
    for step in how.plan(total):
        draws = _draws(noise, remaining.shape[1], how, 1, device)
        drawn, confidence = draw(remaining, draws, step.temperature)
        rank = confidence.argsort(dim=1, descending=True, stable=True)
        now, later = rank[:, : step.count], rank[:, step.count :].sort(dim=1).values
        index = remaining.gather(1, now)
        ids = ids.scatter(1, index, drawn.gather(1, now))
        remaining = remaining.gather(1, later)
        known = torch.cat([known, index], dim=1)
        if known.shape[1] < total:
            reveal(known, ids.gather(1, known))
    return ids


FILLERS = {"roar": fill_in_random_order, "maskgit": fill_in_by_confidence}


def continue_sequence(
    score_next: Callable[[Tensor], Tensor], how: Decoding, noise: Noise, device: torch.device
) -> Tensor:
    """Return the token ids after `START`, [B, how.max_tokens], drawn one after the other.

    Args:
        score_next: Function of a sequence [B, L] that returns the scores of the next id [B, V].
        how: Settings of sampling; its steps are ignored.
        noise: Random numbers.
        device: Device of the scores.
    """
    sequence = torch.full((len(noise.generators), 1), START, device=device)
    draws = _draws(noise, how.max_tokens, how, count_draws(how.top_p, how.temperature), device)
    for position in range(how.max_tokens):
        drawn = sample_ids(
            score_next(sequence)[:, None],
            None if draws is None else draws[:, position : position + 1],
            temperature=how.temperature,
            top_k=how.top_k,
            top_p=how.top_p,
        )
        sequence = torch.cat([sequence, drawn], dim=1)
    return sequence[:, 1:]


def first_piece(ids: Tensor, sentinels: Sequence[int] | range = SENTINELS) -> Tensor:
    """Return the tokens of a generated sequence after `START`, without sentinels, padded with `PAD_ID` to [B, L].

    The sequence ends at `STOP`. After any other sentinel, tokens are left out until the next `START`.

    Args:
        ids: Token ids after `START`, [B, L].
        sentinels: Ids of all sentinels.
    """
    is_sentinel = _is_among(ids, sentinels)
    positions = torch.arange(ids.shape[1], device=ids.device)
    last = torch.where(is_sentinel, positions, -1).cummax(dim=1).values
    current = torch.where(last < 0, START, ids.gather(1, last.clamp(min=0)))
    ended = (ids == STOP).cummax(dim=1).values
    valid = ~is_sentinel & (current == START) & ~ended & (ids != PAD_ID)
    order = (~valid).to(torch.int8).argsort(dim=1, stable=True)
    return torch.where(valid, ids, PAD_ID).gather(1, order)


def _is_among(ids: Tensor, numbers: Sequence[int] | range) -> Tensor:
    """Return a boolean for each id, True if it is among `numbers`; runs of numbers are compared without a tensor."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    known = set(numbers)
    begins = sorted(one for one in known if one - 1 not in known)
    ends = sorted(one for one in known if one + 1 not in known)
    for begin, end in zip(begins, ends, strict=True):
        found = found | ((ids >= begin) & (ids <= end))
    return found


def _draws(noise: Noise, count: int, how: Decoding, each: int, device: torch.device) -> Tensor | None:
    """Return uniform numbers [B, count, each], or None if the most likely id is used."""
    if how.temperature <= NO_TEMPERATURE:
        return None
    return send(noise.uniform(count, each), device)
