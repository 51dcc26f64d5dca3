"""What the pages and the settings say of the tree is true, and one fact has one place."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import terramind_plugin
from tests.house import MODULES, PACKAGE, ROOMS, ROOT, defined, imported, name_of, room_of, rows

LONGEST, LONGEST_FUNCTION = 400, 60
"""Maximum number of lines of a module, and of a function with its signature and docstring."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_IMPORTED = {
    "albumentations": "transforms that a configuration names",
    "tensorboard": "Lightning's TensorBoardLogger, which a configuration names",
}
"""Dependencies that no module of the package imports, and what needs them."""
OF_TESTS = {"attacks", "bench", "conf", "examples", "gpu", "parity", "runs"}
"""Folders of tests that are about no room: families of attacks, tools beside the package, configurations, scripts of
tutorials, what only a GPU can show, comparisons with TerraTorch, and whole runs."""
OF_THE_WHOLE = {"configs", "docs", "house", "layering"}
"""Tests beside the folders that are about the whole repository."""
SHARED_NAMES = {
    "add_commands": "each room with commands adds its own",
    "draw": "each report of evaluate/ has one, and is called by its name: report.draw",
    "logger": "the logger of the package, by Python's custom",
    "main": "the entry of a module that runs as a program",
    "record": "like draw",
    "run": "TerraTorch's command line; the engine's is called by its module's name: engine.run",
    "table": "like draw",
}
"""Public names that more than one module defines, and why."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(lines: list[str]) -> dict[str, str]:
    """Return the bounds of dependencies by name."""
    parts = [re.match(r"([\w.-]+)(.*)", line) for line in lines]
    return {normal(part.group(1)): part.group(2) for part in parts if part is not None}


def libraries() -> dict[str, set[str]]:
    """Return the distributions that the package imports, each with the modules that do so."""
    known, found = packages_distributions(), defaultdict(set)
    for path in MODULES:
        for library in {name.split(".")[0] for name in imported(path)} - sys.stdlib_module_names - {PACKAGE.name}:
            distributions = {normal(name) for name in known.get(library, [library])}
            found[min(distributions, key=lambda name: (name != normal(library), name))].add(name_of(path))
    return found


def test_every_import_is_a_dependency_and_every_dependency_is_used():
    declared = requirements(PROJECT["dependencies"])
    optional = PROJECT["optional-dependencies"]
    extras = requirements([line for extra in optional if extra != "dev" for line in optional[extra]])
    used = libraries()
    missing = {name: sorted(files)[:3] for name, files in used.items() if name not in declared | extras}
    assert not missing, "imported, but not in pyproject.toml"
    assert set(declared) - set(used) == set(NOT_IMPORTED), "in pyproject.toml, but not imported"
    assert all(bound.startswith(">=") for bound in declared.values()), "a lower bound for each"


def test_every_bound_has_a_reason():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = text.partition("\ndependencies = [")[2].partition("\n]")[0].strip().splitlines()
    assert len(listed) == len(PROJECT["dependencies"])
    for line in listed:
        assert re.search(r'",\s+# \S', line), f"no reason: {line.strip()}"


def test_the_map_lists_every_room_once():
    assert sorted(ROOMS) == sorted({room_of(path) for path in MODULES} - {"_version"})


def test_the_map_lists_what_is_there():
    for row in rows((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        path = ROOT / row
        assert path.is_dir() if row.endswith("/") else path.is_file(), row


def test_the_tests_mirror_the_package():
    there = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.glob("*.*"))}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms <= there, "a folder of tests for each room"
    assert there - rooms <= OF_TESTS, "the folder of tests is of no room"
    for room in rooms:
        assert any((ROOT / "tests" / room).glob("test_*.py")), f"tests/{room} has no test"
    single = {path.stem for path in PACKAGE.glob("*.py")}
    for path in (ROOT / "tests").glob("test_*.py"):
        assert path.stem.removeprefix("test_") in single | OF_THE_WHOLE, f"{path.name} belongs into a folder"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_and_no_function_is_long(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    lines = {node.name: node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno is not None}
    assert {name: count for name, count in lines.items() if count > LONGEST_FUNCTION} == {}


def test_one_public_name_for_one_thing():
    """A constant counts if another module imports it; a class or a function always does."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in MODULES:
        for name in defined(path):
            places[name].append(name_of(path))
    taken = {name.rpartition(".")[2] for path in MODULES for name in imported(path)}
    several = {
        name: files for name, files in places.items() if len(files) > 1 and (not name.isupper() or name in taken)
    }
    assert {name: files for name, files in several.items() if name not in SHARED_NAMES} == {}


def test_the_version_is_that_of_the_newest_change():
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert newest is not None
    assert newest.group(1) == terramind_plugin.__version__
