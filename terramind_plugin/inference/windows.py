"""The size of windows that suits a task: that of the images it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rasterio

from terramind_plugin.raster.complete import GDAL_ERRORS

LARGEST = 1024
"""Pixels of a window's side, at most: larger images are cropped in training, or the batch size is 1."""
FALLBACK = 224
"""Pixels of a window's side where neither data nor model say more: the size of the pre-training images."""


def training_size(config: Any, datamodule: Any, task: Any, patch: int) -> int:
    """Return height and width in pixels of the images that a task was trained on, a multiple of the patch size.

    That is the size to which train_transform crops, else that of the first training file, else that of the backbone's
    position embeddings.

    Args:
        config: The parsed configuration.
        datamodule: Made of it; not set up.
        task: Made of it.
        patch: Patch size of the model in pixels.
    """
    size = _cropped(config.get("data.init_args.train_transform")) or _first_file(datamodule) or _native(task)
    return max(patch, min(size, LARGEST) // patch * patch)


def _cropped(transforms: Any) -> int | None:
    """Return the shorter side of what the last cropping transform of a list gives."""
    found = None
    for entry in transforms if isinstance(transforms, list) else []:
        name = str(entry.get("class_path", "")) if hasattr(entry, "get") else ""
        if not any(word in name.rpartition(".")[2] for word in ("Crop", "Resize")):
            continue
        arguments = entry.get("init_args") or entry.get("dict_kwargs") or {}
        size = arguments.get("size") or [arguments.get("height"), arguments.get("width")]
        sides = [side for side in (size if isinstance(size, list | tuple) else [size]) if isinstance(side, int)]
        found = min(sides, default=found)
    return found


def _first_file(datamodule: Any) -> int | None:
    """Return the shorter side of the first training file of the first modality."""
    roots, patterns = getattr(datamodule, "train_root", None), getattr(datamodule, "image_grep", None) or {}
    for name, root in roots.items() if isinstance(roots, Mapping) else []:
        pattern = patterns.get(name) if isinstance(patterns, Mapping) else None
        for path in Path(str(root)).glob(str(pattern or "*.tif")):
            try:
                with rasterio.open(path) as raster:
                    return min(raster.shape)
            except GDAL_ERRORS:
                break  # no raster: the next modality may be one
    return None


def _native(task: Any) -> int:
    sizes = [getattr(module, "img_size", None) for module in task.modules()]
    return next((min(size) for size in sizes if isinstance(size, tuple)), FALLBACK)
