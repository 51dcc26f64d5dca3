"""Builders of the tokenizers: architecture and weights put together."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from terramind_plugin.builders.settings import read_texts
from terramind_plugin.errors import ConfigError, WeightsNotFoundError, suggest
from terramind_plugin.model.weights import fetch_file
from terramind_plugin.tokenizers.coordinates import (
    COORDS_VOCABULARIES,
    CoordsTokenizer,
    Vocabulary,
    build_coords_vocabulary,
)
from terramind_plugin.tokenizers.variants import TOKENIZERS, TokenizerVariant
from terramind_plugin.tokenizers.weights import load_tokenizer

if TYPE_CHECKING:
    from terramind_plugin.tokenizers.image import ImageTokenizer

logger = logging.getLogger("terramind_plugin")


@read_texts("ckpt_path")
def build_image_tokenizer(
    name: str,
    *,
    pretrained: bool = False,
    ckpt_path: str | Path | None = None,
    encoder: bool = True,
    decoder: bool = True,
) -> ImageTokenizer:
    """Return an image tokenizer with the weights asked for, in evaluation mode.

    Args:
        name: Name of a published tokenizer, e.g. 'terramind_v1_tokenizer_s2l2a'.
        pretrained: Load the published weights.
        ckpt_path: Load a local .pt, .safetensors or Lightning .ckpt file instead; it goes before `pretrained`.
        encoder: Build what `encode` and `tokenize` need.
        decoder: Build what `decode_tokens` needs.

    Raises:
        ConfigError: The name is unknown, or an argument is not possible.
        WeightsError: The weights are not there or do not fit.
    """
    from terramind_plugin.tokenizers.image import ImageTokenizer

    if name not in TOKENIZERS:
        raise ConfigError(f"Unknown tokenizer '{name}'.{suggest(name, TOKENIZERS)} Known: {', '.join(TOKENIZERS)}.")
    for argument, value in (("pretrained", pretrained), ("encoder", encoder), ("decoder", decoder)):
        if not isinstance(value, bool):
            raise ConfigError(f"{argument} of {name} must be true or false, got {value!r}.")
    variant = TOKENIZERS[name]
    if ckpt_path is None and pretrained:
        ckpt_path = _fetch_tokenizer(variant)
    model = ImageTokenizer(variant, encoder=encoder, decoder=decoder)
    if ckpt_path is not None:
        logger.info("%s", load_tokenizer(model, ckpt_path))
    return model


def build_coords_tokenizer(
    tokenizer_file: str | Path | None = None, family: str = "terramind_v1", *, needed: bool = True
) -> CoordsTokenizer:
    """Return the tokenizer of coordinates.

    Args:
        tokenizer_file: A local vocabulary file; by default that of the family.
        family: Which models it is for, 'terramind_v1' or 'terramind_sim_nano'.
        needed: Whether token ids must mean what they mean in the published weights. If not, and the published
            vocabulary cannot be had, one of the same resolution is built.

    Raises:
        WeightsError: The vocabulary is not there or is none.
    """
    if tokenizer_file is not None:
        return CoordsTokenizer(tokenizer_file)
    try:
        return CoordsTokenizer(_fetch_vocabulary(COORDS_VOCABULARIES[family]))
    except WeightsNotFoundError:
        if needed:
            raise
        logger.warning(
            "The published vocabulary of coordinates is not here; token ids are numbered anew, which only suits "
            "random weights. Set tokenizer_file before weights are loaded."
        )
        return CoordsTokenizer(build_coords_vocabulary())


def _fetch_tokenizer(variant: TokenizerVariant) -> Path:
    otherwise = (
        f"pass ckpt_path: /path/to/{variant.hub_file}\nor build a tokenizer with random weights by pretrained: false."
    )
    return fetch_file(variant.name, variant.hub_repo, variant.hub_file, otherwise)


def _fetch_vocabulary(vocabulary: Vocabulary) -> Path:
    otherwise = f"pass tokenizer_file: /path/to/{vocabulary.hub_file}"
    return fetch_file(vocabulary.name, vocabulary.hub_repo, vocabulary.hub_file, otherwise)
