"""TerraMind for TerraTorch.

Importing this package registers its models under the source 'terramind' in TerraTorch's registries: at once if
TerraTorch is loaded, otherwise when it gets loaded, so that the import itself costs nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from terramind_plugin._version import __version__

_LAZY = {
    "TerraMindBackbone": "terramind_plugin.backbones.encoder",
    "TerraMindDataModule": "terramind_plugin.data.datamodule",
    "ServedDataModule": "terramind_plugin.data.served",
    "TokenizerTask": "terramind_plugin.pretrain.tokenizer",
    "TokenizerDataModule": "terramind_plugin.pretrain.tokenizer_data",
    "MaskedModellingTask": "terramind_plugin.pretrain.masked",
    "MaskedDataModule": "terramind_plugin.pretrain.masked_data",
    "ReconstructionImages": "terramind_plugin.integration.callbacks",
    "TokenPyramid": "terramind_plugin.integration.necks",
    "CoordsTokenizer": "terramind_plugin.tokenizers.coordinates",
    "ImageTokenizer": "terramind_plugin.tokenizers.image",
    "TerraMindGenerator": "terramind_plugin.generation.generator",
    "EmbeddingTask": "terramind_plugin.integration.embedding",
    "BackboneUnfreeze": "terramind_plugin.integration.callbacks",
    "FiniteLoss": "terramind_plugin.integration.callbacks",
    "GeoTiffWriter": "terramind_plugin.data.writer",
    "RunGuard": "terramind_plugin.data.guard",
    "CacheLog": "terramind_plugin.data.cache_log",
    "CompiledModel": "terramind_plugin.integration.compilation",
    "SegmentationImages": "terramind_plugin.integration.callbacks",
    "TerraMeshDataModule": "terramind_plugin.pretrain.mesh_module",
    "TerraMeshDataset": "terramind_plugin.shards.dataset",
    "plot_modality": "terramind_plugin.plotting.pictures",
    "to_dataarray": "terramind_plugin.inference.dataarray",
    "to_tensor": "terramind_plugin.inference.dataarray",
}

__all__ = ["__version__", *_LAZY]
_RENAMED = {"MemoLog": "CacheLog"}
_REGISTRIES = "terratorch.registry"


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _RENAMED:
        raise AttributeError(f"terramind_plugin.{name} is now called terramind_plugin.{_RENAMED[name]}.")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'. It has: {', '.join(sorted(_LAZY))}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


class _RegisterAfterLoad(Loader):
    """Runs a module's own loader, then registers this package."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        importlib.import_module("terramind_plugin.integration.registry").register()


class _WaitForTerraTorch(MetaPathFinder):
    """Finds TerraTorch's registries as Python would, and has this package registered once they are loaded."""

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _REGISTRIES:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisterAfterLoad(spec.loader)
        return spec


if _REGISTRIES in sys.modules:
    importlib.import_module("terramind_plugin.integration.registry").register()
else:
    sys.meta_path.insert(0, _WaitForTerraTorch())
