"""Entries in TerraTorch's registries: the names that a configuration may use.

TerraTorch's registries use the word before the first underscore as the name of a source. With the sources registered
here, `terramind_v1_base` means this package and `terratorch_terramind_v1_base` means TerraTorch's own model.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from terratorch.registry import (
    BACKBONE_REGISTRY,
    DECODER_REGISTRY,
    FULL_MODEL_REGISTRY,
    NECK_REGISTRY,
    TERRATORCH_BACKBONE_REGISTRY,
    TERRATORCH_DECODER_REGISTRY,
    TERRATORCH_FULL_MODEL_REGISTRY,
    TERRATORCH_NECK_REGISTRY,
    MultiSourceRegistry,
    Registry,
)
from terratorch.utils import InvalidModelError

from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.tokenizers.variants import TOKENIZERS

SOURCE = "terramind"


class UnknownNameError(ConfigError, InvalidModelError):  # type: ignore[misc]  # TerraTorch has no types
    """Error of a name that is not registered.

    If a name has no source, an InvalidModelError makes TerraTorch try its next source.
    """

    def __init__(self, message: str) -> None:
        ConfigError.__init__(self, message)


class PluginRegistry(Registry):  # type: ignore[misc]
    """Builders by name without 'terramind_'; unknown names are passed on to TerraTorch with their full name.

    Args:
        fallback: The registry of TerraTorch for names that this package lacks.
    """

    def __init__(self, fallback: Registry) -> None:
        super().__init__()
        self.fallback = fallback

    def add(self, name: str, builder: Callable[..., Any]) -> None:
        """Register a builder.

        Args:
            name: Full name, with the source in front.
            builder: Called with the arguments of the configuration.
        """
        self._registry[name.removeprefix(f"{SOURCE}_")] = builder

    def build(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Build a name with this package's builder, or with TerraTorch's own if this package has none.

        Raises:
            UnknownNameError: Neither package has the name.
            ConfigError: The builder failed with a KeyError.
        """
        builder = self[name]
        try:
            return builder(*args, **kwargs)
        except KeyError as error:
            # TerraTorch's registries would regard a KeyError as an unknown name and hide it.
            raise ConfigError(f"Building '{SOURCE}_{name}' failed: missing key {error}.") from error

    def __iter__(self) -> Iterator[str]:
        prefix = f"{SOURCE}_"
        theirs = (name.removeprefix(prefix) for name in self.fallback if name.startswith(prefix))
        return iter(dict.fromkeys([*self._registry, *theirs]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._registry or f"{SOURCE}_{name}" in self.fallback

    def __getitem__(self, name: str) -> Callable[..., Any]:
        full = f"{SOURCE}_{name}"
        builder: Callable[..., Any] | None = self._registry.get(name)
        if builder is None and full in self.fallback:
            builder = self.fallback[full]
        if builder is not None:
            return builder
        names = sorted(f"{SOURCE}_{known}" for known in self)
        raise UnknownNameError(f"Unknown name '{full}'.{suggest(full, names)} Known: {', '.join(names)}.")


def _source(registry: MultiSourceRegistry[Any], fallback: Registry) -> PluginRegistry:
    """Return the plugin's source in one of TerraTorch's registries, added at the first call."""
    if SOURCE not in registry.keys():  # noqa: SIM118  the registry's own `in` looks for models
        registry.register_source(SOURCE, PluginRegistry(fallback))
    source: PluginRegistry = registry[SOURCE]
    return source


def _lazily(name: str, module: str, function: str, *leading: Any) -> Callable[..., Any]:
    """Return a builder that imports its function when it is called.

    Args:
        name: Name of the model that the builder returns.
        module: Module of the function, without the name of this package.
        function: Name of the function.
        leading: Arguments that precede those of the configuration.
    """

    def build(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(f"terramind_plugin.{module}"), function)(*leading, *args, **kwargs)

    build.__name__ = name
    build.__doc__ = f"Return {name}; arguments as in terramind_plugin.{module}.{function}."
    return build


def _in_series(build: Callable[..., Any]) -> Callable[..., Any]:
    """Return a builder of backbones that first prepares TerraTorch's wrapper for time series.

    The wrapper cannot be prepared when names are registered, because TerraTorch is still being imported then.
    """

    @wraps(build)
    def prepared(*args: Any, **kwargs: Any) -> Any:
        importlib.import_module("terramind_plugin.integration.temporal").install()
        return build(*args, **kwargs)

    return prepared


def register() -> None:
    """Add all names of this package to TerraTorch's registries; a second call changes nothing."""
    backbones = _source(BACKBONE_REGISTRY, TERRATORCH_BACKBONE_REGISTRY)
    for variant in VARIANTS:
        backbones.add(variant, _in_series(_lazily(variant, "builders", "build_backbone", variant)))
        tim = f"{variant}_tim"
        backbones.add(tim, _in_series(_lazily(tim, "builders", "build_tim", variant)))
    necks = _source(NECK_REGISTRY, TERRATORCH_NECK_REGISTRY)
    necks.add("terramind_pyramid", _lazily("terramind_pyramid", "integration.necks", "TokenPyramid"))
    decoders = _source(DECODER_REGISTRY, TERRATORCH_DECODER_REGISTRY)
    decoders.add("terramind_unet", _lazily("terramind_unet", "integration.decoders", "build_unet"))
    models = _source(FULL_MODEL_REGISTRY, TERRATORCH_FULL_MODEL_REGISTRY)
    for variant in VARIANTS:
        name = f"{variant}_generate"
        models.add(name, _lazily(name, "builders", "build_generator", variant))
    for tokenizer in TOKENIZERS:
        models.add(tokenizer, _lazily(tokenizer, "builders", "build_image_tokenizer", tokenizer))
