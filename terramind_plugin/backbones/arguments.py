"""Conversion of builders' arguments from configurations and command lines: texts, and former names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from terramind_plugin.errors import ConfigError, one_line

Model = TypeVar("Model")

FORMER_ARGUMENTS = {
    "feature_memo": "feature_cache",
    "feature_memo_dtype": "feature_cache_dtype",
    "feature_memo_gib": "feature_cache_gib",
    "tim_memo": "tim_cache",
    "tim_memo_gib": "tim_cache_gib",
    "tim_given": "tim_observed",
}
"""Former arguments of backbones and their present names."""


def read_text(name: str, value: Any) -> Any:
    """Return the value of a text that is parsed as YAML, and any other value unchanged.

    Args:
        name: Argument that has the value, for the message.
        value: Text or value. TerraTorch passes `--model...backbone_pretrained false` on as the text 'false'.

    Raises:
        ConfigError: The text is not YAML.
    """
    if not isinstance(value, str):
        return value
    from jsonargparse import get_loader

    try:
        return get_loader("yaml")(value)
    except Exception as error:  # of the YAML library that jsonargparse uses
        raise ConfigError(
            f"{name}: cannot read {value!r}. Write it as in a YAML file, e.g. '[S2L2A]'. {one_line(error)}"
        ) from error


def read_texts(*kept: str) -> Callable[[Callable[..., Model]], Callable[..., Model]]:
    """Return a decorator of builders that reads texts as YAML, except for the named arguments, such as paths.

    The first positional argument is the name of a model, and is not parsed.
    """

    def decorate(build: Callable[..., Model]) -> Callable[..., Model]:
        @functools.wraps(build)
        def typed(*args: Any, **kwargs: Any) -> Model:
            named = {name: value if name in kept else read_text(name, value) for name, value in kwargs.items()}
            return build(*args[:1], *[read_text("an argument", value) for value in args[1:]], **named)

        return typed

    return decorate
