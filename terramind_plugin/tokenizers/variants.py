"""Architectures of the image tokenizers: the published ones and the small ones of this package.

Source: TerraTorch's registration of TerraMind 1.0 and the model cards of the repositories named here.
"""

from __future__ import annotations

from dataclasses import dataclass

from terramind_plugin.model.modalities import MODALITIES, Modality

CODE_LEVELS = (8, 8, 8, 6, 5)
CLASS_CODE_LEVELS = (7, 5, 5, 5, 5)
NANO_CODE_LEVELS = (8, 5, 4, 4)
NANO_CLASS_CODE_LEVELS = (4, 4, 4, 4)


@dataclass(frozen=True)
class UNetSize:
    """Architecture of a diffusion decoder."""

    patch_size: int = 4
    width: int = 256
    """Channels of the first level."""
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    """Channels of the levels, as multiples of `width`."""
    blocks: int = 3
    """Residual blocks of a level."""
    attention_at: tuple[int, ...] = (4, 8)
    """Downsampling rates at which there is attention."""


@dataclass(frozen=True)
class TokenizerVariant:
    """Architecture of a tokenizer and location of its weights."""

    name: str
    modality: Modality
    levels: tuple[int, ...]
    """Quantisation levels of the code channels."""
    hub_repo: str | None
    """Repository on the Hugging Face hub; None for weights that ship with this package."""
    hub_file: str
    """File in that repository, or in the package's folder `shipped`."""
    unet: UNetSize | None
    """The diffusion decoder; None for class maps, which a vision transformer decodes."""
    dim: int = 768
    """Width of the vision transformers."""
    depth: int = 12
    num_heads: int = 12
    patch_size: int = 16
    image_size: int = 256
    """Height and width in pixels of the images for which the position embeddings are made."""
    largest: float = 1.0
    """Bound of the absolute values of decoded images, in standard deviations."""
    family: str = "terramind_v1"
    """Family of the models that use the tokenizer; it is the beginning of the name."""

    @property
    def channels(self) -> int:
        """Return the number of channels of encoder input and decoder output: bands, or classes."""
        return len(self.modality.class_names) or len(self.modality.bands)


def _variant(modality: str) -> TokenizerVariant:
    classes = MODALITIES[modality].kind == "classes"
    return TokenizerVariant(
        name=f"terramind_v1_tokenizer_{modality.lower()}",
        modality=MODALITIES[modality],
        levels=CLASS_CODE_LEVELS if classes else CODE_LEVELS,
        hub_repo=f"ibm-esa-geospatial/TerraMind-1.0-Tokenizer-{modality}",
        hub_file=f"TerraMind_Tokenizer_{modality}.pt",
        unet=None if classes else UNetSize(),
    )


def _nano(modality: str) -> TokenizerVariant:
    classes = MODALITIES[modality].kind == "classes"
    return TokenizerVariant(
        name=f"terramind_sim_nano_tokenizer_{modality.lower()}",
        modality=MODALITIES[modality],
        levels=NANO_CLASS_CODE_LEVELS if classes else NANO_CODE_LEVELS,
        hub_repo=None,
        hub_file=f"terramind_sim_nano_tokenizer_{modality.lower()}.safetensors",
        unet=None if classes else UNetSize(width=32, multipliers=(1, 2), blocks=1, attention_at=()),
        dim=64,
        depth=2,
        num_heads=2,
        patch_size=8,
        image_size=64,
        largest=4.0,
        family="terramind_sim_nano",
    )


_TOKENIZED = ("S2L2A", "S1GRD", "S1RTC", "DEM", "LULC", "NDVI")
TOKENIZERS: dict[str, TokenizerVariant] = {
    variant.name: variant for build in (_variant, _nano) for variant in map(build, _TOKENIZED)
}
"""Image tokenizers by registered name."""


def tokenizers_of(family: str = "terramind_v1") -> dict[str, TokenizerVariant]:
    """Return the tokenizers of a family of models by modality."""
    return {variant.modality.name: variant for variant in TOKENIZERS.values() if variant.family == family}
