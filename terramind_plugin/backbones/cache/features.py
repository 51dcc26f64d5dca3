"""A cache around a frozen backbone, so that its features are computed once."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from terramind_plugin.backbones.cache.cache import Cache, Tensors
from terramind_plugin.backbones.cache.keys import list_tensors
from terramind_plugin.errors import ConfigError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
Features = list[Any]
"""For each layer a tensor [B, N, D], or such tensors by name."""


class Cacheable(Protocol):
    """Interface of a backbone that the cache needs, such as `TerraMindBackbone`."""

    feature_cache: Cache | None

    def compute(self, inputs: Tensors, present: Tensors | None) -> Features:
        """Return features of images [B, bands, H, W] by modality."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return everything that features depend on, apart from weights and inputs."""
        ...


def cache_features(model: Cacheable, where: str | Path | bool, dtype: str, gib: float) -> None:
    """Put a cache around a backbone's features, in place.

    Cached features are rounded: bfloat16 is off by at most 1 part in 256, float16 by 1 part in 2048 with a largest
    value of 65504, float32 is exact. A feature is rounded whether it was in the cache or not, so that a run gives the
    same losses with an empty and with a full cache.

    Args:
        model: A `TerraMindBackbone`, which must be frozen in each forward pass.
        where: Folder of the cache, or True for 'cache' under the run's root.
        dtype: Key of `DTYPES`.
        gib: Size limit in GiB.

    Raises:
        ConfigError: An argument is not possible.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"feature_cache_dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    model.feature_cache = Cache(where, "features", gib)
    model.compute = partial(_recall, model, DTYPES[dtype])  # type: ignore[method-assign]


def _recall(model: Any, dtype: torch.dtype, inputs: Tensors, present: Tensors | None) -> Features:
    """Return the features of a batch, rounded, those of known samples from the cache.

    Raises:
        ConfigError: A part of the backbone trains or uses dropout, so that features change, or a feature is too large
            for float16.
    """
    check_frozen(model)

    def compute(some: Tensors, have: Tensors | None, _: list[bytes]) -> Tensors:
        features = type(model).compute(model, some, have)
        return {name: _round(x, dtype) for name, x in flatten(features).items()}

    dtype_of_model = next(model.parameters()).dtype
    if model.feature_cache.paused and torch.is_grad_enabled():
        return restore(compute(inputs, present, []), dtype_of_model)
    # Modalities that all samples of a batch lack are not in its features.
    settings = {"what": "features", "dtype": dtype, "inputs of the batch": list(inputs), **model.describe()}
    batch = model.feature_cache.recall(model, inputs, present, settings, compute)
    return restore(batch, dtype_of_model)


def _round(x: Tensor, dtype: torch.dtype) -> Tensor:
    rounded = x.to(dtype)
    if dtype == torch.float16 and not torch.equal(rounded.isinf(), x.isinf()):
        raise ConfigError("A feature is larger than 65504, the maximum of feature_cache_dtype float16. Use bfloat16.")
    return rounded


def check_frozen(model: nn.Module) -> None:
    """Raise a ConfigError with the reason if a backbone's features may change."""
    if model.training or any(x.requires_grad for x in list_tensors(model)):
        training = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        reason = (
            f"{len(training)} of its parameters train, e.g. {training[0]}"
            if training
            else "it is in training mode, with dropout"
        )
        raise ConfigError(
            f"feature_cache needs a frozen backbone, but {reason}. Set freeze_backbone: true in "
            "model.init_args, without backbone_lora and BackboneUnfreeze, or leave backbone_feature_cache out."
        )


def flatten(features: Features) -> dict[str, Tensor]:
    """Return all tensors of the layers by 'layer' or 'layer/number/name'."""
    flat: dict[str, Tensor] = {}
    for layer, x in enumerate(features):
        if isinstance(x, Tensor):
            flat[str(layer)] = x
        else:
            flat.update({f"{layer}/{number:03d}/{name}": part for number, (name, part) in enumerate(x.items())})
    return flat


def restore(batch: Mapping[str, Tensor], dtype: torch.dtype) -> Features:
    """Return the layers of a result of `flatten`, in a precision."""
    layers: dict[int, Any] = {}
    for key in sorted(batch, key=lambda key: [int(part) for part in key.split("/")[:2]]):
        layer, *rest = key.split("/", 2)
        x = batch[key].to(dtype)
        if rest:
            layers.setdefault(int(layer), {})[rest[1]] = x
        else:
            layers[int(layer)] = x
    return [layers[layer] for layer in sorted(layers)]
