"""Random choice of the tokens to read and the tokens to predict, within budgets.

Source: 4M (arXiv:2312.06647) section 3 and TerraMind (arXiv:2504.11171) section 3.2: budgets by modality from Dirichlet
distributions, positions at random within a modality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from terramind_plugin.errors import ConfigError, suggest

DEFAULT_ALPHA = 0.2
"""Concentration of 4M: most of a sample's budget goes to few modalities."""
SMALLEST_SHARE = 1e-12
"""Minimum share, above zero so that a modality can always take tokens that do not fit into others."""
ANNOUNCED = 0.5
"""Probability that the encoder reads the start of a sequence to predict, as generators do for some outputs."""


class Masks(NamedTuple):
    """Masks by entry ('pixels.S2L2A', 'tokens.LULC', 'sequences.coords'): boolean [B, N], True for chosen tokens.

    The first token of a sequence is its start. If only the start is read, the sequence is to be predicted.
    """

    inputs: dict[str, Tensor]
    targets: dict[str, Tensor]


@dataclass(frozen=True)
class MaskPlan:
    """Modalities to read and to predict, and budgets of tokens.

    Raises:
        ConfigError: A budget is too small, or a concentration is negative, of an unknown entry, or zero for all.
    """

    pixels: tuple[str, ...]
    """Modalities that can be read as patches of pixels."""
    tokens: tuple[str, ...]
    """Image modalities that can be read and predicted as token ids."""
    sequences: Mapping[str, int]
    """Modalities that can be read and predicted as a whole, with their numbers of tokens without the start."""
    inputs: tuple[int, int]
    """Minimum and maximum number of tokens to read; one number between them is drawn for each batch."""
    targets: int
    """Maximum number of tokens to predict in a sample."""
    input_alphas: Mapping[str, float] = field(default_factory=dict)
    """Concentrations by kind ('pixels', 'tokens', 'sequences') or entry ('tokens.LULC'); 0 for never."""
    target_alphas: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ConfigError("tokens is empty: name the modalities to predict, e.g. tokens: [LULC].")
        lengths = list(self.sequences.values())
        fewest, most = self.inputs
        if not sum(lengths) < fewest <= most:
            raise ConfigError(
                f"input_tokens must be a minimum and a maximum, at least {sum(lengths) + 1}, got {self.inputs}."
            )
        if self.targets <= sum(lengths) + len(lengths):
            raise ConfigError(f"target_tokens must be above {sum(lengths) + len(lengths)}, got {self.targets}.")
        self._check_alphas("input_alphas", self.input_alphas, self.entries)
        self._check_alphas("target_alphas", self.target_alphas, self.entries[len(self.pixels) :])

    @property
    def entries(self) -> tuple[str, ...]:
        """Names of all entries: pixels, tokens, sequences."""
        kinds = {"pixels": self.pixels, "tokens": self.tokens, "sequences": tuple(self.sequences)}
        return tuple(f"{kind}.{name}" for kind, names in kinds.items() for name in names)

    def _check_alphas(self, argument: str, alphas: Mapping[str, float], entries: tuple[str, ...]) -> None:
        known = [*dict.fromkeys(entry.partition(".")[0] for entry in entries), *entries]
        for name, alpha in alphas.items():
            if name not in known:
                raise ConfigError(f"{argument} names '{name}'.{suggest(name, known)} Known: {', '.join(known)}.")
            if not alpha >= 0:
                raise ConfigError(f"{argument}.{name} must be 0 or more, got {alpha}.")
        if not any(_alpha(alphas, entry) for entry in entries if not entry.startswith("sequences.")):
            raise ConfigError(f"{argument} is 0 for all of {', '.join(entries)}; at least one must be above 0.")


def draw_masks(
    plan: MaskPlan,
    batch: int,
    count: int,
    generator: torch.Generator,
    present: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Draw the tokens to read and the tokens to predict for each sample.

    A position of a modality is read as pixels, read as a token, predicted, or not used. A token is never predicted from
    its own patch, since the model would then only learn the tokenizer. A sequence is read or predicted as a whole. At
    least one token of every sample is read. If a modality has fewer tokens than its share of the budget, the rest of an
    input budget is not used, so that some samples have a single modality to read; the rest of a target budget goes to
    the other modalities.

    Args:
        plan: Budgets.
        batch: Number of samples.
        count: Number of tokens of an image modality.
        generator: Random generator on the CPU.
        present: Boolean [B] by image modality, False if a sample lacks it, so that none of its tokens are chosen;
            modalities that are not named are present.
    """
    families = {name: number for number, name in enumerate(dict.fromkeys([*plan.pixels, *plan.tokens]))}
    of_pixels = [families[name] for name in plan.pixels]
    of_tokens = [families[name] for name in plan.tokens]
    room = torch.full((batch, len(families)), count)
    for name, number in families.items():
        if present is not None and name in present:
            room[:, number] *= present[name].cpu()
    is_read, counts = _draw_inputs(plan, room[:, of_pixels + of_tokens], generator)
    seen, named = torch.zeros_like(room), torch.zeros_like(room)
    seen[:, of_pixels] = counts[:, : len(of_pixels)]
    named[:, of_tokens] = torch.minimum(counts[:, len(of_pixels) :], (room - seen)[:, of_tokens])
    wanted = torch.zeros_like(room)
    is_asked, wanted[:, of_tokens] = _draw_targets(plan, (room - seen - named)[:, of_tokens], is_read, generator)

    rank = torch.rand(batch, len(families), count, generator=generator).argsort(dim=2).argsort(dim=2)
    ends = torch.stack([seen, named, wanted]).cumsum(dim=0)[..., None]
    pixels, known, asked = rank < ends[0], (rank >= ends[0]) & (rank < ends[1]), (rank >= ends[1]) & (rank < ends[2])
    is_announced = is_asked & (torch.rand(is_asked.shape, generator=generator) < ANNOUNCED)
    inputs = {f"pixels.{name}": pixels[:, families[name]] for name in plan.pixels}
    inputs |= {f"tokens.{name}": known[:, families[name]] for name in plan.tokens}
    targets = {f"tokens.{name}": asked[:, families[name]] for name in plan.tokens}
    for number, (name, length) in enumerate(plan.sequences.items()):
        whole = is_read[:, number, None].expand(batch, length)
        inputs[f"sequences.{name}"] = torch.cat([is_announced[:, number, None], whole], dim=1)
        targets[f"sequences.{name}"] = is_asked[:, number, None].expand(batch, length + 1)
    return Masks(inputs, targets)


def _draw_inputs(plan: MaskPlan, room: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return which sequences are read [B, sequences], and the number of tokens of the images [B, pixels and tokens]."""
    total = int(torch.randint(plan.inputs[0], plan.inputs[1] + 1, (1,), generator=generator))
    shares = _draw_shares(plan.input_alphas, plan.entries, len(room), generator)
    images, sequences = shares[:, : room.shape[1]], shares[:, room.shape[1] :]
    lengths = torch.tensor(list(plan.sequences.values()), dtype=torch.long)
    is_read = sequences * total * 2 >= lengths
    used = torch.where(is_read, lengths, 1).sum(dim=1)  # 1 for the start of a sequence to predict
    return is_read, _spend(images, total - used, room, passes=1)


def _draw_targets(plan: MaskPlan, room: Tensor, is_read: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return which sequences are predicted [B, sequences], and the number of tokens of the images [B, tokens]."""
    shares = _draw_shares(plan.target_alphas, plan.entries[len(plan.pixels) :], len(room), generator)
    images, sequences = shares[:, : room.shape[1]], shares[:, room.shape[1] :]
    lengths = 1 + torch.tensor(list(plan.sequences.values()), dtype=torch.long)
    is_asked = (sequences * plan.targets * 2 >= lengths) & ~is_read
    return is_asked, _spend(images, plan.targets - (is_asked * lengths).sum(dim=1), room, passes=room.shape[1])


def _draw_shares(alphas: Mapping[str, float], entries: Sequence[str], batch: int, generator: torch.Generator) -> Tensor:
    """Return shares of entries [B, entries] from a Dirichlet distribution; 0 where an alpha is 0."""
    chosen = torch.tensor([_alpha(alphas, entry) for entry in entries], dtype=torch.float64).expand(batch, -1)
    # torch.distributions does not take a generator.
    drawn = torch._standard_gamma(chosen, generator=generator)
    drawn = torch.where(chosen > 0, drawn.clamp(min=SMALLEST_SHARE), 0.0)
    return drawn / drawn.sum(dim=1, keepdim=True)


def _alpha(alphas: Mapping[str, float], entry: str) -> float:
    return alphas.get(entry, alphas.get(entry.partition(".")[0], DEFAULT_ALPHA))


def _spend(shares: Tensor, total: Tensor, room: Tensor, passes: int) -> Tensor:
    """Return whole numbers of tokens [B, entries] in proportion to shares, limited by `room`.

    Args:
        shares: [B, entries], 0 or more.
        total: Tokens to spend [B].
        room: Maximum number of tokens of each entry [B, entries].
        passes: Number of rounds in which tokens that do not fit are given to other entries.
    """
    counts = torch.zeros_like(room)
    for _ in range(passes):
        rest = total - counts.sum(dim=1)
        is_open = (counts < room) & (shares > 0)
        weights = torch.where(is_open, shares, 0.0)
        exact = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-300) * rest[:, None]
        spent = exact.floor()
        # The tokens lost by rounding down go to the largest remainders.
        missing = rest[:, None] - spent.sum(dim=1, keepdim=True)
        remainder = torch.where(is_open, exact - spent, -1.0)
        rank = remainder.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        spent = torch.where(is_open, spent + (rank < missing), 0.0)
        counts += torch.minimum(spent.long(), room - counts)
    return counts
