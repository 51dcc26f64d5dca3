"""Extraction of the cause of a configuration error from the messages of libraries, with the nearest valid name."""

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
"""Modules that the name of a class may leave out."""
OWN = (ConfigError, DataError, WeightsError)
"""Errors of this package, whose messages need no addition."""
UNION = re.compile(
    r"Does not validate against any of the Union subtypes\s+Subtypes: [^\n]*\s+Errors:\s*\n"
    r"((?:(?!Does not validate against any).)*?)\n\s*Given value type: [^\n]*\n\s*Given value: ([^\n]*)",
    flags=re.DOTALL,
)
"""Message of jsonargparse about a value that may have several types: a reason for each type, and the value."""
EXPECTED = re.compile(r"Expected a (?:<class '([\w.]+)'>|typing\.Literal\[([^\]]+)\])(\. Got)?")
"""Message of jsonargparse about a value that has another type."""
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "list": "a list",
         "tuple": "a list", "Iterable": "a list", "dict": "a mapping", "NoneType": ""}  # fmt: skip
"""Users' names of types."""
UNINTERESTING = ("Not a valid subclass of", "a ", "Multiple subclasses")
"""Beginnings of reasons of jsonargparse that do not help: the value is not meant to have that type."""
LONG = 60
"""Length in characters from which a message does not repeat a value."""
GENERAL = ("torch.", "lightning.", "jsonargparse.", "torchmetrics.", "importlib.", "contextlib.", "yaml.",
           "terratorch.cli_tools.", "terramind_plugin.integration.lightning_cli.",
           "terramind_plugin.check.")  # fmt: skip
"""Modules that seldom cause an error themselves: their caller, or the function that they called, says more."""


def describe_error(error: BaseException) -> str:
    """Return the message of an error of this package or of a library, in one line that can stand alone.

    Args:
        error: An exception that was raised while a configuration was parsed, built or run.
    """
    return one_line(explain(error))


def explain(error: BaseException) -> str:
    """Return the message of an error so that it can stand alone, with the origin of a library's error.

    Args:
        error: As for `describe_error`.
    """
    text = str(error)
    if text.startswith("Caught "):  # a data loader's worker process sends its traceback along
        return re.split(r"^[\w.]+(?:Error|Exception): ", text, flags=re.MULTILINE)[-1]
    root = _root(error)
    text = readable(text)
    if isinstance(error, OWN) or isinstance(root, OWN):
        return text
    if isinstance(root, KeyError):
        text = text.replace(str(root), f"there is no {root}")
    return f"{text.rstrip('.') or 'an error without a message'} ({type(root).__name__}{_place(root)})."


def _root(error: BaseException) -> BaseException:
    """Return the error that jsonargparse passed on as text, or the error itself."""
    inner = error.__cause__ or error.__context__
    if inner is None or not str(inner) or " ".join(str(inner).split()) not in " ".join(str(error).split()):
        return error
    return _root(inner)


def _place(error: BaseException) -> str:
    """Return the function that raised an error: the innermost one outside PyTorch and Lightning."""
    frames = [
        (f"{frame.f_globals.get('__name__', '')}.", frame.f_code) for frame, _ in traceback.walk_tb(error.__traceback__)
    ]
    places = [f"{module}{code.co_qualname}" for module, code in frames if not module.startswith(GENERAL)]
    return f" in {places[-1]}" if places else ""


def readable(message: str) -> str:
    """Return the mistake in a configuration, without the types and values that jsonargparse prints around it.

    Args:
        message: Text of an error of jsonargparse.
    """
    place = re.search(r'Parser key "([^"]+)":', message)
    text, found = message, 1
    while found:  # from the innermost union of types outwards
        text, found = re.subn(UNION, lambda union: _summary(union.group(1), union.group(2).strip()), text)
    if place is not None and text.startswith(place.group()):
        text = f"{place.group(1)}: {text.removeprefix(place.group()).strip()}"
    text = re.sub(EXPECTED, lambda kind: f"expected {_kind(kind)}{'. Got' if kind.group(3) else ''}", text)
    return _with_hint(text, nearest(text) or nearest(message))


def _summary(causes: str, value: str) -> str:
    """Return the expectation about a value, without types that the value is not meant to have.

    Args:
        causes: Reasons why the value has none of the possible types.
        value: The value.
    """
    items = re.split(r"^ *- ", causes, flags=re.MULTILINE)
    texts = ["\n".join(line.strip() for line in item.strip().splitlines()).replace(":\n", ": ") for item in items]
    texts = [text for text in dict.fromkeys(texts) if text]
    own = [text for text in texts if not text.startswith(UNINTERESTING) and not re.match(EXPECTED, text)]
    if own:
        return "\n".join(own)
    classes = re.findall(r"Not a valid subclass of (\w+)", causes)
    kinds = [_kind(found) for found in re.finditer(EXPECTED, causes)]
    kinds += [f"class_path and init_args of a {name}" for name in classes]
    shown = f". Got value: {value}" if len(value) < LONG else ""
    return f"expected {' or '.join(filter(None, dict.fromkeys(kinds)))}{shown}"


def _kind(found: re.Match[str]) -> str:
    """Return the user's name of a type that jsonargparse expected; an empty string for none."""
    name = found.group(1).split(".")[-1] if found.group(1) else f"one of {found.group(2)}"
    return KINDS.get(name, name)


def _with_hint(text: str, hint: str) -> str:
    return text + ("." if hint and not text.endswith(".") else "") + hint


def nearest(message: str) -> str:
    """Return a hint at the valid name nearest to the name in an error, or an empty string.

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
    """Return the names of all arguments of a class, including those of its parents."""
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
