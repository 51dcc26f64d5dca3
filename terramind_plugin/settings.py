"""Settings in their own type, however they were handed on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import yaml

from terramind_plugin.errors import ConfigError, one_line

Parameters = ParamSpec("Parameters")
Model = TypeVar("Model")


def read_texts(*kept: str) -> Callable[[Callable[Parameters, Model]], Callable[Parameters, Model]]:
    """Return a decorator of builders that reads arguments given as texts the way YAML does.

    TerraTorch hands on `--model...backbone_pretrained false` as the text 'false'.

    Args:
        kept: Arguments that are texts, such as paths, if given by name.
    """

    def decorate(build: Callable[Parameters, Model]) -> Callable[Parameters, Model]:
        @functools.wraps(build)
        def typed(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Model:
            given: dict[str, Any] = {
                name: value if name in kept else read_text(name, value) for name, value in kwargs.items()
            }
            return build(*[read_text("an argument", value) for value in args], **given)

        return typed

    return decorate


def read_text(name: str, value: Any) -> Any:
    """Return what a text says in YAML, and anything else as it is.

    Args:
        name: Of the setting, for the message.
        value: The setting.

    Raises:
        ConfigError: The text is not YAML.
    """
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        reason = one_line(error)
        raise ConfigError(
            f"{name}: cannot read {value!r}. Write it as in a YAML file, e.g. '[S2L2A]'. {reason}"
        ) from error
