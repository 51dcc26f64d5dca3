"""Rasters with odd values through the commands: nothing that is missing becomes a class or a number."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tests.raster.odd import Case, cases, radar, write, write_case, write_twin

FAMILY = list(cases())
FEW = [FAMILY[index] for index in (46, 67, 1, 88, 133, 145)]
SOME = {"map": FEW[:3], "predict": FEW, "generate": FEW[:2]}


def _read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


def _results(run: Any, name: str, chosen: Sequence[Case], folder: Path) -> tuple[Path, Path]:
    """Run a command over rasters and over their twins, and return both folders of results."""
    outs = []
    for kind, make in (("odd", write_case), ("twin", write_twin)):
        files = [make(case, folder / kind / f"{case.name}.tif") for case in chosen]
        assert run(name, files, folder / f"{kind}_{name}") == 0
        outs.append(folder / f"{kind}_{name}")
    return outs[0], outs[1]


def _compare(case: Case, one: Path, other: Path, endings: dict[str, float]) -> int:
    """Return the number of values that differ from the twin's, or are something where nothing was measured."""
    wrong = 0
    for ending, nodata in endings.items():
        here, there = _read(one / f"{case.name}_{ending}.tif"), _read(other / f"{case.name}_{ending}.tif")
        wrong += int(
            (~((here == there) | (np.isnan(here) & np.isnan(there)) if here.dtype.kind == "f" else here == there)).sum()
        )
        empty = case.missing.all(axis=0)
        gone = np.isnan(here) if np.isnan(nodata) else here == nodata
        wrong += int((~gone[:, empty]).sum())
        if ending in ("pred", "DEM"):
            wrong += int(gone[:, ~empty].sum())
    return wrong


ENDINGS = {"map": {"pred": 255.0}, "predict": {"pred": 255.0}, "generate": {"DEM": np.nan, "LULC": 0.0}}


def _check_family(run: Any, command: str, chosen: Sequence[Case], folder: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, logger="terramind_plugin"):
        one, other = _results(run, command, chosen, folder)
    wrong = {case.name: _compare(case, one, other, ENDINGS[command]) for case in chosen}
    assert {name: count for name, count in wrong.items() if count} == {}
    said = caplog.text
    if command == "predict":
        total = sum(case.undeclared for case in chosen)
        assert re.search(rf"{total} pixels of {len(chosen)} files, most of them .* are not finite or beyond 1e30", said)
    else:
        for case in chosen:
            number = "1 pixel is" if case.undeclared == 1 else f"{case.undeclared} pixels are"
            assert f"odd/{case.name}.tif: {number} not finite or beyond 1e30" in said
    assert "twin" not in said


@pytest.mark.parametrize("command", ["map", "predict", "generate"])
def test_odd_values(run: Any, tmp_path: Path, caplog: Any, command: str) -> None:
    _check_family(run, command, SOME[command], tmp_path, caplog)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["map", "predict", "generate"])
def test_all_odd_values(run: Any, tmp_path: Path, caplog: Any, command: str) -> None:
    # Drawing is most of the time of generate: every seventh, so that all values, places and kinds occur.
    _check_family(run, command, FAMILY[:: 7 if command == "generate" else 1], tmp_path, caplog)


def _check_names_them(run: Any, folder: Path, chosen: Sequence[Case]) -> None:
    files = [write_case(case, folder / "odd" / f"{case.name}.tif") for case in chosen]
    for case in chosen:
        write(folder / "labels" / f"{case.name}.tif", np.ones((1, 64, 64), np.uint8))
    said = "\n".join(map(str, run("check", files, folder / "check")))
    far = [case for case in chosen if not np.isnan(case.odd)]
    nan = [case for case in chosen if np.isnan(case.odd)]
    assert f"{len(far)} of {len(chosen)} files hold values that are infinite or beyond 1e30, " in said
    assert f"{sum(case.undeclared for case in far)} pixels, most of them" in said
    assert f"{len(nan)} of {len(chosen)} files hold NaN that no nodata value declares" in said


def test_check_counts_odd_values(run: Any, tmp_path: Path) -> None:
    _check_names_them(run, tmp_path, FEW)


@pytest.mark.slow
def test_check_counts_all_odd_values(run: Any, tmp_path: Path) -> None:
    for part in range(4):  # check looks at 64 samples
        _check_names_them(run, tmp_path / str(part), FAMILY[part::4])


@pytest.mark.parametrize("command", ["map", "predict"])
def test_a_result_that_is_not_finite_is_no_class(run: Any, tmp_path: Path, caplog: Any, command: str) -> None:
    """1e29 counts as a number, of which the model makes NaN: in all of its window, but in no other file."""
    values = radar()
    values[:, 10:12, 10:12] = 1e29
    files = [write(tmp_path / "in" / "a.tif", values), write(tmp_path / "in" / "b.tif", radar())]
    assert run(command, files, tmp_path / "out") == 0
    assert (_read(tmp_path / "out" / "a_pred.tif") == 255).all()
    assert (_read(tmp_path / "out" / "b_pred.tif") < 2).all()
    assert re.search(r"4096 pixels .*have no finite result", caplog.text)


@pytest.mark.parametrize("command", ["map", "predict", "generate"])
def test_bands_and_places_that_are_refused(run: Any, tmp_path: Path, capsys: Any, command: str) -> None:
    swapped = write(tmp_path / "a" / "a.tif", radar(), names=("VH", "HH"))
    assert run(command, [swapped], tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "a.tif describes its bands as VH, HH, expected VV, VH for S1GRD" in error
    assert "rio edit-info --bidx 1 --description VV" in error
    nowhere = write(tmp_path / "b" / "b.tif", radar(), transform=rasterio.Affine(10, 0, 5e5, 0, 0, 5e6))
    assert run(command, [nowhere], tmp_path / "out") == 2
    assert "b.tif has no usable position" in capsys.readouterr().err
    waves = write(tmp_path / "c" / "c.tif", radar().astype(np.complex64))
    assert run(command, [waves], tmp_path / "out") == 2
    assert "c.tif holds complex numbers" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tif"))


@pytest.mark.parametrize("command", ["map", "predict"])
def test_bands_are_read_by_name(run: Any, tmp_path: Path, command: str) -> None:
    plain = write(tmp_path / "in" / "a.tif", radar())
    turned = write(tmp_path / "in" / "b.tif", radar()[::-1], names=("VH", "VV"))
    assert run(command, [plain, turned], tmp_path / "out") == 0
    np.testing.assert_array_equal(*(_read(tmp_path / "out" / f"{name}_pred.tif") for name in "ab"))
