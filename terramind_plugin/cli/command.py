"""Commands made from functions: the arguments follow from the signature, the help text from the docstring.

Each command is a function in a module without heavy imports. Parameters before `*` in its signature are positional, the
others are options, and a parameter whose type is a dataclass is a group of options. In addition to jsonargparse's
syntax, `Command` accepts lists and mappings as people type them.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from argparse import ArgumentError, HelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from shutil import get_terminal_size
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from terramind_plugin.errors import ConfigError, one_line, suggest
from terramind_plugin.model.variants import SIZES
from terramind_plugin.raster.paths import RemotePath, remote_path
from terramind_plugin.system.files import read_yaml

COMMANDS = {
    "new": "configure",
    "check": "check",
    "verify": "check",
    "map": "inference",
    "embed": "inference",
    "generate": "inference",
    "reconstruct": "inference",
    "chips": "sources",
    "simulate": "simulation",
    "splits": "samples",
    "figure": "evaluate",
    "compare": "evaluate",
    "zero-shot": "evaluate",
    "localise": "evaluate",
    "few-shot": "evaluate",
    "merge": "export",
    "export": "export",
    "tokenize": "pretrain",
}
"""Folder of each command's function, in the order of the help; 'few-shot' is `run_few_shot` in commands.py there."""
RENAMED = {
    ("generate", "--size"): "--model",
    ("reconstruct", "--size"): "--model",
    ("tokenize", "--family"): "--model",
    ("tokenize", "--turns"): "--symmetries",
    ("tokenize", "--ckpt_path"): "--tokenizer_ckpt_path",
    ("export", ""): "--model",
    ("merge", ""): "--model",
}
"""Present names of options that had other names until 0.1.0, by command and option; '' is a positional argument."""
MODELS = {**SIZES, "terramind_v1": "terramind_v1_base"}
"""Registry names for the former values of --size and --family."""
WIDTH = 110
"""Maximum number of characters in a line of help."""


def load_command(name: str) -> Callable[..., None]:
    """Return the function of a command."""
    module = import_module(f"terramind_plugin.{COMMANDS[name]}.commands")
    command: Callable[..., None] = getattr(module, f"run_{name.replace('-', '_')}")
    return command


class Command:
    """A command made from a function.

    Args:
        name: Name of the command.
    """

    def __init__(self, name: str) -> None:
        from jsonargparse import ArgumentParser
        from jsonargparse.typing import register_type

        register_type(RemotePath, str, remote_path)
        self.name = name
        self.function = load_command(name)
        signature = inspect.signature(self.function).parameters
        types = get_type_hints(self.function)
        self.positional = next((one for one, p in signature.items() if p.kind is p.POSITIONAL_OR_KEYWORD), None)
        self.groups = {one: types[one] for one in signature if is_dataclass(types[one])}
        self.takes_overrides = "overrides" in signature
        self.overrides: list[str] = []
        """Options of TerraTorch among the arguments."""
        skip: set[str | int] = {one for one in signature if one in self.groups or one == "overrides"}
        self.parser = ArgumentParser(prog=f"terramind {name}", formatter_class=_Formatter, exit_on_error=False)
        if "config" not in signature:
            self.parser.add_argument("-c", "--config", metavar="YAML", help="YAML file with values of these options")
        self.parser.add_function_arguments(self.function, as_group=False, as_positional=False, skip=skip)
        for group in self.groups.values():
            self.parser.add_class_arguments(group)
            types |= get_type_hints(group)
        self.types = {one: _without_none(kind) for one, kind in types.items() if one not in {*skip, "return"}}
        """Type of each argument."""
        self.defaults = self.parser.get_defaults()

    def read(self, words: Sequence[str]) -> Callable[[], None]:
        """Return the call of the function with the typed arguments.

        Raises:
            ConfigError: An argument, or a value in the file that --config names, is wrong.
        """
        typed = self._split(words)
        self._check_configs(typed.get("config", []))
        files = [] if "config" in self.types else typed.pop("config", [])
        values = self._read_config(Path(files[-1][-1])) if files else {}
        places = {name: f"{files[-1][-1]}: {name}" for name in values if name not in typed}
        values |= {name: self._join(name, uses) for name, uses in typed.items()}
        try:
            read = self.parser.parse_args([f"--{name}={value}" for name, value in values.items()])
        except ArgumentError as error:
            raise ConfigError(self._explain(str(error), values, places)) from error
        arguments = {name: read[name] for name in self.types}
        for name, group in self.groups.items():
            arguments[name] = group(**{field: arguments.pop(field) for field in get_type_hints(group)})
        if self.takes_overrides:
            arguments["overrides"] = self.overrides
        return lambda: self.function(**arguments)

    def _split(self, words: Sequence[str]) -> dict[str, list[list[str]]]:
        """Return the values of each use of each option, and keep TerraTorch's options apart."""
        uses: dict[str, list[list[str]]] = {}
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if not word.startswith("-"):
                uses.setdefault(self._expect_positional(word), [[]])[0].append(word)
                continue
            option, equals, value = word.partition("=")
            name = "config" if option == "-c" else option.removeprefix("--")
            name = f"{name}_" if f"{name}_" in self.types else name  # a keyword of Python, such as from
            kind = self.types.get(name, Path if name == "config" else None)
            following = next((i for i, one in enumerate(rest) if one.startswith("--") or one == "-c"), len(rest))
            if equals:
                count = 0
            elif kind is bool and not self.defaults[name]:
                count = int(bool(rest) and rest[0].lower() in ("true", "false"))
                value = "" if count else "true"
            else:
                takes_all = _is_plural(kind) and (self.positional is None or _has_lists(kind))
                count = following if takes_all else min(1, following)
            found = [value] if value else rest[:count]
            if kind is None:
                self._check_foreign(option, found)
                self.overrides += [word, *rest[:count]]
            elif found:
                uses.setdefault(name, []).append(found)
            else:
                raise ConfigError(f"{option} needs a value: {option} {_placeholder(kind)}.")
            del rest[:count]
        return uses

    def _check_configs(self, uses: Sequence[Sequence[str]]) -> None:
        """Refuse a second configuration."""
        names = [name for use in uses for name in use]
        if len(names) > 1:
            raise ConfigError(
                f"terramind {self.name} takes one --config, got {' and '.join(names)}. Where these configure terramind "
                f"fit, join them: terramind fit {' '.join(f'-c {name}' for name in names)} --print_config > a.yaml"
            )

    def _expect_positional(self, word: str) -> str:
        """Return the name of the argument to which a value without an option belongs."""
        if self.positional is None:
            renamed = RENAMED.get((self.name, ""))
            hint = f"A checkpoint is now given as {renamed}: {renamed} {word}." if renamed else "Options begin with --."
            raise ConfigError(f"Unexpected '{word}'. {hint}")
        return self.positional

    def _check_foreign(self, option: str, values: Sequence[str]) -> None:
        """Refuse an option that neither this command nor TerraTorch knows."""
        spelled = option.replace("-", "_").replace("__", "--", 1)
        renamed = RENAMED.get((self.name, option)) or (spelled if spelled.removeprefix("--") in self.types else None)
        if renamed is not None:
            example = " ".join(MODELS.get(value, value) for value in values[:1])
            raise ConfigError(f"{option} is now {renamed}: {renamed} {example}".rstrip())
        near = suggest(option, [f"--{name}" for name in (*self.types, "config")])
        if not self.takes_overrides or (near and "." not in option):
            raise ConfigError(f"There is no option {option}.{near} See terramind {self.name} --help.")

    def _join(self, name: str, uses: Sequence[Sequence[str]]) -> str:
        """Return the value of an option in jsonargparse's syntax, with lists and mappings as JSON.

        Texts in a list are separated by commas, paths by spaces, and NAME=VALUE is an item of a mapping.
        """
        kind = self.types[name]
        words = [word for use in uses for word in use]
        if get_origin(kind) is dict:
            return json.dumps(_read_pairs(f"--{name}", words, _placeholder(kind)))
        if get_origin(kind) is not list:
            if name == self.positional and len(words) > 1:
                raise ConfigError(f"Unexpected '{words[1]}': this command takes one {name.upper()}.")
            return words[-1]
        (item,) = get_args(kind)
        if get_origin(item) is list:
            return json.dumps([_split(word) for word in words] if item == list[str] else list(uses))
        if item is int:
            return f"[{','.join(part for word in words for part in _split(word))}]"
        return json.dumps([part for word in words for part in _split(word)] if item is str else words)

    def _read_config(self, path: Path) -> dict[str, str]:
        """Return the values in a YAML file, in the format of `_join`."""
        content = read_yaml(path) or {}
        if not isinstance(content, dict):
            raise ConfigError(f"{path} must hold the names and values of options, e.g. 'seed: 1'.")
        values = {}
        for name, value in content.items():
            if name not in self.types:
                raise ConfigError(f"{path}: there is no option '{name}'.{suggest(str(name), self.types)}")
            values[name] = self._join(name, [[value]]) if isinstance(value, str) else json.dumps(value, default=str)
        return values

    def _explain(self, error: str, values: Mapping[str, str], places: Mapping[str, str]) -> str:
        """Return jsonargparse's error in one line; `places` are the names of values from a file."""
        missing = re.search("arguments are required: (.*)", error)
        if missing:
            names = [
                name.upper() if name == self.positional else f"--{name} {_placeholder(self.types[name])}"
                for name in missing[1].split(", ")
            ]
            listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
            return f"{listed} {'is' if len(names) == 1 else 'are'} missing."
        name = next((name for name in values if error.startswith(f'Parser key "{name}')), None)
        if name is None:
            return error
        kind, value = self.types[name], values[name]
        near = suggest(value, map(str, get_args(kind))) if get_origin(kind) is Literal else ""
        return f"{places.get(name, f'--{name}')} takes {_describe(kind)}, got '{value}'.{near}"

    def help(self) -> str:
        """Return the help text."""
        text, _, _ = (inspect.getdoc(self.function) or "").partition("\nArgs:")
        self.parser.description = text.strip()
        usage = [self.parser.prog]
        for action in self.parser._actions:
            kind = self.types.get(action.dest)
            if kind is None:
                continue
            action.option_strings = [f"--{action.dest.rstrip('_')}"]
            action.help = (action.help or "").removesuffix(".")
            action.metavar = _placeholder(kind)
            if action.dest == "config":
                action.option_strings, action.metavar = ["-c", "--config"], "YAML"
            if action.dest == self.positional:
                action.option_strings, action.metavar = [], action.dest.upper()
                shown = action.metavar + " ..." * _is_plural(kind)
                usage.append(shown if action.required or action.default is not None else f"[{shown}]")
            elif action.required:
                usage.append(f"{action.option_strings[0]} {action.metavar}")
            if kind is bool and not action.default:
                action.nargs = 0
            elif action.default is not None and not action.required:
                default = str(action.default).lower() if kind is bool else action.default
                action.help = f"{action.help} (default: {default})"
        if self.takes_overrides:
            self.parser.epilog = "Options of terramind fit may follow, e.g. --data.init_args.batch_size=4."
        self.parser.usage = " ".join([*usage, "[options]"])
        return self.parser.format_help()


class _Formatter(HelpFormatter):
    """Formatter that wraps help in paragraphs."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, max_help_position=32, width=min(WIDTH, get_terminal_size().columns), **options)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(textwrap.fill(one_line(one), width, initial_indent=indent) for one in paragraphs)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _read_pairs(option: str, words: Sequence[str], form: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for word in words:
        # 'terramesh:ROOT' names a data set as a whole.
        name, _, text = word.partition(":" if word.startswith("terramesh:") else "=")
        if not (name and text):
            raise ConfigError(f"{option} takes {form}, got '{word}'.")
        if name in pairs:
            raise ConfigError(f"{option} names {name} twice.")
        pairs[name] = text
    return pairs


def _without_none(kind: Any) -> Any:
    """Return the type of an argument without None."""
    kinds = [one for one in get_args(kind) if one is not type(None)]
    return kinds[0] if get_origin(kind) in (Union, UnionType) and len(kinds) == 1 else kind


def _is_plural(kind: Any) -> bool:
    return get_origin(kind) in (list, dict)


def _has_lists(kind: Any) -> bool:
    """Return whether each use of an option takes several paths."""
    return any(get_origin(item) is list and item != list[str] for item in get_args(kind))


def _placeholder(kind: Any) -> str:
    """Return the placeholder of a value in help texts."""
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is dict:
        return "NAME=FILE"
    if get_origin(kind) is list:
        return "N,N" if get_args(kind) == (int,) else "NAMES" if "str" in str(kind) else "PATH ..."
    return {int: "N", float: "X", str: "NAME", bool: "true|false"}.get(kind, "PATH")


def _describe(kind: Any) -> str:
    """Return a description of an argument's values, for messages."""
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, _placeholder(kind))
