"""Merging the tokens of several modalities into one feature map."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

import torch
from torch import Tensor

MERGE_METHODS: tuple[str, ...] = ("mean", "max", "concat", "dict", "none")


def _where(present: Tensor, tokens: Tensor, other: Tensor | float) -> Tensor:
    """Return tokens [B, N, D] where present [B] is True, and `other` elsewhere."""
    if not isinstance(other, Tensor):
        other = torch.full((), other, dtype=tokens.dtype, device=tokens.device)
    return torch.where(present[:, None, None], tokens, other.to(tokens.dtype))


def merge_mean(tokens: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> Tensor:
    """Return the mean over modalities [B, N, D], for each sample over the modalities that it has.

    Args:
        tokens: Tokens [B, N, D] of each modality.
        present: Boolean [B] of each modality, True where the sample has it; None if all samples have all modalities.
    """
    if present is None:
        return reduce(torch.add, tokens.values()) / len(tokens) if len(tokens) > 1 else next(iter(tokens.values()))
    total = reduce(torch.add, (_where(present[name], x, 0.0) for name, x in tokens.items()))
    count = torch.stack([present[name] for name in tokens], dim=1).sum(dim=1)
    return total / count.to(total.dtype)[:, None, None]


def merge_max(tokens: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> Tensor:
    """Return the maximum over modalities [B, N, D]. Args as in `merge_mean`."""
    if present is not None:
        tokens = {name: _where(present[name], x, -torch.inf) for name, x in tokens.items()}
    return reduce(torch.maximum, tokens.values())


def merge_concat(
    tokens: Mapping[str, Tensor],
    present: Mapping[str, Tensor] | None,
    names: tuple[str, ...],
    missing: Tensor,
) -> Tensor:
    """Return the modalities concatenated to [B, N, names * D]; a missing modality is filled with a learnt token.

    Args:
        tokens: As in `merge_mean`.
        present: As in `merge_mean`.
        names: All modalities of the model in order, including missing ones.
        missing: The learnt token [D].
    """
    like = next(iter(tokens.values()))
    filler = missing.to(like.dtype).expand_as(like)
    parts = []
    for name in names:
        x = tokens.get(name)
        if x is None:
            parts.append(filler)
        else:
            parts.append(x if present is None else _where(present[name], x, filler))
    return torch.cat(parts, dim=-1)


def blank(tokens: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return the tokens by modality, zero where a sample lacks the modality. Args as in `merge_mean`."""
    if present is None:
        return dict(tokens)
    return {name: _where(present[name], x, 0.0) if name in present else x for name, x in tokens.items()}
