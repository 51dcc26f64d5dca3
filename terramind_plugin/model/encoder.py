"""The encoder: a stack of blocks over the tokens of all modalities."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from terramind_plugin.model.layers import Block, LayerNorm
from terramind_plugin.model.variants import Variant


def build_blocks(
    variant: Variant, *, drop_rate: float = 0.0, attn_drop_rate: float = 0.0, drop_path_rate: float = 0.0
) -> nn.ModuleList:
    """Return the encoder blocks of a variant; drop path grows linearly from 0 to `drop_path_rate` with depth."""
    return nn.ModuleList(
        Block(
            variant.dim,
            variant.num_heads,
            mlp_ratio=variant.mlp_ratio,
            bias=variant.bias,
            gated=variant.gated,
            drop=drop_rate,
            attn_drop=attn_drop_rate,
            drop_path=drop_path_rate * index / max(variant.depth - 1, 1),
        )
        for index in range(variant.depth)
    )


def run_blocks(
    x: Tensor,
    blocks: Sequence[Block] | nn.ModuleList,
    norm: LayerNorm,
    *,
    mask: Tensor | None = None,
    keep: Collection[int],
    recompute: bool = False,
) -> list[Tensor]:
    """Return the outputs of the kept blocks, each [B, N, dim]; the output of the last block is normalised.

    Args:
        x: Tokens [B, N, dim].
        blocks: The encoder.
        norm: Norm of the last block's output.
        mask: Boolean [B, N]; True means that the token may be attended to.
        keep: Indices of the blocks whose outputs are returned, in ascending order.
        recompute: Recompute activations in the backward pass instead of storing them.
    """
    attend_to = None if mask is None else mask[:, None, None, :]
    kept: list[Tensor] = []
    last = max(keep)
    for index, block in enumerate(blocks):
        if index > last:
            break
        if recompute and torch.is_grad_enabled():
            x = checkpoint(block, x, attend_to, use_reentrant=False)
        else:
            x = block(x, attend_to)
        if index in keep:
            kept.append(norm(x) if index == len(blocks) - 1 else x)
    return kept


def initialise(module: nn.Module) -> None:
    """Initialise the weights of a model in place, as masked autoencoders do.

    Linear layers are Xavier uniform, the three parts of qkv separately; biases are zero; modality embeddings and
    register tokens, which the model owns as plain parameters, are normal with standard deviation 0.02.
    Source: MAE (arXiv:2111.06377), as in 4M.

    Args:
        module: Any module of this package.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            if name.endswith("qkv"):
                for part in child.weight.data.chunk(3):
                    nn.init.xavier_uniform_(part)
            else:
                nn.init.xavier_uniform_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
    for name, parameter in module.named_parameters():
        if name.endswith(("mod_emb", "register_tokens", "missing_mod_token")):
            nn.init.normal_(parameter, std=0.02)
