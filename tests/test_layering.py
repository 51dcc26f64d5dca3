"""Imports point one way."""

import json
import subprocess
import sys

import pytest

from tests.house import MODULES, PACKAGE, ROOMS, imported, name_of, room_of

RANK = {room: rank for rank, room in enumerate(["_version", *ROOMS])}
"""Order of CONTRIBUTING's map: a room may import those before it."""
KNOWS_TERRATORCH = {
    "check",
    "data",
    "inference/segmentation.py",
    "integration",
}
"""Rooms, and a file of a room, that may import TerraTorch."""


by_file = pytest.mark.parametrize("path", MODULES, ids=name_of)


@by_file
def test_imports_point_one_way(path):
    room = room_of(path)
    for name in imported(path):
        first, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if first == PACKAGE.name and target in RANK and target != room:
            assert RANK[target] < RANK[room], f"{room} imports {target}; CONTRIBUTING's map has the order"


@by_file
def test_who_knows_terratorch(path):
    if not {room_of(path), name_of(path)} & KNOWS_TERRATORCH:
        assert not {name for name in imported(path) if name.split(".")[0] == "terratorch"}


PROMISED = ("datamodules", "datasets", "models.decoders", "registry", "tasks")
"""Modules of TerraTorch whose names its documentation lists."""
INTERNALS = "data/terratorch_internals.py"
"""The file for all other names of TerraTorch."""
ELSEWHERE = {"integration/registry.py": {"terratorch.utils.InvalidModelError"}}
"""Names that another file needs, here because it runs while TerraTorch is being imported."""


@by_file
def test_one_file_knows_terratorchs_internals(path):
    names = {name for name in imported(path) if name.split(".")[0] == "terratorch"}
    promised = {f"terratorch.{module}" for module in PROMISED}
    others = {name for name in names if name.rpartition(".")[0] not in promised and name not in promised}
    assert name_of(path) == INTERNALS or others <= ELSEWHERE.get(name_of(path), set())


FORBIDDEN = {
    "errors": {"torch", "numpy"},
    "samples": {"torch", "lightning", "terratorch"},
    "simulation": {"torch", "lightning", "terratorch"},
    "raster": {"torch", "lightning", "terratorch"},
    "sources": {"torch", "lightning", "terratorch"},
    "system": {"torch", "lightning", "terratorch", "rasterio"},
    "model": {"lightning", "terratorch", "torchgeo", "rasterio"},
    "tokenizers": {"lightning", "terratorch", "torchgeo", "rasterio"},
    "generation": {"lightning", "terratorch", "torchgeo", "rasterio"},
    "builders": {"lightning", "terratorch", "rasterio"},
    "inference": {"torchgeo"},
    "backbones": {"lightning", "terratorch", "rasterio"},
}


@by_file
def test_forbidden_libraries(path):
    libraries = {name.split(".")[0] for name in imported(path)}
    assert not libraries & FORBIDDEN.get(room_of(path), set())


ABSENT = {
    "terramind_plugin": {"torch", "terratorch", "lightning", "numpy", "rasterio"},
    "terramind_plugin.model.modalities": {"torch", "terratorch", "lightning", "numpy"},
    "terramind_plugin.model.variants": {"torch", "terratorch", "lightning", "numpy"},
    "terramind_plugin.samples.checks.run": {"torch", "terratorch", "lightning"},
    "terramind_plugin.builders": {"peft", "diffusers", "tokenizers", "terratorch", "lightning", "rasterio", "timm"},
    "terramind_plugin.tokenizers.image": {"diffusers", "tokenizers", "terratorch", "lightning", "rasterio"},
    "terramind_plugin.tokenizers.coordinates": {"diffusers", "tokenizers", "terratorch", "lightning", "rasterio"},
    "terramind_plugin.inference.generation": {"diffusers", "terratorch", "lightning", "torchgeo", "timm"},
    "terramind_plugin.inference.embedding": {
        "diffusers",
        "terratorch",
        "lightning",
        "torchgeo",
        "timm",
        "zarr",
        "pyarrow",
    },
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
