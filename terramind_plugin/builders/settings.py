"""Settings in their own type, however they were handed on."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import yaml

from terramind_plugin.errors import ConfigError, one_line

Parameters = ParamSpec("Parameters")
Model = TypeVar("Model")


class _Loader(yaml.SafeLoader):
    """Reads 1e-1 as a number, as jsonargparse does: PyYAML wants a point and a sign, 1.0e-1."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


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
        return yaml.load(value, Loader=_Loader)
    except yaml.YAMLError as error:
        reason = one_line(error)
        raise ConfigError(
            f"{name}: cannot read {value!r}. Write it as in a YAML file, e.g. '[S2L2A]'. {reason}"
        ) from error
