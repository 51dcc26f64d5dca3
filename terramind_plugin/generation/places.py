"""The likeliest texts of two words, found by looking at the likeliest first words only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from terramind_plugin.generation.decoding import START
from terramind_plugin.generation.model import token_key
from terramind_plugin.generation.tokens import TokenGenerator


def most_likely_pairs(
    generator: TokenGenerator,
    target: str,
    inputs: Mapping[str, Tensor],
    first: Sequence[int],
    second: Sequence[int],
    count: int,
) -> tuple[Tensor, Tensor]:
    """Return token ids [B, count, 2] of the likeliest pairs, and their probabilities [B, count], in falling order.

    A pair that begins with none of the `count` likeliest first words is less likely than `count` others only as a rule:
    this is a beam search.

    Args:
        generator: The model.
        target: Name of a sequence among its targets.
        inputs: As in `TokenGenerator.forward`.
        first: Ids that the first word can be; probabilities are among these.
        second: Ids that the second word can be, likewise.
        count: Number of pairs.
    """
    model, key = generator.model, token_key(generator.targets[target])[0]
    reading = generator.read(inputs)
    generator.announce([target], reading)
    context = reading.context()
    device = model.mask_token.device
    firsts, seconds = torch.tensor(first, device=device), torch.tensor(second, device=device)
    count = min(count, len(first) * len(second))
    start = torch.full((reading.batch, 1), START, device=device)
    begins = model.next_logits(key, start, context)[:, firsts].float().log_softmax(dim=1)
    best = begins.topk(min(count, len(first)), dim=1)
    candidates = []
    for rank in range(best.indices.shape[1]):
        word = firsts[best.indices[:, rank : rank + 1]]
        ends = model.next_logits(key, torch.cat([start, word], dim=1), context)[:, seconds].float().log_softmax(dim=1)
        candidates.append(best.values[:, rank : rank + 1] + ends)
    top = torch.cat(candidates, dim=1).topk(count, dim=1)
    begin, end = best.indices.gather(1, top.indices // len(second)), top.indices % len(second)
    return torch.stack([firsts[begin], seconds[end]], dim=2), top.values.exp()
