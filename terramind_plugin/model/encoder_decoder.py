"""The encoder-decoder: scores of the tokens of some modalities, given a context from the tokens of others.

Source: TerraMind (arXiv:2504.11171) section 3.2, which is 4M (arXiv:2312.06647); parameter names are those of the
published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from terramind_plugin.model.decoder import CrossAttention, DecoderBlock, KeysValues, run_decoder
from terramind_plugin.model.embeddings import (
    PAD_ID,
    SequenceEmbedding,
    TokenEmbedding,
    build_embedding,
    build_head,
    build_token_embedding,
    positions_of,
)
from terramind_plugin.model.encoder import build_blocks, initialise, run_blocks
from terramind_plugin.model.inputs import InputSpec
from terramind_plugin.model.layers import LayerNorm
from terramind_plugin.model.modalities import Modality, token_key
from terramind_plugin.model.variants import Variant

SAME_POSITION = 2.0
"""Initial scale of queries and keys, which sets how much a token attends to its own position."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of one modality for the encoder, with content and position kept apart."""

    content: Tensor
    """Content [B, N, dim]."""
    position: Tensor
    """Position plus modality embedding, [1 or B, N, dim]; added a second time in the decoder's context."""
    valid: Tensor | None = None

    def where(self, present: Tensor | None) -> Tokens:
        """Return the part without the samples that lack the modality.

        Args:
            present: Boolean [B], True where a sample has it; None if all have it.
        """
        if present is None:
            return self
        valid = present[:, None].expand(self.content.shape[:2])
        return replace(self, valid=valid if self.valid is None else valid & self.valid)


@dataclass(frozen=True)
class Context:
    """Context of the decoder, computed once for any number of decoding steps."""

    memory: tuple[KeysValues, ...]
    """Keys and values for each decoder block."""
    mask: Tensor | None


class EncoderDecoder(nn.Module):
    """Scores of token ids of some modalities, given images and tokens of others.

    Source: TerraMind (arXiv:2504.11171).

    Args:
        variant: Architecture.
        inputs: Inputs of the encoder; inputs whose key is that of tokens are given as token ids.
        targets: Modalities that can be predicted.
        remembered: Further modalities whose token ids the encoder can read, to condition later ones on them.
        img_size: Height and width in pixels that position embeddings are made for.

    Raises:
        ConfigError: A modality has no tokenizer.
    """

    def __init__(
        self,
        variant: Variant,
        inputs: Sequence[InputSpec],
        targets: Sequence[Modality],
        *,
        remembered: Sequence[Modality] = (),
        img_size: tuple[int, int],
    ) -> None:
        super().__init__()
        dim = variant.dim
        self.variant = variant
        self.inputs = tuple(inputs)
        self.patch_size = variant.patch_size
        self.img_size = img_size
        encoder: dict[str, nn.Module] = {}
        for spec in sorted(inputs, key=lambda spec: spec.is_tokens):
            encoder[spec.key] = build_embedding(spec, variant, img_size)
        for modality in remembered:
            if token_key(modality) not in encoder:
                encoder[token_key(modality)] = build_token_embedding(modality, variant, img_size)
        decoder = {token_key(modality): build_head(modality, variant, img_size) for modality in targets}
        self.encoder_embeddings = nn.ModuleDict(encoder)
        self.decoder_embeddings = nn.ModuleDict(decoder)
        self.encoder = build_blocks(variant)
        self.encoder_norm = LayerNorm(dim)
        self.decoder_proj_context = nn.Linear(dim, dim)
        self.decoder = nn.ModuleList(
            DecoderBlock(dim, variant.num_heads, mlp_ratio=variant.mlp_ratio, bias=variant.bias, gated=variant.gated)
            for _ in range(variant.decoder_depth)
        )
        self.decoder_norm = LayerNorm(dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self._share_modality_embeddings()
        self._initialise()

    def _share_modality_embeddings(self) -> None:
        """Share the embedding of a modality between encoder and decoder if both have it, as in the published models."""
        for key, head in self.decoder_embeddings.items():
            if key in self.encoder_embeddings:
                head.mod_emb = self.encoder_embeddings[key].mod_emb

    def _initialise(self) -> None:
        """Initialise all weights in place as 4M does, except the attention to the context.

        That begins with equal queries and keys, and an output that undoes the values: it copies what the context has
        at the same position. Training need not find out first which positions belong together.
        Source: Trockman and Kolter, Mimetic Initialization (arXiv:2305.09828).
        """
        initialise(self)
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, CrossAttention):
                keys, values = module.kv.weight.data.chunk(2)
                nn.init.xavier_uniform_(keys, gain=SAME_POSITION)
                module.q.weight.data.copy_(keys)
                nn.init.orthogonal_(values)
                module.proj.weight.data.copy_(values.T)
        for embedding in self.encoder_embeddings.values():
            if isinstance(embedding, TokenEmbedding | SequenceEmbedding):
                nn.init.normal_(embedding.token_emb.weight, std=0.02)

    def _embedding(self, key: str) -> Any:
        return self.encoder_embeddings[key]

    def _head(self, key: str) -> Any:
        return self.decoder_embeddings[key]

    def embed_image(self, key: str, image: Tensor) -> Tokens:
        """Return the tokens of an image.

        Args:
            key: Checkpoint key of the modality.
            image: Standardised [B, channels, H, W].
        """
        embedding = self._embedding(key)
        size = (image.shape[-2] // self.patch_size, image.shape[-1] // self.patch_size)
        return Tokens(embedding.project(image), embedding.embed_positions(size))

    def embed_grid(self, key: str, ids: Tensor) -> Tokens:
        """Return the tokens of an image modality from token ids.

        Args:
            key: Checkpoint key of the modality.
            ids: Token ids [B, rows, columns].
        """
        embedding = self._embedding(key)
        return Tokens(embedding.token_emb(ids.flatten(1)), embedding.embed_positions((ids.shape[1], ids.shape[2])))

    def embed_some(self, key: str, ids: Tensor, index: Tensor, size: tuple[int, int]) -> Tokens:
        """Return some tokens of an image modality, e.g. those decoded so far.

        Args:
            key: Checkpoint key of the modality.
            ids: Token ids [B, M].
            index: Indices of the tokens in the grid [B, M], row by row.
            size: Rows and columns of the grid.
        """
        embedding = self._embedding(key)
        return Tokens(embedding.token_emb(ids), embedding.embed_positions_at(size, index))

    def embed_sequence(self, key: str, ids: Tensor) -> Tokens:
        """Return the tokens of a sequence.

        Args:
            key: Checkpoint key of the modality.
            ids: Token ids [B, L]; `PAD_ID` where there is no token.
        """
        embedding = self._embedding(key)
        return Tokens(embedding.token_emb(ids), embedding.embed_positions_at(positions_of(ids)), ids != PAD_ID)

    def encode(self, parts: Sequence[Tokens], batch: int) -> Context:
        """Encode the parts of any number of modalities and return the context, which is empty without parts.

        Args:
            parts: Tokens by modality, in any order.
            batch: Number of samples.
        """
        if not parts:
            context = self.mask_token.new_zeros(batch, 0, self.variant.dim)
            return self._context(context, None)
        content = torch.cat([part.content for part in parts], dim=1)
        is_common = all(part.position.shape[0] == 1 for part in parts)
        positions = [part.position if is_common else part.position.expand_as(part.content) for part in parts]
        position = torch.cat(positions, dim=1)
        mask = None
        if any(part.valid is not None for part in parts):
            shapes = [part.content.shape[:2] for part in parts]
            masks = [
                content.new_ones(shape, dtype=torch.bool) if part.valid is None else part.valid
                for part, shape in zip(parts, shapes, strict=True)
            ]
            mask = torch.cat(masks, dim=1)
        last = len(self.encoder) - 1
        (x,) = run_blocks(content + position, self.encoder, self.encoder_norm, mask=mask, keep=(last,))
        return self._context(self.decoder_proj_context(x) + position, mask)

    def _context(self, tokens: Tensor, mask: Tensor | None) -> Context:
        blocks: list[Any] = list(self.decoder)
        return Context(tuple(block.keys_values(tokens) for block in blocks), mask)

    def grid_logits(self, key: str, index: Tensor, size: tuple[int, int], context: Context) -> Tensor:
        """Return scores of token ids [B, M, vocabulary] for masked tokens of an image modality.

        Args:
            key: Checkpoint key of the modality.
            index: Indices of the tokens in the grid [B, M], row by row.
            size: Rows and columns of the grid.
            context: From `encode`.
        """
        head = self._head(key)
        x = self.mask_token + head.embed_positions_at(size, index)
        x = run_decoder(x, self.decoder, self.decoder_norm, context.memory, mask=context.mask)
        logits: Tensor = head.to_logits(x)
        return logits

    def next_logits(self, key: str, ids: Tensor, context: Context) -> Tensor:
        """Return scores of the token id after a sequence, [B, vocabulary].

        Args:
            key: Checkpoint key of the modality.
            ids: Token ids of the sequence so far [B, L], with its start token.
            context: From `encode`.
        """
        head = self._head(key)
        x = head.token_emb(ids) + head.embed_positions_at(torch.arange(ids.shape[1], device=ids.device))
        x = run_decoder(x, self.decoder, self.decoder_norm, context.memory, mask=context.mask, causal=True)
        logits: Tensor = head.to_logits(x[:, -1])
        return logits
