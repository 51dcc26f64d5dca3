"""Modalities that are no input of the usual configurations: heights, land cover, vegetation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from terramind_plugin.contract.findings import Finding

NAMES = ["S2L2A", "S1RTC", "DEM", "LULC", "NDVI", "RGB"]
ESRI = np.array([0, 1, 2, 4, 5, 7, 8, 9, 10, 11])
MISTAKES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], str]] = {
    "feet": ("DEM", lambda v: v * 20 / 0.3048, "values: DEM heights"),
    "whole feet": ("DEM", lambda v: np.round(np.round(v) / 0.3048), "values: DEM heights"),
    "no height": ("DEM", lambda v: np.where(v < np.median(v), -32768, v), "values: DEM heights"),
    "ESRI": ("LULC", lambda v: ESRI[v.astype(int)].astype(np.uint8), "values: LULC classes"),
    "NDVI": ("NDVI", lambda v: np.round(np.clip(v, -1, 1) * 100 + 100), "values: NDVI units"),
    "RGB": ("RGB", lambda v: v / np.float32(255), "values: RGB units"),
    "L2A offset": ("S2L2A", lambda v: v + 1000, "values: S2L2A offset"),
    "L2A order": ("S2L2A", lambda v: v[[0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 8]], "values: S2L2A band order"),
}


def look(root: Path) -> list[Finding]:
    from terramind_plugin.contract.plan import describe
    from terramind_plugin.contract.run import check_data
    from terramind_plugin.data.datamodule import TerraMindDataModule

    module = TerraMindDataModule(
        batch_size=1,
        modalities=NAMES,
        data_root={name: str(root / f"{name}Hand") for name in NAMES},
        image_grep={name: f"*_{name}Hand.tif" for name in NAMES},
    )
    module.test_root = module.val_root = None
    plan = describe(module)
    assert plan is not None
    return [finding for finding in check_data(plan) if finding.verdict != "ok"]


def test_sound_values_are_quiet(sound: Any) -> None:
    assert look(sound.root / "data") == []


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_values(mistake: str, chips: Any) -> None:
    name, make, where = MISTAKES[mistake]
    for path in (chips.root / "data" / f"{name}Hand").iterdir():
        with rasterio.open(path) as raster:
            values, profile = make(raster.read()), raster.profile
        profile = {key: profile[key] for key in ("driver", "width", "height", "count", "crs", "transform")}
        with rasterio.open(path, "w", dtype=values.dtype.name, **profile) as raster:
            raster.write(values)
    assert where in [finding.check for finding in look(chips.root / "data")]
