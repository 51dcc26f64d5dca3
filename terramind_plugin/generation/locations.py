"""Probabilities of positions, which are pairs of tokens: those of the most likely pairs, or of all pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from terramind_plugin.generation.decoding import START
from terramind_plugin.generation.token_generator import TokenGenerator
from terramind_plugin.model.modalities import token_key


class LikelyLocations(NamedTuple):
    """Likely positions of a batch of samples, the most likely first."""

    positions: Tensor
    """Positions [B, K, 2] as (longitude, latitude) in degrees, float64."""
    probabilities: Tensor
    """Probabilities [B, K] in [0, 1], among all positions of the model's grid."""
    step: float
    """Resolution of the grid in degrees: 0.25 for the published models."""


class LocationMap(NamedTuple):
    """Probabilities of all positions for a batch of samples."""

    longitudes: Tensor
    """Longitudes [columns] in degrees, ascending, float64."""
    latitudes: Tensor
    """Latitudes [rows] in degrees, descending, float64."""
    probabilities: Tensor
    """Probabilities [B, rows, columns]."""


class PairScores:
    """Scores of sequences of two tokens, given inputs that are encoded once.

    Args:
        generator: The model.
        target: Name of a sequence among the model's targets.
        inputs: As in `TokenGenerator.forward`.
        first: Ids of the first token; probabilities are among these.
        second: Ids of the second token; probabilities are among these.
    """

    def __init__(
        self,
        generator: TokenGenerator,
        target: str,
        inputs: Mapping[str, Tensor],
        first: Sequence[int],
        second: Sequence[int],
    ) -> None:
        self._model = generator.model
        self._key = token_key(generator.targets[target])
        observed = generator.read(inputs)
        generator.announce([target], observed)
        self._context = observed.context()
        device = generator.model.mask_token.device
        self._first, self._second = (torch.tensor(ids, device=device) for ids in (first, second))
        self._start = torch.full((observed.batch, 1), START, device=device)

    def likeliest(self, count: int) -> tuple[Tensor, Tensor]:
        """Return the token ids [B, count, 2] of the most likely pairs, and their probabilities [B, count], descending.

        This is a beam search: it considers only the `count` most likely first tokens.

        Args:
            count: Number of pairs; all if there are fewer.
        """
        width = len(self._second)
        best = self._scores_first().log_softmax(dim=1).topk(min(count, len(self._first)), dim=1)
        candidates = []
        for rank in range(best.indices.shape[1]):
            token = self._first[best.indices[:, rank : rank + 1]]
            candidates.append(best.values[:, rank : rank + 1] + self._scores_second(token).log_softmax(dim=1))
        top = torch.cat(candidates, dim=1).topk(min(count, len(self._first) * width), dim=1)
        first, second = best.indices.gather(1, top.indices // width), top.indices % width
        return torch.stack([self._first[first], self._second[second]], dim=2), top.values.exp()

    def probabilities(
        self, mass: float = 1.0, on_first: Callable[[int, int], object] = lambda done, total: None
    ) -> Tensor:
        """Return the probability of each pair, [B, first, second], float32.

        Args:
            mass: First tokens with a joint probability of less than 1 - mass in every sample are left out; their pairs
                get 0.
            on_first: Called after each first token with the numbers of finished first tokens and of all of them.
        """
        begins = self._scores_first().softmax(dim=1)
        ordered, order = begins.sort(dim=1, descending=True)
        wanted = torch.zeros_like(begins, dtype=torch.bool)
        wanted.scatter_(1, order, ordered.cumsum(dim=1) - ordered < mass)
        chosen = wanted.any(dim=0).nonzero()[:, 0].tolist()
        pairs = begins.new_zeros(len(begins), len(self._first), len(self._second))
        for done, index in enumerate(chosen, start=1):
            ends = self._scores_second(self._first[index].expand(len(begins), 1)).softmax(dim=1)
            pairs[:, index] = begins[:, index : index + 1] * ends
            on_first(done, len(chosen))
        return pairs

    def _scores_first(self) -> Tensor:
        """Return scores of the first tokens, [B, first]."""
        return self._model.next_logits(self._key, self._start, self._context)[:, self._first].float()

    def _scores_second(self, token: Tensor) -> Tensor:
        """Return scores of the second tokens after a first one [B, 1], [B, second]."""
        sequence = torch.cat([self._start, token], dim=1)
        return self._model.next_logits(self._key, sequence, self._context)[:, self._second].float()
