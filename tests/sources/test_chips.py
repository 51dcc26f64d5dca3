"""`terramind chips` on analytic ground."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio

from terramind_plugin.cli import main
from terramind_plugin.sources.rules import ESRI_TO_LULC
from tests.sources import ground as truth


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, str]]:
    """Return the values of a chip, the position of its pixels in the home zone, and its tags."""
    with rasterio.open(path) as file:
        x, y = truth.position(file.crs.to_string(), *truth.centres(file.transform, file.height, file.width))
        return file.read(), x, y, file.tags()


@pytest.fixture(scope="module")
def table(chips: Path) -> pd.DataFrame:
    return pd.read_parquet(chips / "chips.parquet")


def test_all_chips_of_the_area_are_written(chips: Path, table: pd.DataFrame):
    assert len(table) == 16
    assert set(table["status"]) == {"written"}
    for modality in ("S2L2A", "S1RTC", "DEM", "LULC", "label"):
        assert {path.stem for path in (chips / modality).glob("*.tif")} == set(table["id"])


def test_values_are_those_of_the_ground(chips: Path, table: pd.DataFrame):
    for name in table["id"]:
        values, x, y, tags = read(chips / "S2L2A" / f"{name}.tif")
        for band, found in zip(truth.BANDS, values, strict=True):
            expected = truth.reflectance(band, x, y)
            if truth.S2_METRES.get(band) == 10:
                np.testing.assert_array_equal(found, np.rint(expected))
            else:
                assert np.abs(found - expected).max() < 1.5, band
        values, x, y, tags = read(chips / "S1RTC" / f"{name}.tif")
        linear = np.stack([truth.power(band, x, y) for band in ("VV", "VH")]) * (1 + int(tags["relative_orbit"]) / 1000)
        np.testing.assert_allclose(values, 10 * np.log10(linear), atol=1e-3)
        values, x, y, _ = read(chips / "DEM" / f"{name}.tif")
        assert np.abs(values[0] - truth.height(x, y)).max() < 1
        values, x, y, tags = read(chips / "LULC" / f"{name}.tif")
        assert tags["scenes"] == "32T_2023"
        np.testing.assert_array_equal(values[0], np.vectorize(ESRI_TO_LULC.get)(truth.land_cover(x, y)))


def test_the_clearest_date_counts_and_a_tie_goes_to_the_nearest(chips: Path, table: pd.DataFrame):
    rows = table["id"].str.rsplit("_", n=1).str[1].astype(int)
    # The upper two rows of chips are cloudy on the date that is nearer to the middle of the range.
    assert set(table["date"][rows >= 4139].str[:10]) == {"2023-06-12"}
    assert set(table["date"][rows < 4139].str[:10]) == {"2023-06-17"}


def test_tags_say_where_pixels_come_from(chips: Path, table: pd.DataFrame):
    for name, date in zip(table["id"], table["date"].str[:10], strict=True):
        tags = read(chips / "S2L2A" / f"{name}.tif")[3]
        assert (tags["baseline"], tags["offset_removed"]) == {
            "2023-06-12": ("05.09", "1000"), "2023-06-17": ("03.01", "0")
        }[date]  # fmt: skip
        assert tags["clear_share"] == "1.0000"
        assert tags["relative_orbit"] == "108"
        assert tags["software"].startswith("terramind_plugin ")


def test_splits_are_lists_of_all_chips(chips: Path, table: pd.DataFrame):
    lists = {path.stem: path.read_text().split() for path in (chips / "splits").glob("*.txt")}
    assert sorted(lists) == ["test", "train", "val"]
    assert sorted(name for names in lists.values() for name in names) == sorted(table["id"])
    assert all(lists.values())


def test_the_same_command_makes_nothing_anew(chips: Path, words: list[str], capsys: pytest.CaptureFixture[str]):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in chips.rglob("*.tif")}
    assert main([*words, "--out", str(chips)]) == 0
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in chips.rglob("*.tif")} == before
    assert "16 chips" in capsys.readouterr().out
