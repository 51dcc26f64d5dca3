"""What can be put around a backbone: adapters and a cache."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from terramind_plugin.backbones.encoder import TerraMindBackbone
from terramind_plugin.backbones.lora import add_lora, read_settings
from terramind_plugin.cache.features import cache_features

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
    """Return a backbone, with adapters and a cache around it where asked for.

    Args:
        model: The backbone.
        loaded: Whether it has more than random weights.
        lora: Train low-rank adapters beside the loaded weights: rank, alpha, dropout, target (attention, mlp or all).
        feature_cache: Folder in which the features of a frozen backbone are kept, so that none is computed twice; True
            for 'cache' under the run's root.
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
                "not hold these weights, and fit them only if the same seed draws them again.",
                model.variant.name,
            )
        add_lora(model, settings)
    if feature_cache:
        cache_features(model, feature_cache, feature_cache_dtype, feature_cache_gib)
    return model
