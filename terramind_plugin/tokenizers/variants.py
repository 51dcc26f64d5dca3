"""The published image tokenizers: numbers only.

Source: TerraTorch's registration of TerraMind 1.0 and the model cards of the repositories named here.
"""

from __future__ import annotations

from dataclasses import dataclass

from terramind_plugin.modalities import MODALITIES, Modality

CODE_LEVELS = (8, 8, 8, 6, 5)
CLASS_CODE_LEVELS = (7, 5, 5, 5, 5)


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
    """Architecture of one published tokenizer and where its weights are."""

    name: str
    modality: Modality
    levels: tuple[int, ...]
    """Quantisation levels of the code channels."""
    hub_repo: str
    """Repository on the Hugging Face hub."""
    hub_file: str
    """File in that repository."""
    unet: UNetSize | None
    """The diffusion decoder; None for class maps, which a vision transformer decodes."""
    dim: int = 768
    """Width of the vision transformers."""
    depth: int = 12
    num_heads: int = 12
    patch_size: int = 16
    image_size: int = 256
    """Height and width that position embeddings are made for."""

    @property
    def channels(self) -> int:
        """Channels of encoder input and decoder output: bands, or classes."""
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


TOKENIZERS: dict[str, TokenizerVariant] = {
    variant.name: variant for variant in map(_variant, ("S2L2A", "S1GRD", "S1RTC", "DEM", "LULC", "NDVI"))
}
"""The published image tokenizers, by the name they are registered under."""
