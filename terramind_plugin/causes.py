"""The cause of a configuration's error, with the nearest valid name, out of the text that libraries print around it."""

from __future__ import annotations

import importlib
import inspect
import re
import traceback
from typing import Any

from lightning.pytorch import Trainer
from terratorch.registry import BACKBONE_REGISTRY, DECODER_REGISTRY, NECK_REGISTRY

from terramind_plugin.errors import ConfigError, DataError, WeightsError, one_line, suggest

PARTS = ("trainer", "model", "data", "optimizer", "lr_scheduler", "seed_everything")
"""Keys of a configuration."""
SHORT_NAMES = ("lightning.pytorch.callbacks", "lightning.pytorch.loggers", "torch.optim", "torch.optim.lr_scheduler")
"""Modules whose classes may be named without them."""
GENERAL = ("torch.", "lightning.", "jsonargparse.", "torchmetrics.", "importlib.", "contextlib.", "yaml.",
           "terratorch.cli_tools.", "terramind_plugin.lightning_cli.", "terramind_plugin.check.")  # fmt: skip
"""Modules in which an error is seldom made: what called them, or what they called, says more."""


def readable(message: str) -> str:
    """Return what is wrong with a configuration, without the types and values that jsonargparse prints around it.

    Args:
        message: Text of an error of jsonargparse.
    """
    place = re.search(r'Parser key "([^"]+)"', message)
    causes = re.search(r"Errors:\n(.*?)\n *Given value type:", message, flags=re.DOTALL)
    if causes is None:
        return _with_hint(message, nearest(message))
    items = re.split(r"^ *- ", causes.group(1), flags=re.MULTILINE)
    uninteresting = ("Expected a <class 'NoneType'>", "Not a valid subclass of", "a ", "Multiple subclasses")
    texts = ["\n".join(line.strip() for line in item.strip().splitlines()).replace(":\n", ": ") for item in items]
    kept = [text for text in texts if text and not text.startswith(uninteresting)]
    text = "\n".join(kept or [message])
    return _with_hint((f"{place.group(1)}: " if place else "") + text, nearest(text) or nearest(message))


def describe(error: BaseException) -> str:
    """Return what an error of this package or of a library says, in one line that can stand alone.

    Args:
        error: An exception that was raised while a configuration was parsed, built or run.
    """
    text = str(error)
    if text.startswith("Caught "):  # a data loader's worker process sends its traceback along
        return one_line(re.split(r"^\w+(?:\.\w+)*(?:Error|Exception): ", text, flags=re.MULTILINE)[-1])
    if isinstance(error, ConfigError | DataError | WeightsError):
        return one_line(text)
    if isinstance(error, KeyError):
        text = f"there is no {text}"
    readily = one_line(readable(text)).rstrip(".") or "an error without a message"
    return f"{readily} ({type(error).__name__}{_place(error)})."


def _place(error: BaseException) -> str:
    """Return the function that an error comes from, the innermost outside of PyTorch and Lightning."""
    frames = [
        (f"{frame.f_globals.get('__name__', '')}.", frame.f_code) for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    places = [f"{module}{code.co_qualname}" for module, code in frames if not module.startswith(GENERAL)]
    return f" in {places[-1]}" if places else ""


def _with_hint(text: str, hint: str) -> str:
    return text + ("." if hint and not text.endswith(".") else "") + hint


def nearest(message: str) -> str:
    """Return a hint at the valid name that comes next to the one an error complains of, or an empty string.

    Args:
        message: Text of an error of jsonargparse or TerraTorch.
    """
    unknown = re.search(r"[Mm]odel (\S+) (?:could not be instantiated|not found)", message)
    if unknown is not None:
        names = [name for registry in (BACKBONE_REGISTRY, DECODER_REGISTRY, NECK_REGISTRY) for name in registry]
        return suggest(unknown.group(1), names)
    option = re.search(r"Option '([\w.]+)' is not accepted", message)
    # The innermost class is the last that is named before the option.
    owners = re.findall(r"given class_path '([\w.]+)'", message[: option.start()] if option is not None else "")
    if option is not None:
        return suggest(option.group(1).split(".")[0], _arguments(owners[-1]) if owners else PARTS)
    option = re.search(
        r"Group 'trainer' does not accept option '(\w+)'|does not accept option 'trainer\.(\w+)'", message
    )
    if option is not None:
        return suggest(option.group(1) or option.group(2), inspect.signature(Trainer).parameters)
    missing = re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message)
    if missing is not None:
        listed = re.search(r"It has: ([\w, ]+)", message)
        return suggest(missing.group(2), listed.group(1).split(", ") if listed else _classes(missing.group(1)))
    short = re.search(r"Expected a dot import path string: (\w+)$", message, flags=re.MULTILINE)
    if short is not None:
        return suggest(short.group(1), [name for module in SHORT_NAMES for name in _classes(module)])
    return ""


def _arguments(class_path: str) -> list[str]:
    """Return the names of all arguments of a class, those of its parents, too."""
    module, _, name = class_path.rpartition(".")
    kind: Any = getattr(_import(module), name, None)
    initials = [vars(parent).get("__init__") for parent in inspect.getmro(kind)] if inspect.isclass(kind) else []
    return [
        name for initial in initials if inspect.isfunction(initial) for name in inspect.signature(initial).parameters
    ]


def _classes(module: str) -> list[str]:
    found = _import(module)
    return [name for name in dir(found) if inspect.isclass(getattr(found, name, None))]


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, ValueError):
        return None
