"""Embeddings of pixels and token ids, and scores of token ids from decoded tokens.

Source: TerraMind (arXiv:2504.11171) section 3.2 and 4M (arXiv:2312.06647) section 3; parameter names are those of the
published checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from terramind_plugin.model.inputs import InputSpec
from terramind_plugin.model.modalities import Modality
from terramind_plugin.model.variants import PUBLISHED_WAVES, Variant, Waves

CACHED_SIZES = 16
"""Maximum number of image sizes whose position embeddings a model keeps."""
PAD_ID = 0
"""Token id for padding in sequences."""
SEQUENCE_POSITIONS = 512
"""Number of positions in the published sequence embeddings, which does not depend on the length of the sequence."""


def sincos_positions(height: int, width: int, dim: int, waves: Waves = PUBLISHED_WAVES) -> Tensor:
    """Return fixed sine-cosine position embeddings [1, height * width, dim], row by row.

    Args:
        height: Number of patch rows.
        width: Number of patch columns.
        dim: Width of a token; a multiple of 4. The first half encodes the row, the second the column.
        waves: Fastest wave and range.

    Source: MoCo v3 (arXiv:2104.02057).
    """
    quarter = dim // 4
    fastest, spread = waves
    omega = fastest / spread ** (torch.arange(quarter, dtype=torch.float32) / quarter)
    rows = torch.outer(torch.arange(height, dtype=torch.float32), omega)
    columns = torch.outer(torch.arange(width, dtype=torch.float32), omega)
    rows = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(height, width, 2 * quarter)
    columns = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(height, width, 2 * quarter)
    return torch.cat([rows, columns], dim=2).reshape(1, height * width, dim)


def resize_positions(positions: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return position embeddings [1, rows * columns, dim] interpolated to another grid.

    Args:
        positions: Embeddings [1, grid rows * grid columns, dim].
        grid: Rows and columns of `positions`.
        size: Rows and columns wanted.
    """
    image = rearrange(positions, "1 (h w) d -> 1 d h w", h=grid[0])
    exact = image if image.dtype == torch.float64 else image.float()
    image = F.interpolate(exact, size=size, mode="bicubic", align_corners=False).to(positions.dtype)
    return rearrange(image, "1 d h w -> 1 (h w) d")


class GridEmbedding(nn.Module):
    """Position and modality embeddings of a grid of tokens.

    Args:
        dim: Width of a token.

        img_size: Height and width in pixels that the position embeddings are made for; other sizes are interpolated.
        waves: Fastest wave of the position embeddings and their range.
    """

    pos_emb: Tensor

    def __init__(self, dim: int, patch_size: int, img_size: tuple[int, int], waves: Waves = PUBLISHED_WAVES) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.grid = (img_size[0] // patch_size, img_size[1] // patch_size)
        self.register_buffer("pos_emb", sincos_positions(*self.grid, dim, waves))
        self.mod_emb = nn.Parameter(torch.zeros(1, 1, dim))
        self._resized: dict[tuple[object, ...], Tensor] = {}

    def embed_positions(self, size: tuple[int, int]) -> Tensor:
        """Return the sum of position and modality embedding [1, rows * columns, dim].

        Args:
            size: Rows and columns of tokens.
        """
        return self.positions(size) + self.mod_emb

    def positions(self, size: tuple[int, int]) -> Tensor:
        """Return position embeddings [1, rows * columns, dim], interpolated at the first call for a size.

        Args:
            size: Rows and columns of patches.
        """
        if size == self.grid:
            return self.pos_emb
        if torch.compiler.is_compiling():  # a graph may not fill a cache
            return resize_positions(self.pos_emb, self.grid, size)
        key = (size, self.pos_emb.device, self.pos_emb.dtype)
        if key not in self._resized:
            if len(self._resized) == CACHED_SIZES:
                self._resized.clear()
            # Validation runs in inference mode; a table made there must be usable in training.
            with torch.inference_mode(False), torch.no_grad():
                self._resized[key] = resize_positions(self.pos_emb.clone(), self.grid, size)
        return self._resized[key]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._resized.clear()
        super()._load_from_state_dict(*args, **kwargs)


class ImageEmbedding(GridEmbedding):
    """Embedding of an image modality: linear patches plus a position and a modality embedding.

    Args:
        channels: Number of bands.
        dim: Width of a token.
        patch_size: Height and width of a patch in pixels.
        img_size: Height and width in pixels that the position embeddings are made for; other sizes are interpolated.
        waves: Fastest wave of the position embeddings and their range.
    """

    def __init__(
        self, channels: int, dim: int, patch_size: int, img_size: tuple[int, int], waves: Waves = PUBLISHED_WAVES
    ) -> None:
        super().__init__(dim, patch_size, img_size, waves)
        self.channels = channels
        # No bias, since the modality embedding has the same effect.
        self.proj = nn.Linear(channels * patch_size**2, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, rows * columns, dim] of an image [B, channels, H, W], H and W multiples of the patch."""
        size = (x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size)
        return self.project(x) + self.embed_positions(size)

    def project(self, x: Tensor) -> Tensor:
        """Return the content of the patches without position, [B, rows * columns, dim]; image as in `forward`."""
        patches = rearrange(x, "b c (h ph) (w pw) -> b (h w) (ph pw c)", ph=self.patch_size, pw=self.patch_size)
        tokens: Tensor = self.proj(patches)
        return tokens


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
    """Embedding of the token ids of an image modality.

    Args:
        vocab_size: Number of token ids.
        dim: Width of a token.

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
        tokens: Tensor = self.token_emb(ids.flatten(1))
        return tokens + self.embed_positions((ids.shape[1], ids.shape[2]))

    def embed_positions_at(self, size: tuple[int, int], index: Tensor) -> Tensor:
        """Return position plus modality embedding [B, M, dim] of some tokens of the grid.

        Args:
            size: Rows and columns of the grid.
            index: Indices of the tokens [B, M], row by row.
        """
        return self.embed_positions(size)[0][index]


class SequenceEmbedding(nn.Module):
    """Embedding of the token ids of a sequence.

    Args:
        vocab_size: Number of token ids.
        dim: Width of a token.
        max_length: Maximum length of a sequence; later positions are treated as the first, as in the published decoder.
    """

    pos_emb: Tensor

    def __init__(self, vocab_size: int, dim: int, max_length: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.max_length = max_length
        self.register_buffer("pos_emb", sequence_positions(SEQUENCE_POSITIONS, dim))
        self.mod_emb = nn.Parameter(torch.zeros(1, 1, dim))
        self.token_emb = nn.Embedding(vocab_size, dim, padding_idx=PAD_ID)

    def forward(self, ids: Tensor) -> Tensor:
        """Return tokens [B, L, dim] of token ids [B, L]; 0 at padding."""
        tokens: Tensor = self.token_emb(ids)
        return tokens + self.embed_positions_at(positions_of(ids))

    def embed_positions_at(self, positions: Tensor) -> Tensor:
        """Return position plus modality embedding [..., L, dim].

        Args:
            positions: Position of each token [..., L], counted from 0 over the valid tokens.
        """
        inside = torch.where(positions < self.max_length, positions, 0)
        return self.pos_emb[0][inside] + self.mod_emb[0]


def positions_of(ids: Tensor) -> Tensor:
    """Return the position of each token of sequences [B, L], counted from 0 over the tokens that are not padding."""
    return ((ids != PAD_ID).cumsum(dim=1) - 1).clamp(min=0)


def _share(logits: nn.Linear, embedding: nn.Embedding) -> nn.Linear:
    """Share the embedding's weights with a layer, as in the published models, and return the layer."""
    logits.weight = embedding.weight
    return logits


class TokenHead(TokenEmbedding):
    """Decoder embedding of an image modality: the position of each token, and scores of its ids.

    Args:
        args: Arguments of `TokenEmbedding`.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.to_logits = _share(nn.Linear(self.token_emb.embedding_dim, self.vocab_size, bias=False), self.token_emb)


class SequenceHead(SequenceEmbedding):
    """Decoder embedding of a sequence: the tokens so far, and scores of the next one.

    Args:
        args: Arguments of `SequenceEmbedding`.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.to_logits = _share(nn.Linear(self.token_emb.embedding_dim, self.vocab_size, bias=False), self.token_emb)


def build_embedding(spec: InputSpec, variant: Variant, img_size: tuple[int, int]) -> nn.Module:
    """Return the encoder's embedding of a modality, of pixels or of token ids."""
    if spec.is_tokens and spec.pretrained is not None:
        return build_token_embedding(spec.pretrained, variant, img_size)
    return ImageEmbedding(spec.channels, variant.dim, variant.patch_size, img_size, variant.waves)


def build_token_embedding(modality: Modality, variant: Variant, img_size: tuple[int, int]) -> nn.Module:
    """Return the encoder's embedding of a modality's token ids."""
    if modality.max_length is not None:
        return SequenceEmbedding(variant.vocab_size(modality), variant.dim, modality.max_length)
    return TokenEmbedding(variant.vocab_size(modality), variant.dim, variant.patch_size, img_size, variant.waves)


def build_head(modality: Modality, variant: Variant, img_size: tuple[int, int]) -> nn.Module:
    """Return the decoder's embedding of a modality's token ids, with their scores."""
    if modality.max_length is not None:
        return SequenceHead(variant.vocab_size(modality), variant.dim, modality.max_length)
    return TokenHead(variant.vocab_size(modality), variant.dim, variant.patch_size, img_size, variant.waves)
