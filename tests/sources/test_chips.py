"""`terramind chips` on analytic ground."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import yaml

from terramind_plugin.cli import main
from terramind_plugin.sources.rules import ESRI_TO_LULC
from tests.sources import ground as truth
from tests.sources.conftest import LEFT, TOP


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


def make(words: list[str], out: Path, *more: str, without: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return what became of the chips of a command; `without` names options to leave out with their values."""
    kept = list(words)
    for option in without:
        position = kept.index(option)
        del kept[position : position + 2]
    assert main([*kept, *more, "--out", str(out)]) == 0
    return pd.read_parquet(out / "chips.parquet")


def test_label_rasters_give_the_grid(words: list[str], tmp_path: Path):
    folder = tmp_path / "labels"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        transform = rasterio.Affine(10, 0, LEFT + 3 + 700 * number, 0, -10, TOP - 400)
        values = rng.choice(np.array([10, 20, 255], np.uint8), (1, 64, 48))
        with rasterio.open(folder / f"site{number}.tif", "w", driver="GTiff", count=1, height=64, width=48,
                           dtype="uint8", crs="EPSG:32632", transform=transform, nodata=255) as file:  # fmt: skip
            file.write(values)
    options = ("--modalities", "--size", "--aoi")
    table = make(words, tmp_path / "data", "--labels", str(folder), "--modalities", "S2L2A,DEM", without=options)
    assert set(table["id"]) == {f"site{number}" for number in range(6)}
    for name in table["id"]:
        with (
            rasterio.open(folder / f"{name}.tif") as given,
            rasterio.open(tmp_path / "data" / "label" / f"{name}.tif") as label,
            rasterio.open(tmp_path / "data" / "S2L2A" / f"{name}.tif") as image,
        ):
            assert given.transform == label.transform == image.transform
            assert image.shape == given.shape == (64, 48)
            expected = np.select([given.read(1) == 10, given.read(1) == 20], [0, 1], -1)
            np.testing.assert_array_equal(label.read(1), expected)
    config = yaml.safe_load((tmp_path / "data" / "config.yaml").read_text())["data"]["init_args"]
    assert config["class_names"] == ["class 10", "class 20"]
    assert config["batch_size"] == (table["split"] == "train").sum()  # fewer chips than a batch usually has


def test_polygons_are_burned_by_pixel_centres(words: list[str], tmp_path: Path):
    path = tmp_path / "labels.geojson"
    truth.aoi(path, "EPSG:32632", (LEFT + 634, TOP - 2006, LEFT + 1906, TOP - 634))
    table = make(words, tmp_path / "data", "--labels", str(path), "--modalities", "DEM", without=("--modalities",))
    label, x, y, _ = read(tmp_path / "data" / "label" / f"{table['id'][0]}.tif")
    assert table["id"][0] == f"32632_{LEFT // 1280}_{TOP // 1280}"
    inside = (x > LEFT + 634) & (x < LEFT + 1906) & (y < TOP - 634) & (y > TOP - 2006)
    assert (label[0] != inside).mean() < 0.002  # the sides bend a little in degrees
    assert 0 < label.sum() < label.size


def test_several_dates_of_a_place(words: list[str], tmp_path: Path):
    options = ("--modalities", "--date")
    more = ("--modalities", "S2L2A", "--date", "2023-06-01/2023-06-30", "--per_place", "2", "--max_cloud", "1")
    table = make(words, tmp_path / "data", *more, without=options)
    assert len(table) == 32
    for _, own in table.groupby("place"):
        assert list(own["date"].str[:10]) == ["2023-06-12", "2023-06-17"]
        assert list(own["id"].str[-2:]) == ["_0", "_1"]


def test_the_plan_is_the_same_each_time(words: list[str], chips: Path, tmp_path: Path):
    assert main([*words, "--out", str(tmp_path / "data"), "--plan_only"]) == 0
    for name in ("plan.parquet", "scenes.parquet"):
        assert (tmp_path / "data" / name).read_bytes() == (chips / name).read_bytes()
    plan = pd.read_parquet(chips / "plan.parquet")
    assert {"id", "crs", "left", "top", "block", "split", "scenes", "offsets"} <= set(plan.columns)
    assert all(len(row.scenes) == len(row.offsets) for row in plan.itertuples())
    assert not (tmp_path / "data" / "S2L2A").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--date", "2020-01-01/2020-02-01"), "no scene of S2L2A .* to 2020-02-01. It has scenes from 2023"),
        (("--max_cloud", "2"), "--max_cloud is a share"),
        (("--size", "5000"), "--size must be"),
        (("--grid", "labels"), "needs a folder of label rasters"),
        (("--grid", "mgrs"), "takes one of utm, labels, majortom"),
        (("--labels", "/nowhere"), "There is no folder"),
        (("--model", "terramind_v9"), "no model"),
    ],
)  # fmt: skip
def test_requests_that_are_not_possible_write_nothing(words, tmp_path: Path, more, message, capsys):
    assert main([*words, *more, "--out", str(tmp_path / "data")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("terramind: ")]
    assert len(lines) == 1
    assert re.search(message, lines[0])
    assert not (tmp_path / "data").exists()


def test_a_folder_of_other_chips_stays(words: list[str], chips: Path, tmp_path: Path, capsys):
    assert main([*words, "--max_cloud", "0.5", "--out", str(chips)]) == 2
    assert "holds chips of another request (max_cloud 0.1)" in capsys.readouterr().err
    (tmp_path / "mine.txt").write_text("mine")
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert "already holds files" in capsys.readouterr().err
