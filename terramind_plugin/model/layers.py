"""Transformer layers.

Source: TerraMind (arXiv:2504.11171), whose encoder is that of 4M (arXiv:2312.06647): pre-norm blocks without norm bias,
SwiGLU in the large sizes. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MANY_KEYS = 1024
"""Number of keys above which attention never stores all scores at once."""

HAS_AMX = hasattr(torch.cpu, "get_capabilities") and bool(torch.cpu.get_capabilities().get("amx_bf16", False))
"""True if the CPU has matrix units, which torch's fused attention uses; False if torch is too old to tell."""


class LayerNorm(nn.Module):
    """Layer normalisation whose bias is fixed at zero.

    The published checkpoints store that zero bias as a buffer, and so does this module.

    Args:
        dim: Size of the last dimension.
        eps: Number added to the variance.
    """

    bias: Tensor

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return x [..., dim] with zero mean and unit variance over the last dimension, scaled."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Return softmax(q k^T / sqrt(dim)) v, shape [B, heads, N, dim].

    Args:
        q: Queries [B, heads, N, dim].
        k: Keys [B, heads, M, dim].
        v: Values [B, heads, M, dim].
        mask: Boolean, broadcastable to [B, heads, N, M]; True means attend. A query without keys gives zero.
        dropout: Probability with which attention weights are dropped.
    """
    if not _matmuls_are_faster(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    # Contiguous heads, since the product would otherwise copy the transposed keys element by element.
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if mask is None:
        weights = scores.softmax(dim=-1)
    else:
        # The second fill gives zero for queries without keys, as torch's attention does.
        weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=-1).masked_fill(~mask, 0.0)
    if dropout:
        weights = F.dropout(weights, dropout)
    out: Tensor = weights.to(v.dtype) @ v
    return out


def _matmuls_are_faster(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether two matrix products are faster than torch's fused attention.

    They are in half precision on a CPU, where the fused kernel is slow in its backward pass, and without AMX also in
    its forward pass. They store all scores, so they are used only for few keys.
    """
    if q.device.type != "cpu" or q.dtype not in (torch.bfloat16, torch.float16) or k.shape[-2] > MANY_KEYS:
        return False
    return not HAS_AMX or q.requires_grad or k.requires_grad or v.requires_grad


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        dim: Width of a token.
        num_heads: Number of heads; divides `dim`.
        bias: Whether the linear layers have a bias.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.
    """

    def __init__(self, dim: int, num_heads: int, *, bias: bool, attn_drop: float = 0.0, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return tokens [B, N, dim]; `mask` as in `attend`."""
        batch, count, dim = x.shape
        # Unbound before heads and tokens change places: the backward pass then writes one gradient, and copies none.
        parts = self.qkv(x).view(batch, count, 3, self.num_heads, dim // self.num_heads).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in parts)
        out = attend(q, k, v, mask, self.attn_drop if self.training else 0.0)
        tokens: Tensor = self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))
        return tokens


class _SwiGlu(torch.autograd.Function):
    """silu(gate) * value that stores only its two inputs for the backward pass, and not silu(gate).

    A step of the base size saves 16 % of activation memory by it.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(gate, value)
        return F.silu(gate).mul_(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, value = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * value, gate), grad * F.silu(gate)


def swiglu(gate: Tensor, value: Tensor) -> Tensor:
    """Return silu(gate) * value.

    Args:
        gate: Any shape.
        value: The same shape.
    """
    # A compiler fuses, and chooses itself what to keep; torch.func needs operations that it knows.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return F.silu(gate) * value
    if not torch.is_grad_enabled():
        return F.silu(gate).mul_(value)
    product: Tensor = _SwiGlu.apply(gate, value)
    return product


class GatedMlp(nn.Module):
    """SwiGLU feed-forward layer (arXiv:2002.05202).

    Args:
        dim: Width of a token.
        hidden: Width of an ungated layer; two thirds of it are used, which gives the same number of parameters.
        bias: Whether the linear layers have a bias.
    """

    def __init__(self, dim: int, hidden: int, *, bias: bool) -> None:
        super().__init__()
        hidden = int(2 * hidden / 3)
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.fc3 = nn.Linear(dim, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, N, dim]."""
        out: Tensor = self.fc2(swiglu(self.fc1(x), self.fc3(x)))
        return out


class Mlp(nn.Module):
    """Feed-forward layer with GELU.

    Args:
        dim: Width of a token.
        hidden: Width of the hidden layer.
        bias: Whether the linear layers have a bias.
        drop: Dropout of the output.
    """

    def __init__(self, dim: int, hidden: int, *, bias: bool, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden, bias=bias)
        self.fc2 = nn.Linear(hidden, dim, bias=bias)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, N, dim]."""
        out: Tensor = self.drop(self.fc2(F.gelu(self.fc1(x))))
        return out


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): in training, a sample skips a branch with a given probability.

    `timm.layers` has the same, and takes two seconds to import.

    Args:
        rate: Probability, less than 1.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop_prob = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of a branch [B, N, dim], zero for samples that skip it and larger for the others."""
        if not self.training:
            return x
        keep = 1 - self.drop_prob
        return x * x.new_empty(len(x), 1, 1).bernoulli_(keep).div_(keep)


class Block(nn.Module):
    """Pre-norm transformer block.

    Args:
        dim: Width of a token.
        num_heads: Number of attention heads.
        mlp_ratio: Width of the feed-forward layer, as a multiple of `dim`.
        bias: Whether the linear layers have a bias.
        gated: Whether the feed-forward layer is a SwiGLU.
        drop: Dropout of the attention output, and of the feed-forward output where that is not gated.
        attn_drop: Dropout of the attention weights.
        drop_path: Probability that a sample skips a branch.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        bias: bool,
        gated: bool,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads, bias=bias, attn_drop=attn_drop, proj_drop=drop)
        self.norm2 = LayerNorm(dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = GatedMlp(dim, hidden, bias=bias) if gated else Mlp(dim, hidden, bias=bias, drop=drop)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return tokens [B, N, dim]; `mask` as in `attend`."""
        x = x + self.drop_path(self.attn(self.norm1(x), mask))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x
