"""Probabilities of texts of two words: of the likeliest, or of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from terramind_plugin.generation.decoding import START
from terramind_plugin.generation.token_generator import TokenGenerator
from terramind_plugin.model.modalities import token_key


class _Words:
    """Scores of the next word of a text, given inputs that are read once."""

    def __init__(self, generator: TokenGenerator, target: str, inputs: Mapping[str, Tensor]) -> None:
        self._model = generator.model
        self._key = token_key(generator.targets[target])
        reading = generator.read(inputs)
        generator.announce([target], reading)
        self._context = reading.context()
        self._device = generator.model.mask_token.device
        self.start = torch.full((reading.batch, 1), START, device=self._device)
        """How a text begins [B, 1]."""

    def among(self, ids: Sequence[int]) -> Tensor:
        """Return ids of words as a tensor for `scores`."""
        return torch.tensor(ids, device=self._device)

    def scores(self, text: Tensor, among: Tensor) -> Tensor:
        """Return scores [B, words] of some words behind a text [B, L], float32."""
        return self._model.next_logits(self._key, text, self._context)[:, among].float()


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
    words = _Words(generator, target, inputs)
    firsts, seconds = words.among(first), words.among(second)
    count = min(count, len(first) * len(second))
    begins = words.scores(words.start, firsts).log_softmax(dim=1)
    best = begins.topk(min(count, len(first)), dim=1)
    candidates = []
    for rank in range(best.indices.shape[1]):
        word = firsts[best.indices[:, rank : rank + 1]]
        ends = words.scores(torch.cat([words.start, word], dim=1), seconds).log_softmax(dim=1)
        candidates.append(best.values[:, rank : rank + 1] + ends)
    top = torch.cat(candidates, dim=1).topk(count, dim=1)
    begin, end = best.indices.gather(1, top.indices // len(second)), top.indices % len(second)
    return torch.stack([firsts[begin], seconds[end]], dim=2), top.values.exp()


def pair_probabilities(
    generator: TokenGenerator,
    target: str,
    inputs: Mapping[str, Tensor],
    first: Sequence[int],
    second: Sequence[int],
    mass: float = 1.0,
    on_word: Callable[[int, int], object] = lambda done, total: None,
) -> Tensor:
    """Return the probability of each pair, [B, first, second], float32.

    Args:
        generator: The model.
        target: Name of a sequence among its targets.
        inputs: As in `TokenGenerator.forward`.
        first: Ids that the first word can be; probabilities are among these.
        second: Ids that the second word can be, likewise.
        mass: First words that together have less than 1 - mass in every sample are left out: their pairs get 0.
        on_word: Called after each first word with the number of those done and of all.
    """
    words = _Words(generator, target, inputs)
    firsts, seconds = words.among(first), words.among(second)
    begins = words.scores(words.start, firsts).softmax(dim=1)
    ordered, order = begins.sort(dim=1, descending=True)
    wanted = torch.zeros_like(begins, dtype=torch.bool)
    wanted.scatter_(1, order, ordered.cumsum(dim=1) - ordered < mass)
    places = wanted.any(dim=0).nonzero()[:, 0].tolist()
    pairs = begins.new_zeros(len(begins), len(first), len(second))
    for number, place in enumerate(places, start=1):
        sequence = torch.cat([words.start, firsts[place].expand(len(begins), 1)], dim=1)
        ends = words.scores(sequence, seconds).softmax(dim=1)
        pairs[:, place] = begins[:, place : place + 1] * ends
        on_word(number, len(places))
    return pairs
