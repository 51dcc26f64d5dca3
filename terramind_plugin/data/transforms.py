"""Building the transforms of a configuration."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from terramind_plugin.errors import ConfigError, suggest

TRANSFORM_MODULES = ("albumentations", "albumentations.pytorch", "terratorch.datasets.transforms")
"""Modules that are searched for a transform with a short class_path."""


FLATTENING = ("FlattenTemporalIntoChannels", "UnflattenTemporalFromChannels")
"""TerraTorch's transforms for the dates of series. They are skipped: series are transformed with dates as channels."""


def build_transforms(transforms: Any, modalities: Sequence[str] = (), *, temporal: bool = False) -> Any:
    """Return transforms in which every {class_path, init_args} has become an object.

    Short class paths such as ToTensorV2 are accepted; with TerraTorch alone jsonargparse would not find them.

    Args:
        transforms: A list of transforms and such mappings, a mapping from modality to such lists, or None.
        modalities: All modalities. A modality without an entry in a mapping is only converted to a tensor.
        temporal: Whether images are series, whose dates the data set separates after the transforms.

    Raises:
        ConfigError: There is no such transform, or it does not accept these arguments.
    """
    if isinstance(transforms, Mapping):
        as_tensor = {name: [{"class_path": "ToTensorV2"}] for name in modalities}
        return {
            name: build_transforms(entries, temporal=temporal) for name, entries in {**as_tensor, **transforms}.items()
        }
    if not isinstance(transforms, list | tuple):
        return transforms
    built = [_build_transform(entry) if isinstance(entry, Mapping) else entry for entry in transforms]
    return [entry for entry in built if not temporal or type(entry).__name__ not in FLATTENING]


def _build_transform(entry: Mapping[str, Any]) -> Any:
    class_path = entry.get("class_path")
    if not isinstance(class_path, str):
        raise ConfigError(f"A transform needs a class_path, e.g. albumentations.D4; got {dict(entry)}.")
    module_name, _, class_name = class_path.rpartition(".")
    known: list[str] = []
    for name in (module_name,) if module_name else TRANSFORM_MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(f"Transform {class_path}: {error}.") from None
        if hasattr(module, class_name):
            # 'always_apply' was an argument of albumentations 1 and means p=1.
            arguments = {k: v for k, v in (entry.get("init_args") or {}).items() if k != "always_apply"}
            _check_arguments(class_path, getattr(module, class_name), arguments)
            try:
                return getattr(module, class_name)(**arguments)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"Transform {class_path}: {error}") from None
        known += [name for name in dir(module) if name[:1].isupper()]  # classes
    raise ConfigError(f"Unknown transform '{class_path}'.{suggest(class_name, known)}")


def _check_arguments(class_path: str, kind: Any, arguments: Mapping[str, Any]) -> None:
    """Raise an error if a transform lacks an argument: albumentations would only warn."""
    try:
        known = inspect.signature(kind).parameters
    except (TypeError, ValueError):  # not a class, or one without a signature
        return
    unknown = [name for name in arguments if name not in known]
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        raise ConfigError(
            f"Transform {class_path} has no argument '{unknown[0]}'.{suggest(unknown[0], known)} "
            f"It accepts: {', '.join(known)}."
        )
