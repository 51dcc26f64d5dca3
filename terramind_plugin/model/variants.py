"""The model sizes as numbers: the published ones and the small one of this package.

Source: TerraTorch's registration of TerraMind 1.0 and the model cards of the repositories named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.model.modalities import Modality

Waves = tuple[float, float]
"""Radians per patch of the fastest wave of position embeddings, and the ratio of the fastest to the slowest wave."""
PUBLISHED_WAVES: Waves = (1.0, 10000.0)


@dataclass(frozen=True)
class Variant:
    """Architecture of a model and the location of its weights."""

    name: str
    dim: int
    """Width of a token."""
    depth: int
    """Number of encoder blocks."""
    decoder_depth: int
    """Number of decoder blocks."""
    num_heads: int
    bias: bool
    """True if the linear layers of the blocks have a bias."""
    gated: bool
    """True if the feed-forward layers are SwiGLU (else GELU)."""
    hub_repo: str | None
    """Repository on the Hugging Face hub; None for weights that ship with this package."""
    hub_file: str
    """File in that repository, or in the package's folder `shipped`."""
    mlp_ratio: float = 4.0
    patch_size: int = 16
    img_size: int = 224
    """Height and width in pixels of the images that the weights were trained on."""
    one_size: bool = False
    """True if the weights are worse on larger images: they were trained on images of one size with few patches."""
    waves: Waves = PUBLISHED_WAVES
    """Wavelengths of the position embeddings."""
    family: str = "terramind_v1"
    """Prefix of the names of the tokenizers, see `terramind_plugin.tokenizers.variants`."""
    vocab_sizes: Mapping[str, int] = field(default_factory=dict)
    """Number of token ids by modality, if it differs from the modality table."""

    def vocab_size(self, modality: Modality) -> int:
        """Return the number of token ids of a modality; 0 if it has no tokens."""
        return self.vocab_sizes.get(modality.name, modality.vocab_size or 0)


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
        # Trained by this package on simulated worlds only; not one of the published models.
        Variant(
            name="terramind_sim_nano",
            dim=128,
            depth=6,
            decoder_depth=2,
            num_heads=4,
            bias=False,
            gated=True,
            hub_repo=None,
            hub_file="terramind_sim_nano.safetensors",
            patch_size=8,
            img_size=64,
            one_size=True,
            waves=(1.5, 10.0),  # with the published waves, eight rows of patches would have almost the same embeddings
            family="terramind_sim_nano",
            vocab_sizes={
                **dict.fromkeys(("S2L2A", "S1GRD", "S1RTC", "DEM", "NDVI"), 640),
                "LULC": 256,
                "coords": 126,
            },
        ),
    )
}

SIZES = {name.rpartition("_")[2]: name for name in VARIANTS}
"""Names of the models by size, for command lines."""


def find_variant(name: str) -> Variant:
    """Return the architecture of a registry name.

    Raises:
        ConfigError: There is no such model.
    """
    if name not in VARIANTS:
        raise ConfigError(f"There is no model '{name}'.{suggest(name, VARIANTS)} Known: {', '.join(VARIANTS)}.")
    return VARIANTS[name]
