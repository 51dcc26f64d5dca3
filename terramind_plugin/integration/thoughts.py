"""Pictures of what a thinking model imagines."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from numpy.typing import NDArray
from torch import Tensor, nn

from terramind_plugin.backbones.tim import TerraMindTiM
from terramind_plugin.builders.tokenizers import build_image_tokenizer
from terramind_plugin.model.modalities import resolve
from terramind_plugin.model.weights import SHIPPED
from terramind_plugin.plotting import modality_picture
from terramind_plugin.tokenizers.fsq import FiniteScalarQuantizer
from terramind_plugin.tokenizers.image import ImageTokenizer
from terramind_plugin.tokenizers.variants import TokenizerVariant, tokenizers_of

logger = logging.getLogger("terramind_plugin")


def find_thinker(model: nn.Module) -> TerraMindTiM | None:
    """Return the thinking backbone inside a model, if there is one."""
    return next((module for module in model.modules() if isinstance(module, TerraMindTiM)), None)


class ThoughtPainter:
    """Draws imagined token ids: land cover as a map where its tokenizer is at hand, all else by its codes.

    Codes that are alike have colours that are alike: the first three numbers of a code are red, green and blue.

    Args:
        tokenizer_ckpt_paths: Files with tokenizer weights, by name of the modality. Without one the published weights
            are used if they are in the hub's cache; nothing is downloaded.
    """

    def __init__(self, tokenizer_ckpt_paths: Mapping[str, str | Path] | None = None) -> None:
        self.paths = {resolve(name).name: path for name, path in (tokenizer_ckpt_paths or {}).items()}
        self._tokenizers: dict[str, ImageTokenizer | None] = {}

    def paint(self, backbone: TerraMindTiM, index: int) -> dict[str, NDArray]:
        """Return pictures [rows, columns, 3] in 0..1 by title, of what was imagined last for one sample.

        Args:
            backbone: After a forward pass.
            index: Of the sample in the batch.
        """
        pictures = {}
        for target, name in backbone.thought_names.items():
            modality = backbone.targets[target]
            if modality.kind == "sequence" or name not in backbone.thoughts:
                continue
            ids = backbone.thoughts[name][index]
            variant = tokenizers_of(backbone.variant.family)[modality.name]
            tokenizer = self._tokenizer(variant) if modality.kind == "classes" else None
            if tokenizer is None:
                pictures[f"{modality.name} (thought, tokens)"] = paint_codes(ids, variant)
            else:
                scores = tokenizer.to(ids.device).decode_tokens(ids[None])[0]
                pictures[f"{modality.name} (thought)"] = modality_picture(scores.argmax(dim=0), modality.name)
        return pictures

    def _tokenizer(self, variant: TokenizerVariant) -> ImageTokenizer | None:
        """Return the decoding half of a tokenizer, or None where its weights are not at hand."""
        if variant.name not in self._tokenizers:
            path = self.paths.get(variant.modality.name)
            if path is None:
                path = _at_hand(variant)
            if path is None:
                logger.info("%s: its tokenizer is not at hand, so thoughts are drawn as tokens.", variant.modality.name)
                self._tokenizers[variant.name] = None
            else:
                tokenizer = build_image_tokenizer(variant.name, ckpt_path=path, encoder=False)
                self._tokenizers[variant.name] = tokenizer.requires_grad_(False)
        return self._tokenizers[variant.name]


def _at_hand(variant: TokenizerVariant) -> str | Path | None:
    """Return the file of a tokenizer's weights if no download is needed for it."""
    if variant.hub_repo is None:
        shipped = SHIPPED / variant.hub_file
        return shipped if shipped.is_file() else None
    cached = try_to_load_from_cache(variant.hub_repo, variant.hub_file)
    return cached if isinstance(cached, str) else None


def paint_codes(ids: Tensor, variant: TokenizerVariant) -> NDArray:
    """Return a picture [rows, columns, 3] in 0..1 of token ids [rows, columns]."""
    with torch.no_grad():
        codes = FiniteScalarQuantizer(variant.levels).codes(ids.cpu()[None])
    return np.asarray(codes[0, :3].permute(1, 2, 0), dtype=np.float32)
