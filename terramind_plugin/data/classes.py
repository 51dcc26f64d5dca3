"""Names of classes, which must agree between data, checkpoint and map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from terramind_plugin.errors import ConfigError


def compare_class_names(here: Sequence[str] | None, there: Sequence[str] | None, places: tuple[str, str]) -> None:
    """Raise an error if the class names, or their order, differ between two places.

    Args:
        here: Names in one place; None if it has none.
        there: Names in the other.
        places: Names of both places, e.g. 'the configuration'.

    Raises:
        ConfigError: The names differ; the message shows both lists.
    """
    if here and there and list(map(str, here)) != list(map(str, there)):
        raise ConfigError(
            f"class_names are {list(here)} in {places[0]}, but {list(there)} in {places[1]}: "
            f"a map would show the wrong classes. Write them as in {places[1]}."
        )


def class_names_of(task: Any, datamodule: Any) -> list[str]:
    """Return the names of the classes that a task predicts; empty if they are unknown.

    Args:
        task: A task. Its hyper-parameters take precedence over the data module.
        datamodule: A data module with the names of the configuration or of the checkpoint, or None.
    """
    hparams = getattr(task, "hparams", None) or {}
    return list(map(str, hparams.get("class_names") or getattr(datamodule, "class_names", None) or ()))
