"""What the tests of the house share: CONTRIBUTING's map of folders, and what each module defines and imports."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "terramind_plugin"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
ROW = re.compile(r"\| `([\w/.]+)` \|")


def rows(page: str) -> list[str]:
    """Return the folders and files that CONTRIBUTING's map lists, in its order."""
    return re.findall(ROW, page.partition("## Where things are")[2].partition("\n## ")[0])


def rooms(page: str) -> list[str]:
    """Return the rooms of the package in the order of the map: a room may import those above it."""
    listed = [row.removeprefix("terramind_plugin/") for row in rows(page) if row.startswith("terramind_plugin/")]
    return [row.rstrip("/").removesuffix(".py") for row in listed]


ROOMS = rooms((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """Return a module's path inside the package."""
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    """Return the room of a module: its folder, or a module that stands alone."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a module."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(path: Path) -> frozenset[str]:
    """Return the full names of all that a module imports, wherever in the file."""
    names = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def defined(path: Path) -> set[str]:
    """Return the public names that a module defines; type variables do not count."""
    names: set[str] = set()
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.Assign) and not _makes_type_variable(node.value):
            names |= {one.id for target in node.targets for one in ast.walk(target) if isinstance(one, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def _makes_type_variable(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "TypeVar"
