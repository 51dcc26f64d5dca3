"""Builders of the registered backbones."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from terramind_plugin.backbones.encoder import TerraMindBackbone
from terramind_plugin.backbones.lora import add_lora, read_settings
from terramind_plugin.backbones.tim import TerraMindTiM
from terramind_plugin.builders.settings import read_texts
from terramind_plugin.errors import ConfigError, WeightsError, suggest
from terramind_plugin.model.encoder_decoder import token_key
from terramind_plugin.model.modalities import resolve
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.model.weights import fetch_file, load_weights, read_tensors
from terramind_plugin.tokenizers.weights import load_tokenizer

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
    lora: Mapping[str, Any] | bool | None = None,
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
        lora: Train low-rank adapters beside the loaded weights: rank, alpha, dropout, target (attention, mlp or all).
        patch_size: The published models have 16; another number is an error.
        padding: Ignored here: TerraTorch's EncoderDecoderFactory reads it as `backbone_padding`.
        architecture: Further arguments of `TerraMindBackbone`.

    Raises:
        ConfigError: An argument is unknown or not possible.
        WeightsError: The weights are not there or do not fit.
    """
    model = _build(TerraMindBackbone, variant, modalities, patch_size, architecture)
    _adapt(model, lora, loaded=_load(model, pretrained, ckpt_path))
    return model


@read_texts(*TEXTS)
def build_tim(
    variant: str,
    modalities: Modalities = None,
    *,
    pretrained: bool = False,
    ckpt_path: str | Path | None = None,
    tim_tokenizer_ckpt_paths: Mapping[str, str | Path] | None = None,
    lora: Mapping[str, Any] | bool | None = None,
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
        tim_tokenizer_ckpt_paths: Files with the weights of the tokenizers of `tim_given`, by modality; without one they
            come from `ckpt_path` if it holds them, else the published ones with `pretrained`.
        lora: As in `build_backbone`; the generator gets none.
        patch_size: As in `build_backbone`.
        padding: As in `build_backbone`.
        architecture: Further arguments of `TerraMindTiM`.

    Raises:
        ConfigError: An argument is unknown or not possible.
        WeightsError: The weights are not there or do not fit.
    """
    model = _build(TerraMindTiM, variant, modalities, patch_size, architecture)
    loaded = _load(model, pretrained, ckpt_path)
    if loaded:
        _load_generator(model, ckpt_path)
    else:
        logger.warning("%s_tim has random weights: what it thinks means nothing until weights are loaded.", variant)
    _load_tokenizers(model, pretrained, ckpt_path, tim_tokenizer_ckpt_paths or {})
    _adapt(model, lora, loaded=loaded)
    return model


def build_by_name(name: str, **arguments: Any) -> TerraMindBackbone:
    """Return the backbone that a configuration calls by its registered name.

    Args:
        name: E.g. 'terramind_v1_base' or 'terramind_v1_base_tim'.
        arguments: As in `build_backbone` or `build_tim`.

    Raises:
        ConfigError: There is no such backbone, or an argument is not possible.
        WeightsError: The weights are not there or do not fit.
    """
    variant = name.removesuffix("_tim")
    if variant not in VARIANTS:
        names = [*VARIANTS, *(f"{known}_tim" for known in VARIANTS)]
        raise ConfigError(f"Unknown backbone '{name}'.{suggest(name, names)} Known: {', '.join(names)}.")
    return (build_backbone if name == variant else build_tim)(variant, **arguments)


def _build(kind: type[Model], variant: str, modalities: Modalities, patch_size: int | None, given: Any) -> Model:
    """Return a model with its initial weights, after checking the names of its arguments."""
    takes = [name for name in _arguments(kind) if name not in ("variant", "imagined", "kwargs")]
    for name in given:
        if name not in takes:
            own = ["tim_tokenizer_ckpt_paths"] if kind is TerraMindTiM else []
            choices = [*takes, "pretrained", "ckpt_path", "lora", *own]
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


def _load_generator(model: TerraMindTiM, ckpt_path: str | Path | None) -> None:
    """Load weights into the generator, if there is one."""
    from terramind_plugin.builders.generators import load_encoder_decoder

    if model.sampler is not None:
        logger.info("Generator. %s", load_encoder_decoder(model.sampler.model, ckpt_path))


def _load_tokenizers(
    model: TerraMindTiM, pretrained: bool, ckpt_path: str | Path | None, paths: Mapping[str, str | Path]
) -> None:
    """Load weights into the tokenizers of what is given.

    Raises:
        ConfigError: A path is of a modality that is not given.
        WeightsError: The weights are not there or do not fit.
    """
    tokenizers = {} if model.given_tokens is None else model.given_tokens.tokenizers()
    files = {token_key(resolve(name))[0]: path for name, path in paths.items()}
    names = [tokenizer.variant.modality.name for tokenizer in tokenizers.values()]
    if not set(files) <= set(tokenizers):
        raise ConfigError(f"tim_tokenizer_ckpt_paths names {list(paths)}; tim_given has {names}.")
    stored = read_tensors(ckpt_path)[1] if tokenizers and ckpt_path is not None else {}
    for (key, tokenizer), name in zip(tokenizers.items(), names, strict=True):
        advice = f"set backbone_tim_tokenizer_ckpt_paths: {{{name}: /path/to/{tokenizer.variant.hub_file}}}."
        path = files.get(key)
        if path is None and any(f"{key}.quant_proj.weight" in stored_name for stored_name in stored):
            path = ckpt_path
        if path is None and pretrained:
            path = fetch_file(tokenizer.variant.name, tokenizer.variant.hub_repo, tokenizer.variant.hub_file, advice)
        if path is not None:
            logger.info("Tokenizer of %s. %s", name, load_tokenizer(tokenizer, path))
        elif ckpt_path is not None:
            raise WeightsError(f"{ckpt_path} holds no tokenizer of {name}, which tim_given needs: {advice}")


def _adapt(model: TerraMindBackbone, lora: Mapping[str, Any] | bool | None, *, loaded: bool) -> None:
    """Add adapters if asked for."""
    settings = read_settings(lora)
    if settings is None:
        return
    if not loaded:
        logger.warning(
            "%s gets adapters to random weights: set backbone_pretrained or backbone_ckpt_path. Checkpoints do not "
            "hold these weights, and fit them only if the same seed draws them again.",
            model.variant.name,
        )
    add_lora(model, settings)
