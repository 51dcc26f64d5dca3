"""Small real GeoTIFFs, and a data module on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

SUFFIXES = {"S2L1C": "_S2.tif", "S1GRD": "_S1.tif", "mask": "_label.tif"}
BANDS = {"S2L1C": 13, "S1GRD": 2, "mask": 1}


def write_raster(path: Path, array: np.ndarray, nodata: float | None = None) -> Path:
    """Write an array [bands, H, W] as a GeoTIFF in its own type and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "crs": "EPSG:32630", "transform": from_origin(500000, 4600000, 10, 10)}
    count, height, width = array.shape
    with rasterio.open(
        path, "w", count=count, height=height, width=width, dtype=array.dtype.name, nodata=nodata, **profile
    ) as raster:
        raster.write(array)
    return path


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    """Return `write_raster`."""
    return write_raster


def _values(kind: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    shape = (BANDS[kind], *size)
    if kind == "S2L1C":
        return rng.integers(1, 6000, shape).astype(np.uint16)
    if kind == "S1GRD":
        return rng.normal(-15, 5, shape).astype(np.float32)
    return rng.integers(0, 2, shape).astype(np.int16)


@pytest.fixture
def make_chips(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes chips of S2L1C, S1GRD and labels and returns their root."""

    def make(names: Sequence[str] = ("a", "b", "c", "d"), size: tuple[int, int] = (32, 32)) -> Path:
        rng = np.random.default_rng(0)
        for name in names:
            for kind, suffix in SUFFIXES.items():
                write_raster(tmp_path / "chips" / kind / f"{name}{suffix}", _values(kind, size, rng))
        return tmp_path / "chips"

    return make


@pytest.fixture
def make_module() -> Callable[..., Any]:
    """Return a function that makes a data module on such chips; keywords change its arguments, ... leaves one out."""

    def make(root: Path, **changes: Any) -> Any:
        from terramind_plugin.data.datamodule import TerraMindDataModule

        modalities = changes.get("modalities", ["S2L1C", "S1GRD"])
        arguments: dict[str, Any] = {
            "task": "segmentation",
            "batch_size": 2,
            "num_classes": 2,
            "modalities": modalities,
            "data_root": {name: str(root / name) for name in modalities if str(name) in BANDS},
            "label_data_root": str(root / "mask"),
            "image_grep": {name: f"*{SUFFIXES[name]}" for name in modalities if str(name) in BANDS},
            "label_grep": f"*{SUFFIXES['mask']}",
            **changes,
        }
        return TerraMindDataModule(**{key: value for key, value in arguments.items() if value is not ...})

    return make
