"""From token ids to tokens, and from decoded tokens to scores of token ids.

Source: 4M (arXiv:2312.06647) section 3, as TerraMind (arXiv:2504.11171) uses it; parameter names are those of the
published checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terramind_plugin.model.embeddings import GridEmbedding
from terramind_plugin.model.variants import PUBLISHED_WAVES, Waves

SEQUENCE_POSITIONS = 512
"""Positions that the published sequence embeddings store, however short the sequence."""


def sequence_positions(length: int, dim: int) -> Tensor:
    """Return fixed sine-cosine position embeddings [1, length, dim].

    Args:
        length: Number of positions.
        dim: Width of a token; even. The first half holds sines, the second cosines.

    Source: Attention Is All You Need (arXiv:1706.03762), section 3.5.
    """
    half = dim // 2
    omega = 1.0 / 10000.0 ** (torch.arange(half, dtype=torch.float32) / half)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), omega)
    return torch.cat([angles.sin(), angles.cos()], dim=1)[None]


class TokenEmbedding(GridEmbedding):
    """Embedding of an image modality that comes as token ids.

    Args:
        vocab_size: Number of token ids.
        dim: Width of a token.
        patch_size: Height and width in pixels that a token stands for.
        img_size: Height and width in pixels that the position embeddings are made for; other sizes are interpolated.
        waves: Fastest wave of the position embeddings and their range.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        patch_size: int,
        img_size: tuple[int, int],
        waves: Waves = PUBLISHED_WAVES,
    ) -> None:
        super().__init__(dim, patch_size, img_size, waves)
        self.vocab_size = vocab_size
        self.token_emb = nn.Embedding(vocab_size, dim)

    def forward(self, ids: Tensor) -> Tensor:
        """Return tokens [B, rows * columns, dim] of token ids [B, rows, columns]."""
        return self.token_emb(ids.flatten(1)) + self.place((ids.shape[1], ids.shape[2]))

    def place_at(self, size: tuple[int, int], index: Tensor) -> Tensor:
        """Return position plus modality embedding [B, M, dim] of some tokens of the grid.

        Args:
            size: Rows and columns of the grid.
            index: Their numbers [B, M], row by row.
        """
        return self.place(size)[0][index]


class SequenceEmbedding(nn.Module):
    """Embedding of a short text that comes as token ids.

    Args:
        vocab_size: Number of token ids.
        dim: Width of a token.
        max_length: Longest sequence; later positions count as the first, as in the published decoder.
    """

    pos_emb: Tensor

    def __init__(self, vocab_size: int, dim: int, max_length: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.max_length = max_length
        self.register_buffer("pos_emb", sequence_positions(SEQUENCE_POSITIONS, dim))
        self.mod_emb = nn.Parameter(torch.zeros(1, 1, dim))
        self.token_emb = nn.Embedding(vocab_size, dim, padding_idx=0)

    def forward(self, ids: Tensor) -> Tensor:
        """Return tokens [B, L, dim] of token ids [B, L], 0 where there is none."""
        return self.token_emb(ids) + self.place_at(((ids != 0).cumsum(dim=1) - 1).clamp(min=0))

    def place_at(self, positions: Tensor) -> Tensor:
        """Return position plus modality embedding [..., L, dim].

        Args:
            positions: Position of each token [..., L], counted from 0 over the valid tokens.
        """
        inside = torch.where(positions < self.max_length, positions, 0)
        return self.pos_emb[0][inside] + self.mod_emb[0]


def _share(logits: nn.Linear, embedding: nn.Embedding) -> nn.Linear:
    """Return the layer with the embedding's weights as its own, as in the published models."""
    logits.weight = embedding.weight
    return logits


class TokenHead(TokenEmbedding):
    """Decoder's side of an image modality: where a token is to be, and scores of its ids. Args as `TokenEmbedding`."""

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        patch_size: int,
        img_size: tuple[int, int],
        waves: Waves = PUBLISHED_WAVES,
    ) -> None:
        super().__init__(vocab_size, dim, patch_size, img_size, waves)
        self.to_logits = _share(nn.Linear(dim, vocab_size, bias=False), self.token_emb)


class SequenceHead(SequenceEmbedding):
    """Decoder's side of a short text: tokens so far, and scores of the next. Args as `SequenceEmbedding`."""

    def __init__(self, vocab_size: int, dim: int, max_length: int) -> None:
        super().__init__(vocab_size, dim, max_length)
        self.to_logits = _share(nn.Linear(dim, vocab_size, bias=False), self.token_emb)
