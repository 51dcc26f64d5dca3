"""The decoder: blocks over the tokens to predict, which attend to each other and to the encoder's output.

Source: 4M (arXiv:2312.06647) section 3; parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from terramind_plugin.model.layers import Attention, GatedMlp, LayerNorm, Mlp, attend

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of the context, each [B, heads, N, dim / heads]."""


class CrossAttention(nn.Module):
    """Multi-head attention to a context.

    Args:
        dim: Width of a token.
        num_heads: Number of heads; divides `dim`.
        bias: Whether the linear layers have a bias.
    """

    def __init__(self, dim: int, num_heads: int, *, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def keys_values(self, context: Tensor) -> KeysValues:
        """Return keys and values, each [B, heads, N, dim / heads], of a context [B, N, dim]."""
        batch, count, dim = context.shape
        parts = self.kv(context).view(batch, count, 2, self.num_heads, dim // self.num_heads)
        keys, values = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return keys, values

    def forward(self, x: Tensor, memory: KeysValues, mask: Tensor | None = None) -> Tensor:
        """Return tokens [B, M, dim].

        Args:
            x: Tokens [B, M, dim].
            memory: From `keys_values`. An empty context contributes nothing.
            mask: Boolean, broadcastable to [B, heads, M, N]; True means attend.
        """
        batch, count, dim = x.shape
        q = self.q(x).view(batch, count, self.num_heads, dim // self.num_heads).transpose(1, 2)
        keys, values = memory
        out = attend(q, keys, values, mask) if keys.shape[2] else torch.zeros_like(q)
        tokens: Tensor = self.proj(out.transpose(1, 2).flatten(2))
        return tokens


class DecoderBlock(nn.Module):
    """Pre-norm block of self-attention, attention to the context and a feed-forward layer.

    Args:
        dim: Width of a token.
        num_heads: Number of attention heads.
        mlp_ratio: Width of the feed-forward layer, as a multiple of `dim`.
        bias: Whether the linear layers have a bias.
        gated: Whether the feed-forward layer is a SwiGLU.
    """

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float, bias: bool, gated: bool) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.self_attn = Attention(dim, num_heads, bias=bias)
        self.query_norm = LayerNorm(dim)
        self.context_norm = LayerNorm(dim)
        self.cross_attn = CrossAttention(dim, num_heads, bias=bias)
        self.norm2 = LayerNorm(dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = GatedMlp(dim, hidden, bias=bias) if gated else Mlp(dim, hidden, bias=bias)

    def keys_values(self, context: Tensor) -> KeysValues:
        """Return the keys and values of a context [B, N, dim] for `forward`."""
        return self.cross_attn.keys_values(self.context_norm(context))

    def forward(
        self, x: Tensor, memory: KeysValues, mask: Tensor | None = None, self_mask: Tensor | None = None
    ) -> Tensor:
        """Return tokens [B, M, dim].

        Args:
            x: Tokens [B, M, dim].
            memory: From `keys_values`.
            mask: Boolean, broadcastable to [B, heads, M, N]; True where a token may attend to the context.
            self_mask: Boolean, broadcastable to [B, heads, M, M]; True where a token may attend to another.
        """
        x = x + self.self_attn(self.norm1(x), self_mask)
        x = x + self.cross_attn(self.query_norm(x), memory, mask)
        x = x + self.mlp(self.norm2(x))
        return x


def run_decoder(
    x: Tensor,
    blocks: Sequence[DecoderBlock] | nn.ModuleList,
    norm: LayerNorm,
    memory: Sequence[KeysValues],
    *,
    mask: Tensor | None = None,
    self_mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Return decoded tokens [B, M, dim], normalised.

    Args:
        x: Tokens [B, M, dim].
        blocks: The decoder.
        norm: Norm of the last block's output.
        memory: Keys and values of the context for each block, from its `keys_values`.
        mask: Boolean [B, N]; True where the context has a token.
        self_mask: Boolean [B, M, M]; True where a token may attend to another; None if all may attend to all.
        causal: Whether a token attends only to itself and to the tokens before it; replaces `self_mask`.
    """
    attend_to = None if mask is None else mask[:, None, None, :]
    length = x.shape[1]
    among = None if self_mask is None else self_mask[:, None]
    if causal and length > 1:
        among = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    for block, keys_values in zip(blocks, memory, strict=True):
        x = block(x, keys_values, attend_to, among)
    x = norm(x)
    return x
