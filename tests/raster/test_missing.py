"""One rule for what is missing: all readers see the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rasterio.crs import CRS
from rasterio.transform import Affine

from terramind_plugin.data.writer import find_data
from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.raster.missing import FAR, find_missing, is_odd
from terramind_plugin.raster.reader import Expected, Source
from terramind_plugin.samples.checks.sample import read_middle
from tests.raster.odd import PLACE, cases, radar, read_image, write, write_case, write_twin

FILL = -7777.0
OWN = Expected("OWN", ("A", "B"), (FILL, FILL))
TYPES = ("uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64")
ODD = st.sampled_from([np.nan, np.inf, -np.inf, 3.4e38, -3.4028234663852886e38, 1e38, -1.0000001e30])
EVEN = st.sampled_from([0, 1, 7, 100, -3, 1e29, -1e30, 1e30])


def _by_all_readers(path: Path, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Return where values are missing, [2, H, W], as each reader has it."""
    found = {}
    for rows in (0, 3, shape[1]):
        source = Source(path, OWN)
        if rows:
            source.keep_rows(rows)
        parts = [
            source.read(row, 0, min(rows or 99, shape[1] - row), shape[2]) for row in range(0, shape[1], rows or 99)
        ]
        found[f"source, {rows} rows"] = np.concatenate([part.values for part in parts], axis=1) == FILL
        valid = np.concatenate([part.valid for part in parts])
        assert (valid == ~found[f"source, {rows} rows"].all(axis=0)).all()
        source.close()
    found["data set"] = np.isnan(read_image(path).values)
    with rasterio.open(path) as file:
        missing = read_middle(file).missing
        found["check"] = np.zeros(shape, bool) if missing is None else missing
    assert (find_data({str(path)}, shape[1:])[0] == ~found["data set"].all(axis=0)).all()
    return found


@settings(deadline=None, max_examples=40)
@given(data=st.data(), dtype=st.sampled_from(TYPES), tag=st.sampled_from([None, 7, 0, -9999, np.nan, -3.4e38, 1e40]))
def test_all_readers_agree(tmp_path_factory: pytest.TempPathFactory, data: Any, dtype: str, tag: Any) -> None:
    shape = (2, 5, 6)
    kind = np.dtype(dtype)
    values = np.full(shape, 5).astype(dtype)
    elements = st.one_of(EVEN, ODD) if kind.kind == "f" else st.sampled_from([0, 1, 7, 100])
    for place in data.draw(st.lists(st.tuples(*(st.integers(0, side - 1) for side in shape)), max_size=8)):
        with np.errstate(over="ignore"):
            values[place] = np.float64(data.draw(elements)).astype(dtype)
    fits = tag is None or kind.kind == "f" or (tag == tag and np.iinfo(kind).min <= tag <= np.iinfo(kind).max)
    tag = tag if fits and not (kind.name == "float32" and tag == 1e40) else None
    mask = None
    if data.draw(st.booleans()):
        mask = np.full(shape[1:], 255, np.uint8)
        mask[data.draw(st.integers(0, 4)), data.draw(st.integers(0, 5))] = 0
    path = write(tmp_path_factory.mktemp("rule") / "a.tif", values, mask, nodata=tag)
    expected = np.zeros(shape, bool)
    if kind.kind == "f":
        expected |= ~(np.abs(values) <= kind.type(FAR))
    if tag is not None:
        expected |= values == kind.type(tag)
    if mask is not None:
        expected |= mask == 0
    if kind.name == "int64" and mask is not None and tag is not None:
        return  # GDAL then compares nothing with the nodata value
    for name, found in _by_all_readers(path, shape).items():
        np.testing.assert_array_equal(found, expected, err_msg=name)


@settings(deadline=None, max_examples=100)
@given(values=arrays.arrays(st.sampled_from([np.float16, np.float32, np.float64, np.uint8, np.int64]), (7,)))
def test_the_quick_look_agrees_with_the_rule(values: np.ndarray) -> None:
    wide = values.astype(np.float64)
    largest = min(FAR, float(np.finfo(values.dtype).max)) if values.dtype.kind == "f" else FAR
    largest = float(np.array(largest, values.dtype if values.dtype.kind == "f" else None))
    expected = ~(np.abs(wide) <= largest)
    np.testing.assert_array_equal(is_odd(values), expected)
    assert (find_missing(values).missing is not None) == expected.any()


def test_what_is_not_declared_is_counted(tmp_path: Path) -> None:
    for case in list(cases())[::7]:
        path = write_case(case, tmp_path / f"{case.name}.tif")
        source = Source(path, OWN)
        source.keep_rows(16)
        for row in range(0, 64, 8):
            source.read(row, 0, min(16, 64 - row), 64)
        assert source.undeclared == case.undeclared, case.name
        image = read_image(path)
        assert image.undeclared == case.undeclared
        assert image.far == (not np.isnan(case.odd))
        np.testing.assert_array_equal(np.isnan(image.values), case.missing)
        twin = read_image(write_twin(case, tmp_path / "twin.tif"))
        assert twin.undeclared == 0
        np.testing.assert_array_equal(image.values.astype(np.float32), twin.values)


@pytest.mark.parametrize("kind", ["plain", "double", "tagged", "masked"])
def test_gaps_do_not_leak_when_a_file_is_warped(tmp_path: Path, kind: str) -> None:
    """What is missing is left out of its neighbours' values, whatever stands for it."""
    native = CRS.from_epsg(32632)
    grid = Grid(50, 50, native, Affine(10, 0, PLACE.c + 43, 0, -10, PLACE.f - 57))
    for case in cases():
        if case.kind != kind or "one_pixel" in case.name:
            continue
        parts = []
        for path in (write_case(case, tmp_path / "a.tif"), write_twin(case, tmp_path / "b.tif")):
            source = Source(path, OWN, grid)
            assert source.warped
            source.keep_rows(16)
            parts.append(source.read(0, 0, 50, 50))
            source.close()
        np.testing.assert_array_equal(*(part.values for part in parts), err_msg=case.name)
        np.testing.assert_array_equal(*(part.valid for part in parts), err_msg=case.name)
        known = parts[0].values[parts[0].values != FILL]
        assert radar().min() - 0.01 <= known.min() <= known.max() <= radar().max() + 0.01


def test_a_number_of_grid_pixels_is_counted_when_warped(tmp_path: Path) -> None:
    case = next(case for case in cases() if case.name == "inf-four_pixels-plain")
    grid = Grid(64, 64, CRS.from_epsg(32632), Affine(10, 0, PLACE.c + 3, 0, -10, PLACE.f))
    source = Source(write_case(case, tmp_path / "a.tif"), OWN, grid)
    source.keep_rows(16)
    for row in range(0, 64, 16):
        source.read(row, 0, 16, 64)
    assert source.undeclared == 4


def test_class_ids_far_from_0_are_missing(tmp_path: Path) -> None:
    values = np.ones((1, 8, 8), np.float32)
    values[0, 2, 3] = -3.4e38
    part = Source(write(tmp_path / "lulc.tif", values), Expected.of(MODALITIES["LULC"])).read(0, 0, 8, 8)
    assert part.values[0, 2, 3] == 0
    assert not part.valid[2, 3]
    assert part.valid.sum() == 63


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "slc.tif", np.ones((2, 8, 8), np.complex64))
    for read in (read_image, lambda path: Source(path, OWN), lambda path: find_data({str(path)}, (8, 8))[0]):
        with pytest.raises(DataError, match=r"slc\.tif holds complex numbers"):
            read(path)
