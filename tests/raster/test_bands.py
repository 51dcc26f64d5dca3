"""Bands by name, in every reader; places that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rasterio.control import GroundControlPoint
from rasterio.transform import Affine

from terramind_plugin.data.reading import by_name
from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.bands import band_key, find_bands
from terramind_plugin.raster.reader import Expected, Source
from tests.raster.odd import write

L2A = MODALITIES["S2L2A"].band_names
SWAPPED = (*L2A[:9], "B10", *L2A[10:])


@pytest.mark.parametrize(
    ("modality", "names", "expected"),
    [
        ("S1GRD", ("VV", "VH"), [0, 1]),
        ("S1GRD", ("vh", "VV"), [1, 0]),
        ("S1GRD", ("Sigma0_VH_db", "Sigma0_VV_db"), [1, 0]),
        ("S1GRD", ("angle", "VH", "VV"), [2, 1]),
        ("S1GRD", ("Band 1", "Band 2"), [0, 1]),
        ("S1GRD", ("gray", None), [0, 1]),
        ("S1GRD", ("S1A_IW_GRDH_1SDV.tif", "S1A_IW_GRDH_1SDV.tif"), [0, 1]),
        ("S1GRD", ("VV", None), [0, 1]),
        ("S2L2A", L2A, list(range(12))),
        ("S2L2A", L2A[::-1], list(range(12))[::-1]),
        ("S2L2A", MODALITIES["S2L1C"].band_names, [*range(10), 11, 12]),
        ("S2L2A", tuple(f"{name}, central wavelength" for name in L2A[::-1]), list(range(12))[::-1]),
        ("S2L2A", tuple(f"{number}" for number in range(12)), list(range(12))),
        ("RGB", ("B02", "B03", "B04"), [2, 1, 0]),
        ("DEM", ("elevation",), [0]),
        ("LULC", ("class",), [0]),
    ],
)
def test_names_decide(modality: str, names: Any, expected: list[int]) -> None:
    assert find_bands("a.tif", modality, names, MODALITIES[modality].band_names) == expected


@pytest.mark.parametrize(
    ("modality", "names", "said"),
    [
        ("S1GRD", ("VH", "HH"), "VH, HH, expected VV, VH for S1GRD.*--bidx 1 --description VV a.tif; .*--bidx 2"),
        ("S1GRD", ("VH", None), r"VH, \(none\), expected VV, VH"),
        ("S1GRD", (None, "VV"), r"\(none\), VV, expected VV, VH"),
        ("S1GRD", ("VV", "VV"), "VV, VV, expected VV, VH.*bands 2 are wrong.*--bidx 2 --description VH a.tif"),
        ("S1GRD", ("VV", "VH", "VV"), "several of them as VV"),
        ("S1GRD", ("B04", "B08"), "B04, B08, expected VV, VH"),
        ("S2L2A", SWAPPED, "B10, B11, B12, expected .*--bidx 10 --description B09 a.tif"),
        ("S2L2A", (L2A[1], L2A[0], *[None] * 10), "expected B01, B02"),
        ("DEM", ("VV",), "VV, expected DEM for DEM"),
    ],
)
def test_contradicting_names_are_an_error(modality: str, names: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        find_bands("a.tif", modality, names, MODALITIES[modality].band_names)


def test_the_bands_of_a_configuration_bind() -> None:
    data = np.arange(2)[:, None, None]
    common = {"modality": "S1GRD", "count": 2, "dates": False}
    with pytest.raises(
        DataError, match=r"as VH, VV, but dataset_bands: \{S1GRD: \[VV, VH\]\}.*write dataset_bands: \{"
    ):
        by_name("a.tif", data, ("VH", "VV"), bands=["VV", "VH"], **common)
    assert by_name("a.tif", data, ("VH", "VV"), bands=["VH", "VV"], **common).ravel().tolist() == [0, 1]
    assert by_name("a.tif", data, ("VH", "VV"), bands=None, **common).ravel().tolist() == [1, 0]
    assert by_name("a.tif", data, ("VH", "VV"), bands=[0, 1], **common).ravel().tolist() == [0, 1]
    dates = np.arange(4)[:, None, None]
    with pytest.raises(DataError, match="VH, VV, but"):
        by_name("a.tif", dates, ("VV", "VH", "VH", "VV"), "S1GRD", ["VV", "VH"], 2, dates=True)


def test_a_source_reads_by_name(tmp_path: Path) -> None:
    values = np.stack([np.full((4, 4), number, np.float32) for number in (-20, -10)])
    radar = Expected.of(MODALITIES["S1GRD"])
    path = write(tmp_path / "a.tif", values, names=("VH", "VV"))
    assert Source(path, radar).read(0, 0, 4, 4).values[:, 0, 0].tolist() == [-10, -20]
    with pytest.raises(DataError, match="describes its bands as VH, HH"):
        Source(write(tmp_path / "b.tif", values, names=("VH", "HH")), radar)


@pytest.mark.parametrize("text", ["VV", "vv ", "Gamma0_VV", "sigma0_vv_dB", "B8A", "B4", "b04", "RED_EDGE_1", "HH"])
def test_band_names_are_known(text: str) -> None:
    assert band_key("S1GRD", text) is not None


@pytest.mark.parametrize("text", ["Band 1", "gray", "scene_VV_VH.tif", "1", "", "B13", "VVX"])
def test_other_texts_are_no_band_names(text: str) -> None:
    assert band_key("S1GRD", text) is None


@pytest.mark.parametrize(
    "transform",
    [
        Affine(0, 0, 5, 0, 0, 7),
        Affine(10, 0, 5, 0, 0, 7),
        Affine(float("nan"), 0, 5, 0, -1, 7),
        Affine(1, 1, 0, 1, 1, 0),
    ],
)
def test_pixels_without_a_size(tmp_path: Path, transform: Affine) -> None:
    path = write(tmp_path / "dem.tif", np.ones((1, 8, 8), np.float32), transform=transform)
    with pytest.raises(DataError, match=r"dem\.tif has no usable position: .*gdal_edit\.py -a_ullr"):
        Source(path, Expected.of(MODALITIES["DEM"]))


def test_ground_control_points(tmp_path: Path) -> None:
    points = [
        GroundControlPoint(row, column, 5e5 + 10 * column, 5e6 - 10 * row) for row, column in ((0, 0), (0, 8), (8, 0))
    ]
    path = write(tmp_path / "dem.tif", np.ones((1, 8, 8), np.float32), transform=None, gcps=points)
    with pytest.raises(DataError, match=r"located by 3 ground control points.*gdalwarp -tps"):
        Source(path, Expected.of(MODALITIES["DEM"]))
