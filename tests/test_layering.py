"""Imports point one way."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import terramind_plugin

ROOT = Path(terramind_plugin.__file__).parent
PACKAGE = ROOT.name

LAYERS = (
    ("_version", "errors"),
    ("memory", "system"),
    ("files", "parallel"),
    ("model",),
    ("plotting", "raster"),
    ("samples", "simulation"),
    ("tokenizers",),
    ("generation",),
    ("cache",),
    ("backbones",),
    ("builders",),
    ("data",),
    ("integration",),
    ("inference",),
    ("check",),
    ("pretrain",),
    ("evaluate",),
    ("cli",),
)
"""A part may import those of earlier lines."""
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
KNOWS_TERRATORCH = {
    "check",
    "data",
    "inference/segmentation.py",
    "integration",
    "samples/splits.py",
    "samples/tables.py",
}
"""Rooms, and a file of a room, that may import TerraTorch."""


def part_of(path):
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def imported(path):
    """Return the full names of all modules that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path != ROOT / "__init__.py"]
by_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())


@by_file
def test_every_part_has_its_place(path):
    assert part_of(path) in RANK, f"add '{part_of(path)}' to LAYERS"


@by_file
def test_imports_point_down(path):
    part = part_of(path)
    for name in imported(path):
        first, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if first == PACKAGE and target in RANK and target != part:
            assert RANK[target] < RANK[part], f"{part} imports {target}"


@by_file
def test_who_knows_terratorch(path):
    if not {part_of(path), path.relative_to(ROOT).as_posix()} & KNOWS_TERRATORCH:
        assert not {name for name in imported(path) if name.split(".")[0] == "terratorch"}


FORBIDDEN = {
    "errors": {"torch", "numpy"},
    "parallel": {"torch", "lightning", "terratorch"},
    "samples": {"lightning"},
    "simulation": {"torch", "lightning", "terratorch"},
    "raster": {"torch", "lightning", "terratorch"},
    "system": {"torch", "lightning", "terratorch", "rasterio"},
    "model": {"lightning", "terratorch", "torchgeo", "rasterio"},
    "tokenizers": {"lightning", "terratorch", "torchgeo", "rasterio"},
    "generation": {"lightning", "terratorch", "torchgeo", "rasterio"},
    "builders": {"lightning", "terratorch", "rasterio"},
    "inference": {"torchgeo"},
    "cache": {"terratorch", "rasterio"},
    "backbones": {"lightning", "terratorch", "rasterio"},
}


@by_file
def test_forbidden_libraries(path):
    libraries = {name.split(".")[0] for name in imported(path)}
    assert not libraries & FORBIDDEN.get(part_of(path), set())


ABSENT = {
    "terramind_plugin": {"torch", "terratorch", "lightning", "numpy", "rasterio"},
    "terramind_plugin.model.modalities": {"torch", "terratorch", "lightning", "numpy"},
    "terramind_plugin.model.variants": {"torch", "terratorch", "lightning", "numpy"},
    "terramind_plugin.builders.settings": {"torch", "terratorch", "lightning", "numpy"},
    "terramind_plugin.builders.backbones": {"peft", "terratorch", "lightning", "rasterio", "torchgeo"},
    "terramind_plugin.tokenizers.image": {"diffusers", "tokenizers", "terratorch", "lightning", "rasterio"},
    "terramind_plugin.tokenizers.sequence": {"diffusers", "tokenizers", "terratorch", "lightning", "rasterio"},
    "terramind_plugin.builders.tokenizers": {"diffusers", "tokenizers", "terratorch", "lightning", "rasterio"},
    "terramind_plugin.builders.generators": {"diffusers", "tokenizers", "terratorch", "lightning", "rasterio"},
    "terramind_plugin.integration.necks": {"terratorch", "lightning", "rasterio", "torchgeo"},
}
"""Libraries that importing a module must not load."""

EACH_IN_A_FORK = """
import importlib, json, os, sys
import {preload}
for name in {names}:
    sys.stdout.flush()
    if not os.fork():
        importlib.import_module(name)
        print(json.dumps([name, sorted({{part.partition(".")[0] for part in sys.modules}})]), flush=True)
        os._exit(0)
    os.wait()
"""
"""Imports each module in a process that has loaded nothing but what all of them may load."""


@pytest.fixture(scope="module")
def loaded():
    """Return the libraries that importing each module has loaded."""
    found = {}
    light = [name for name, absent in ABSENT.items() if "torch" in absent]
    for preload, names in (("json", light), ("torch", [name for name in ABSENT if name not in light])):
        code = EACH_IN_A_FORK.format(preload=preload, names=names)
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        found |= {name: set(libraries) for name, libraries in map(json.loads, result.stdout.splitlines())}
    return found


@pytest.mark.parametrize("module", ABSENT)
def test_what_an_import_loads(loaded, module):
    assert not ABSENT[module] & loaded[module]
