"""Additions to a backbone: adapters, a cache, and a warning of images that are too large for its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from terramind_plugin.backbones.cache.features import cache_features
from terramind_plugin.backbones.encoder import TerraMindBackbone
from terramind_plugin.backbones.lora import add_lora, read_settings

logger = logging.getLogger("terramind_plugin")
Backbone = TypeVar("Backbone", bound=TerraMindBackbone)


def wrap_backbone(
    model: Backbone,
    *,
    loaded: bool,
    lora: Mapping[str, Any] | bool | None = None,
    feature_cache: str | Path | bool | None = None,
    feature_cache_dtype: str = "bfloat16",
    feature_cache_gib: float = 20.0,
) -> Backbone:
    """Return a backbone with adapters and a cache, if asked for.

    Args:
        model: The backbone.
        loaded: Whether weights were loaded, so that they are not random.
        lora: Train low-rank adapters beside the loaded weights: rank, alpha, dropout, target (attention, mlp or all).
        feature_cache: Folder of a cache of a frozen backbone's features, so that they are computed once; True for
            'cache' below the run's root.
        feature_cache_dtype: Precision of cached features: 'bfloat16', 'float16' or 'float32'.
        feature_cache_gib: Size limit of the cache in GiB; the least recently used features are dropped first.

    Raises:
        ConfigError: An argument is not possible.
    """
    settings = read_settings(lora)
    if settings is not None:
        if not loaded:
            logger.warning(
                "%s gets adapters to random weights: set backbone_pretrained or backbone_ckpt_path. Checkpoints do "
                "not contain these weights, so they can only be used if the same seed draws the weights again.",
                model.variant.name,
            )
        add_lora(model, settings)
    if loaded and model.variant.one_size:
        # A module's attributes are typed as tensors.
        hooked: Any = model
        hooked.register_forward_pre_hook(_SizeWarning(), with_kwargs=True)
    if feature_cache:
        cache_features(model, feature_cache, feature_cache_dtype, feature_cache_gib)
    return model


class _SizeWarning:
    """Hook that warns once if images are larger than those on which a backbone's weights were trained."""

    def __init__(self) -> None:
        self.said = False

    def __call__(self, model: TerraMindBackbone, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Check the inputs of a forward pass."""
        if self.said or torch.compiler.is_compiling():
            return
        known = model.variant.img_size
        given = [*args[:1], *named.values()]
        images = [x for one in given for x in (one.values() if isinstance(one, Mapping) else [one])]
        sizes = [tuple(x.shape[-2:]) for x in images if isinstance(x, Tensor) and x.ndim >= 4]
        largest = max(sizes, key=max, default=(0, 0))
        if max(largest) <= known:
            return
        self.said = True
        logger.warning(
            "%s was trained on images of %d x %d pixels and gets %d x %d, which lowers its quality. Cut the chips of "
            "training, validation and test to %d pixels. In commands leave out --crop and --resize, or set them to %d.",
            *(model.variant.name, known, known, *largest, known, known),
        )
