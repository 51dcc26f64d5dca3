"""Names of classes, the same from the data over the checkpoint to the map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from terramind_plugin.errors import ConfigError


def compare_class_names(here: Sequence[str] | None, there: Sequence[str] | None, places: tuple[str, str]) -> None:
    """Raise if classes have other names or another order in one place than in another.

    Args:
        here: Names in one place; None if it has none.
        there: Names in the other.
        places: What to call both, e.g. 'the configuration'.

    Raises:
        ConfigError: The message shows both.
    """
    if here and there and list(map(str, here)) != list(map(str, there)):
        raise ConfigError(
            f"class_names are {list(here)} in {places[0]}, {list(there)} in {places[1]}: "
            f"a map would be read with the wrong classes. Write them as in {places[1]}."
        )


def class_names_of(task: Any, datamodule: Any) -> list[str]:
    """Return the names of the classes that a task predicts; empty if they are unknown.

    Args:
        task: A task, whose hyper-parameters take precedence.
        datamodule: A data module with the names of the configuration or of the checkpoint, or None.
    """
    hparams = getattr(task, "hparams", None) or {}
    return list(map(str, hparams.get("class_names") or getattr(datamodule, "class_names", None) or ()))
