"""Vision transformers of the tokenizers: from an image to latent features, and from codes to class logits.

Source: ViT-VQGAN (arXiv:2110.04627) as in 4M (arXiv:2312.06647); parameter names are those of the published
checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from terramind_plugin.model.embeddings import sincos_positions
from terramind_plugin.model.layers import Block
from terramind_plugin.tokenizers.variants import TokenizerVariant


class NormBiasBlock(Block):
    """The model's transformer block, with norms that have a learnt bias.

    Args:
        dim: Width of a token.
        num_heads: Number of attention heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads, mlp_ratio=4, bias=True, gated=False)
        for name in ("norm1", "norm2"):
            self.add_module(name, nn.LayerNorm(dim, eps=1e-6))


class TanhMlp(nn.Module):
    """Feed-forward layer with tanh, which bounds the features next to the quantiser.

    Args:
        dim: Width of a token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens [B, N, dim]."""
        out: Tensor = self.fc2(self.fc1(x).tanh())
        return out


class VisionTransformer(nn.Module):
    """Blocks over a grid of tokens with fixed position embeddings, and a last feed-forward layer.

    Args:
        variant: Architecture. Position embeddings are interpolated for images of another size.
    """

    pos_emb: Tensor

    def __init__(self, variant: TokenizerVariant) -> None:
        super().__init__()
        side = variant.image_size // variant.patch_size
        positions = rearrange(sincos_positions(side, side, variant.dim), "1 (h w) d -> 1 d h w", h=side)
        self.register_buffer("pos_emb", positions.contiguous())
        self.blocks = nn.ModuleList(NormBiasBlock(variant.dim, variant.num_heads) for _ in range(variant.depth))
        self.norm_mlp = nn.LayerNorm(variant.dim, eps=1e-6)
        self.post_mlp = TanhMlp(variant.dim)

    def transform(self, x: Tensor) -> Tensor:
        """Return tokens [B, rows * columns, dim] of a feature map [B, dim, rows, columns], before the last layer."""
        positions = self.pos_emb
        if positions.shape[-2:] != x.shape[-2:]:
            positions = F.interpolate(positions, size=x.shape[-2:], mode="bicubic", align_corners=False)
        x = (x + positions).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return x

    def finish(self, x: Tensor) -> Tensor:
        """Return tokens [B, N, dim] after the last feed-forward layer."""
        x = x + self.post_mlp(self.norm_mlp(x))
        return x


class ImageEncoder(VisionTransformer):
    """Vision transformer from an image to a map of latent features.

    Args:
        variant: Architecture.
    """

    def __init__(self, variant: TokenizerVariant) -> None:
        super().__init__(variant)
        size = variant.patch_size
        self.proj = nn.Conv2d(variant.channels, variant.dim, kernel_size=size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        """Return features [B, dim, H / patch, W / patch], at least float32, of an image [B, channels, H, W]."""
        patches = self.proj(x)
        tokens = self.transform(patches)
        # Full precision even under autocast, because half precision would change the rounding of codes.
        with torch.autocast(x.device.type, enabled=False):
            tokens = self.finish(tokens.to(self.norm_mlp.weight.dtype))
        return tokens.transpose(1, 2).reshape(patches.shape)


class ClassDecoder(VisionTransformer):
    """Vision transformer from a feature map to class logits.

    Args:
        variant: Architecture.
    """

    def __init__(self, variant: TokenizerVariant) -> None:
        super().__init__(variant)
        self.patch_size = variant.patch_size
        self.out_proj = nn.Linear(variant.dim, variant.channels * variant.patch_size**2)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes, rows * patch, columns * patch] of features [B, dim, rows, columns]."""
        logits = self.out_proj(self.finish(self.transform(x)))
        size = self.patch_size
        image: Tensor = rearrange(logits, "b (h w) (c p q) -> b c (h p) (w q)", h=x.shape[-2], p=size, q=size)
        return image
