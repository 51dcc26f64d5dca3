"""Rasters with odd values, each beside a twin that declares the same pixels as missing by NaN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine

from terramind_plugin.raster.chips import Image, mark_gaps
from terramind_plugin.raster.images import open_image

PLACE = Affine(10, 0, 500_000, 0, -10, 5_000_000)
ODD = {
    "nan": np.nan, "inf": np.inf, "minus_inf": -np.inf, "lowest": -3.4028234663852886e38, "highest": 3.4e38,
    "esri": -3.402823e38, "1e38": 1e38, "minus_1e31": -1e31,
}  # fmt: skip
"""Values that count as missing, by a name for files."""
WHERE = {
    "one_pixel": np.s_[:, 9, 11],
    "four_pixels": np.s_[:, 30:32, 30:32],
    "one_band": np.s_[0, 5:8, 40:50],
    "edge": np.s_[:, :, 50:],
    "two_bands": np.s_[1, 20:24, :],
}
KINDS = ("plain", "double", "tagged", "masked")


def read_image(path: Path) -> Image:
    """Return all bands of a raster with NaN for gaps, as the data set reads them."""
    with open_image(str(path)) as image:
        return mark_gaps(image.read(), image.descriptions)


@dataclass(frozen=True)
class Case:
    """One raster."""

    name: str
    odd: float
    where: Any
    kind: str

    @property
    def missing(self) -> np.ndarray:
        """Where values are missing, boolean [2, 64, 64]."""
        gaps = np.zeros((2, 64, 64), bool)
        gaps[self.where] = True
        if self.kind == "tagged":
            gaps[:, 60:62, 3:9] = True
        if self.kind == "masked":
            gaps[:, 40:42, 20:30] = True
        return gaps

    @property
    def undeclared(self) -> int:
        """Number of pixels that are missing though the file does not say so."""
        gaps = np.zeros((2, 64, 64), bool)
        gaps[self.where] = True
        if self.kind == "masked":
            gaps[:, 40:42, 20:30] = False
        return int(gaps.any(axis=0).sum())


def radar(seed: int = 0) -> np.ndarray:
    """Return decibels [2, 64, 64] of a smooth scene."""
    y, x = np.mgrid[:64, :64]
    plane = -14 + 6 * np.sin((x + 3 * seed) / 9) + 3 * np.cos(y / 7)
    return np.stack([plane, plane - 7]).astype(np.float32)


def cases() -> Iterator[Case]:
    """Yield all combinations of value, place and kind of file."""
    for (name, odd), (place, where), kind in product(ODD.items(), WHERE.items(), KINDS):
        yield Case(f"{name}-{place}-{kind}", odd, where, kind)


def write(path: Path, values: np.ndarray, mask: np.ndarray | None = None, **changes: Any) -> Path:
    """Write a raster, with a mask where there is data if one is given; 'names' describes the bands."""
    names = changes.pop("names", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "crs": "EPSG:32632", "transform": PLACE, "dtype": values.dtype.name, **changes}
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(path, "w", count=len(values), height=values.shape[1], width=values.shape[2], **profile) as file,
    ):
        file.write(values)
        if names:
            file.descriptions = names
        if mask is not None:
            file.write_mask(mask)
    return path


def write_case(case: Case, path: Path) -> Path:
    """Write the raster of a case."""
    values = radar().astype(np.float64 if case.kind == "double" else np.float32)
    values[case.where] = case.odd
    if case.kind == "tagged":
        values[:, 60:62, 3:9] = -9999
        return write(path, values, nodata=-9999)
    if case.kind == "masked":
        mask = np.full((64, 64), 255, np.uint8)
        mask[40:42, 20:30] = 0
        return write(path, values, mask)
    return write(path, values)


def write_twin(case: Case, path: Path) -> Path:
    """Write what the raster of a case means."""
    values = radar()
    values[case.missing] = np.nan
    return write(path, values, nodata=np.nan)
