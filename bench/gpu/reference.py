"""TerraTorch's own model files, loaded without the rest of TerraTorch."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

PACKAGE = "terratorch.models.backbones.terramind"
INSIDE = ("", "terramind", "models/backbones/terramind", "terratorch/models/backbones/terramind")
"""Where the model files may be, seen from a folder that somebody names."""


class Registry:
    """Stands in for one of TerraTorch's registries: remembers builders by name."""

    def __init__(self) -> None:
        self.builders: dict[str, Callable[..., Any]] = {}

    def register(self, builder: Callable[..., Any]) -> Callable[..., Any]:
        """Remember a builder and return it."""
        self.builders[builder.__name__] = builder
        return builder


class Pipeline:
    """Stands in for diffusers' DiffusionPipeline, of which TerraTorch uses the names of its modules alone."""

    def register_modules(self, **modules: Any) -> None:
        """Set the modules as attributes."""
        for name, module in modules.items():
            setattr(self, name, module)


def find_files(named: Path | None) -> Path:
    """Return the folder of TerraTorch's TerraMind: model/, tokenizer/ and utils.py.

    Args:
        named: The folder itself, that of TerraTorch, or one that holds either; None for the installed TerraTorch.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    roots = [named] if named is not None else _installed()
    for root in roots:
        for inside in INSIDE:
            if (root / inside / "model" / "terramind_register.py").is_file():
                return root / inside
    looked = f"not in {named}" if named is not None else "TerraTorch is not installed"
    raise FileNotFoundError(
        f"TerraTorch's model files are missing: {looked}. Give the folder terratorch/models/backbones/terramind of an "
        "installed TerraTorch, or a copy of it: --terratorch DIR."
    )


def _installed() -> list[Path]:
    """Return the folder of the installed TerraTorch, which is not imported."""
    spec = importlib.util.find_spec("terratorch")
    return [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]


def load_reference(folder: Path) -> dict[str, Callable[..., Any]]:
    """Return TerraTorch's builders of TerraMind by name, e.g. 'terramind_v1_tiny'.

    Stand-ins take the place of what else TerraTorch would import, so that torch, timm, einops and diffusers are enough;
    TerraTorch itself cannot be imported in this process afterwards.

    Args:
        folder: From `find_files`.
    """
    # Before the stand-ins: this package registers itself with TerraTorch's registries where it finds them loaded.
    importlib.import_module("terramind_plugin")
    backbones, models = Registry(), Registry()
    for name in ("terratorch", "terratorch.models", "terratorch.models.backbones"):
        module = ModuleType(name)
        module.__path__ = []
        sys.modules[name] = module
    registries: Any = ModuleType("terratorch.registry")
    registries.TERRATORCH_BACKBONE_REGISTRY, registries.TERRATORCH_FULL_MODEL_REGISTRY = backbones, models
    sys.modules[registries.__name__] = registries
    _replace_pipeline()
    spec = importlib.util.spec_from_file_location(
        PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    precision = torch.get_float32_matmul_precision()
    spec.loader.exec_module(package)
    torch.set_float32_matmul_precision(precision)
    return backbones.builders | models.builders  # a tokenizer is also registered as a backbone, without its decoder


def _replace_pipeline() -> None:
    """Replace DiffusionPipeline where diffusers cannot load it, e.g. for lack of transformers."""
    diffusers: Any = importlib.import_module("diffusers")
    try:
        _ = diffusers.DiffusionPipeline
    except (ImportError, RuntimeError, AttributeError) as error:
        print(f"diffusers.DiffusionPipeline is replaced: {error}", file=sys.stderr)
        diffusers.DiffusionPipeline = Pipeline
