"""The published model sizes: numbers only.

Source: TerraTorch's registration of TerraMind 1.0 and the model cards of the repositories named here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """Architecture of one published model and where its weights are."""

    name: str
    dim: int
    """Width of a token."""
    depth: int
    """Number of encoder blocks."""
    decoder_depth: int
    """Number of decoder blocks."""
    num_heads: int
    bias: bool
    """Whether the linear layers of the blocks have a bias."""
    gated: bool
    """Whether the feed-forward layers are SwiGLU (else GELU)."""
    hub_repo: str
    """Repository on the Hugging Face hub."""
    hub_file: str
    """File in that repository."""
    mlp_ratio: float = 4.0
    patch_size: int = 16
    img_size: int = 224


def _variant(
    size: str, dim: int, depth: int, decoder_depth: int, num_heads: int, *, bias: bool, gated: bool
) -> Variant:
    return Variant(
        name=f"terramind_v1_{size}",
        dim=dim,
        depth=depth,
        decoder_depth=decoder_depth,
        num_heads=num_heads,
        bias=bias,
        gated=gated,
        hub_repo=f"ibm-esa-geospatial/TerraMind-1.0-{size}",
        hub_file=f"TerraMind_v1_{size}.pt",
    )


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        _variant("tiny", 192, 12, 4, 3, bias=True, gated=False),
        _variant("small", 384, 12, 6, 6, bias=True, gated=False),
        _variant("base", 768, 12, 12, 12, bias=False, gated=True),
        _variant("large", 1024, 24, 24, 16, bias=False, gated=True),
    )
}
