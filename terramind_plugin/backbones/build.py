"""Builders of the registered backbones."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from terramind_plugin.backbones.vit import TerraMindBackbone
from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.variants import VARIANTS
from terramind_plugin.weights import load_weights

logger = logging.getLogger("terramind_plugin")


def build_backbone(
    variant: str,
    modalities: Sequence[str | Mapping[str, int]] | Mapping[str, int] | None = None,
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
    known = [name for name in inspect.signature(TerraMindBackbone).parameters if name != "variant"]
    for name in architecture:
        if name not in known:
            choices = [*known, "pretrained", "ckpt_path"]
            raise ConfigError(
                f"{variant} has no argument '{name}'.{suggest(name, choices)} It takes: {', '.join(sorted(choices))}."
            )
    architecture = {name: _from_command_line(name, value) for name, value in architecture.items()}
    modalities, pretrained = _from_command_line("modalities", modalities), _from_command_line("pretrained", pretrained)
    numbers = VARIANTS[variant]
    if patch_size not in (None, numbers.patch_size):
        raise ConfigError(f"{variant} has patches of {numbers.patch_size} pixels, got patch_size {patch_size}.")
    model = TerraMindBackbone(numbers, modalities, **architecture)
    report = load_weights(model, pretrained=pretrained, ckpt_path=ckpt_path)
    if report is not None:
        logger.info("%s", report)
    return model


def _from_command_line(name: str, value: Any) -> Any:
    """Return a value in its own type: TerraTorch hands on `--model...backbone_pretrained false` as a text."""
    if not isinstance(value, str) or name == "merge_method":
        return value
    return yaml.safe_load(value)
