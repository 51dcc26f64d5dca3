"""Builders of the registered backbones."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from terramind_plugin.backbones.tim import TerraMindTiM
from terramind_plugin.backbones.vit import TerraMindBackbone
from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.settings import read_texts
from terramind_plugin.variants import VARIANTS
from terramind_plugin.weights import load_weights

logger = logging.getLogger("terramind_plugin")

Modalities = Sequence[str | Mapping[str, int]] | Mapping[str, int] | None
Model = TypeVar("Model", bound=TerraMindBackbone)

TEXTS = ("ckpt_path", "merge_method", "padding")
"""Arguments that stay texts."""


@read_texts(*TEXTS)
def build_backbone(
    variant: str,
    modalities: Modalities = None,
    *,
    pretrained: bool = False,
    ckpt_path: str | Path | None = None,
    patch_size: int | None = None,
    padding: str | None = None,
    **architecture: Any,
) -> TerraMindBackbone:
    """Return a backbone with the weights asked for.

    Args:
        variant: Name of a published model, e.g. 'terramind_v1_base'.
        modalities: See `TerraMindBackbone`.
        pretrained: Load the published weights.
        ckpt_path: Load a local .pt, .safetensors or Lightning .ckpt file instead.
        patch_size: The published models have 16; another number is an error.
        padding: Ignored here: TerraTorch's EncoderDecoderFactory reads it as `backbone_padding`.
        architecture: Further arguments of `TerraMindBackbone`.

    Raises:
        ConfigError: An argument is unknown or not possible.
        WeightsError: The weights are not there or do not fit.
    """
    model = _build(TerraMindBackbone, variant, modalities, patch_size, architecture)
    _load(model, pretrained, ckpt_path)
    return model


@read_texts(*TEXTS)
def build_tim(
    variant: str,
    modalities: Modalities = None,
    *,
    pretrained: bool = False,
    ckpt_path: str | Path | None = None,
    patch_size: int | None = None,
    padding: str | None = None,
    **architecture: Any,
) -> TerraMindTiM:
    """Return a Thinking-in-Modalities backbone with the weights asked for, the generator's included.

    Args:
        variant: Name of the published model without '_tim', e.g. 'terramind_v1_base'.
        modalities: See `TerraMindTiM`.
        pretrained: As in `build_backbone`.
        ckpt_path: Load encoder and generator from this published file, or from one that a TiM model was saved to.
        patch_size: As in `build_backbone`.
        padding: As in `build_backbone`.
        architecture: Further arguments of `TerraMindTiM`.

    Raises:
        ConfigError: An argument is unknown or not possible.
        WeightsError: The weights are not there or do not fit.
    """
    from terramind_plugin.generators import load_encoder_decoder

    model = _build(TerraMindTiM, variant, modalities, patch_size, architecture)
    if _load(model, pretrained, ckpt_path):
        logger.info("Generator. %s", load_encoder_decoder(model.sampler.model, ckpt_path))
    else:
        logger.warning("%s_tim has random weights: what it thinks means nothing until weights are loaded.", variant)
    return model


def _build(kind: type[Model], variant: str, modalities: Modalities, patch_size: int | None, given: Any) -> Model:
    """Return a model with its initial weights, after checking the names of its arguments."""
    takes = [name for name in _arguments(kind) if name not in ("variant", "imagined", "kwargs")]
    for name in given:
        if name not in takes:
            choices = [*takes, "pretrained", "ckpt_path"]
            raise ConfigError(
                f"{variant} has no argument '{name}'.{suggest(name, choices)} It takes: {', '.join(sorted(choices))}."
            )
    numbers = VARIANTS[variant]
    if patch_size not in (None, numbers.patch_size):
        raise ConfigError(f"{variant} has patches of {numbers.patch_size} pixels, got patch_size {patch_size}.")
    return kind(numbers, modalities, **given)


def _arguments(kind: type) -> list[str]:
    """Return the names of a class's arguments and of those it hands on to its parent."""
    own = list(inspect.signature(kind).parameters)
    return [*own, *_arguments(kind.__bases__[0])] if "kwargs" in own else own


def _load(model: TerraMindBackbone, pretrained: bool, ckpt_path: str | Path | None) -> bool:
    """Load weights into the encoder and return whether any were asked for."""
    report = load_weights(model, pretrained=pretrained, ckpt_path=ckpt_path)
    if report is None:
        return False
    logger.info("%s", report)
    return True
