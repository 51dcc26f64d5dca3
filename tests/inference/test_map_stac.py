"""`terramind map --stac`: a map of an area equals that of a scene with the same pixels, and goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine

from terramind_plugin.cli import main
from terramind_plugin.errors import ConfigError
from terramind_plugin.inference.satellites import choose_periods
from terramind_plugin.model.dates import DatesTaken
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.sources import mosaic, regions
from tests.inference.conftest import make_task
from tests.sources.ground import HOME, Ground, aoi

LEFT, TOP = 600_000, 5_300_040
NAME = "S2B_MSIL2A_20230612T102609_R108_T32TPT_20230612T150000"
LATER = "S2B_MSIL2A_20230712T102609_R108_T32TPT_20230712T150000"
PERIODS = "2023-06-01/2023-06-30,2023-07-01/2023-07-31"


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    names = ["S2L2A", "S1RTC"]
    changes = {
        "data.modalities": names,
        "data.data_root": dict.fromkeys(names, "nowhere"),
        "data.image_grep": dict.fromkeys(names, "*"),
        "model_args.backbone_modalities": names,
    }
    config, checkpoint = make_task(tmp_path_factory.mktemp("task"), changes)
    return ["--config", str(config), "--ckpt_path", str(checkpoint), "--crop", "64", "--probabilities"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Return the words for a task that takes two dates."""
    names = ["S2L2A", "S1RTC", "DEM"]
    changes = {
        "data.modalities": names,
        "data.data_root": dict.fromkeys(names, "nowhere"),
        "data.image_grep": dict.fromkeys(names, "*"),
        "data.expand_temporal_dimension": True,
        "data.allow_missing_modalities": True,
        "model_args.backbone_modalities": names,
        "model_args.backbone_use_temporal": True,
        "model_args.backbone_temporal_pooling": "diff",
    }
    config, checkpoint = make_task(tmp_path_factory.mktemp("pair"), changes)
    return ["--config", str(config), "--ckpt_path", str(checkpoint), "--crop", "64", "--probabilities"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    ground = Ground(tmp_path_factory.mktemp("world"))
    ground.s2(NAME, "2023-06-12T10:26:09Z", LEFT, TOP, 240, swath=180)
    ground.s1("S1A_rtc_15", "2023-06-11T05:26:09Z", LEFT, TOP, 240)
    ground.s2(LATER, "2023-07-12T10:26:09Z", LEFT, TOP, 240, baseline="03.01", cloud=(60, 90, 60, 90))
    ground.s1("S1A_rtc_16", "2023-07-11T05:26:09Z", LEFT, TOP, 240)
    ground.dem(10.2, 47.8, 0.2)
    ground.save()
    aoi(ground.root / "field.geojson", HOME, (LEFT + 300, TOP - 1900, LEFT + 2000, TOP - 400))
    aoi(ground.root / "plot.geojson", HOME, (LEFT + 1300, TOP - 1100, LEFT + 2000, TOP - 400))
    return ground.root


def words(world: Path, out: Path, **changes: str | None) -> list[str]:
    given = {"stac": world / "catalog.json", "catalogue": "planetary_computer", "aoi": world / "field.geojson",
             "date": "2023-06-01/2023-06-30", "out": out, **changes}  # fmt: skip
    return [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]


def run(task: Sequence[str], *others: str) -> int:
    return main(["map", *task, *others])


def pixels(path: Path):
    with rasterio.open(path) as file:
        return file.read(), file.transform, file.crs


def write_scene(folder: Path, name: str, values, transform: Affine, nodata: float) -> Path:
    path = folder / f"{name}.tif"
    profile = {"driver": "GTiff", "count": len(values), "height": values.shape[1], "width": values.shape[2],
               "dtype": values.dtype.name, "crs": HOME, "transform": transform, "nodata": nodata}  # fmt: skip
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)
        file.descriptions = MODALITIES[name].band_names
    return path


def warp(path: Path, transform: Affine, shape: tuple[int, int]):
    """Return a file on a grid of its own zone, by rasterio alone."""
    with rasterio.open(path) as file, rasterio.vrt.WarpedVRT(
        file, crs=file.crs, transform=transform, width=shape[1], height=shape[0],
        resampling=rasterio.enums.Resampling.bilinear, src_nodata=file.nodata or 0, nodata=file.nodata or 0,
    ) as warped:  # fmt: skip
        return warped.read(1)


def test_map_of_an_area_is_that_of_a_scene_with_the_same_pixels(task, world, tmp_path, monkeypatch):
    monkeypatch.setattr(regions, "BLOCK_SIDE", 60)
    remove = mosaic.Feed.remove
    monkeypatch.setattr(mosaic.Feed, "remove", lambda feed: None)
    assert run(task, *words(world, tmp_path / "a")) == 0
    classes, transform, crs = pixels(tmp_path / "a" / "field_32632_pred.tif")
    shape = classes.shape[1:]
    assert crs.to_epsg() == 32632
    assert shape > (145, 165)
    blocks = tmp_path / "a" / "field_sources" / "field_32632"
    seen = {name: pixels(blocks / name / "field_32632.vrt")[0] for name in ("S2L2A", "S1RTC")}
    folder = world / "s2" / NAME
    optical = np.stack([warp(folder / f"{band}.tif", transform, shape) for band in MODALITIES["S2L2A"].band_names])
    optical = np.where(optical > 0, np.maximum(optical.astype(int) - 1000, 1), 0)
    apart = np.abs(seen["S2L2A"].astype(int) - optical)
    assert apart[[number for number in range(12) if number not in (0, 9)]].max() == 0
    assert apart.max() <= 1  # rounding of what is interpolated between pixels of 60 m
    power = np.stack([warp(world / "s1" / "S1A_rtc_15" / f"{band}.tif", transform, shape) for band in ("VV", "VH")])
    assert np.array_equal(seen["S1RTC"], (10 * np.log10(power)).astype(np.float32))
    scenes = [write_scene(tmp_path, "S2L2A", seen["S2L2A"], transform, 0),
              write_scene(tmp_path, "S1RTC", seen["S1RTC"], transform, np.nan)]  # fmt: skip
    given = ["--scene", f"S2L2A={scenes[0]}", "--scene", f"S1RTC={scenes[1]}"]
    assert run(task, *given, "--out", str(tmp_path / "b")) == 0
    again, *_ = pixels(tmp_path / "b" / "S2L2A_pred.tif")
    assert len(np.unique(classes)) > 1
    assert np.array_equal(classes, again)
    (shares, *_), (other, *_) = (
        pixels(tmp_path / f) for f in ("a/field_32632_probabilities.tif", "b/S2L2A_probabilities.tif")
    )
    assert np.array_equal(shares, other, equal_nan=True)
    with rasterio.open(tmp_path / "a" / "field_32632_pred.tif") as file:
        tags = file.tags()
    assert tags["scenes"] == f"S1A_rtc_15 {NAME}"
    assert tags["offsets_removed"] == f"{NAME}=1000"
    monkeypatch.setattr(mosaic.Feed, "remove", remove)
    assert run(task, *words(world, tmp_path / "a")) == 0
    left = [path.name for path in (tmp_path / "a" / "field_sources").iterdir()]
    assert sorted(left) == ["orders.json", "plan.parquet", "request.json", "scenes.parquet"]


def test_map_of_several_dates_is_that_of_scenes_with_the_same_pixels(pair, world, tmp_path, monkeypatch):
    monkeypatch.setattr(regions, "BLOCK_SIDE", 60)
    monkeypatch.setattr(mosaic.Feed, "remove", lambda feed: None)
    assert run(pair, *words(world, tmp_path / "a", date=PERIODS, aoi=world / "plot.geojson")) == 0
    sources = tmp_path / "a" / "plot_sources"
    assert not (sources / "date_2" / "plot_32632" / "DEM").exists()  # heights do not change
    scenes = []
    for name in ("S2L2A", "S1RTC", "DEM"):
        files = []
        for number in (1, 2) if name != "DEM" else (1,):
            (path,) = (sources / f"date_{number}" / "plot_32632" / name).glob("*.vrt")
            values, transform, _ = pixels(path)
            (tmp_path / str(number)).mkdir(exist_ok=True)
            gap = {"S1RTC": np.nan, "DEM": -32768}.get(name, 0)
            files.append(write_scene(tmp_path / str(number), name, values, transform, gap))
        scenes += ["--scene", f"{name}={','.join(map(str, files))}"]
    with rasterio.open(tmp_path / "1" / "S2L2A.tif") as one, rasterio.open(tmp_path / "2" / "S2L2A.tif") as two:
        first, second = one.read(2).astype(int), two.read(2).astype(int)
    seen = first > 0  # the first date ends at a swath's edge
    assert 0 < seen.mean() < 1
    assert (second > 0).all()
    clear = np.abs(second - first)[seen]
    assert np.median(clear) == 0  # the same ground, each without its own offset
    assert run(pair, *scenes, "--out", str(tmp_path / "b")) == 0
    for ending in ("pred", "probabilities"):
        ours, again = (pixels(tmp_path / f"{name}_{ending}.tif")[0] for name in ("a/plot_32632", "b/S2L2A"))
        np.testing.assert_array_equal(ours, again)
    assert len(np.unique(pixels(tmp_path / "a" / "plot_32632_pred.tif")[0])) > 1
    with rasterio.open(tmp_path / "a" / "plot_32632_pred.tif") as file:
        tags = file.tags()
    assert tags["scenes"].split("; ")[1] == f"S1A_rtc_16 {LATER}"
    assert tags["dates"] == "2023-06-11 2023-06-12, 2023-07-11 2023-07-12"
    assert tags["periods"] == PERIODS.replace(",", "; ")
    assert tags["offsets_removed"] == f"{NAME}=1000"


def test_ranges_follow_the_dates_of_the_model():
    two = DatesTaken(2, "temporal_pooling: diff")
    assert [str(one) for one in choose_periods("2023-06-01/2023-06-30", two, dated=True)] == [
        "2023-06-01/2023-06-15", "2023-06-16/2023-06-30",
    ]  # fmt: skip
    assert len(choose_periods("2023-05-01,2023-06-12,2023-07-12", None, dated=True)) == 3
    for date, taken, dated, message in (
        ("2023-06-01/2023-06-30,2023-06-30/2023-07-31", two, True, "without common days"),
        ("2023-05-01,2023-06-12,2023-07-12", two, True, "has 3 dates, expected 2 for temporal_pooling: diff"),
        ("2023-06-12", two, True, "--date 2023-06-12/2023-06-12 has 1 day, fewer than the 2 dates of the model"),
        ("2023-06-01/2023-06-30", None, True, "--date 2023-06-01/2023-06-15,2023-06-16/2023-06-30"),
        (PERIODS, None, False, "--date lists 2 ranges, but the configuration has one date"),
    ):
        with pytest.raises(ConfigError) as caught:
            choose_periods(date, taken, dated=dated)
        assert message in str(caught.value)


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_and_reads_nothing_twice(task, world, tmp_path, monkeypatch):
    monkeypatch.setattr(regions, "BLOCK_SIDE", 60)
    assert run(task, *words(world, tmp_path / "whole")) == 0
    make, made = mosaic.make_mosaic_block, []

    def stop_at(number):
        def work(one):
            if len(made) == number:
                raise KeyboardInterrupt
            made.append(one.block.place.id)
            return make(one)

        return work

    for number in (4, 7, 100):
        monkeypatch.setattr(mosaic, "make_mosaic_block", stop_at(number))
        try:
            status = run(task, *words(world, tmp_path / "parts"))
        except KeyboardInterrupt:
            status = 130
        assert status == (0 if number == 100 else 130)
    assert len(made) == len(set(made))
    names = [path.name for path in (tmp_path / "whole").glob("*.*")]
    assert len(names) == 3
    for name in names:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    monkeypatch.setattr(mosaic, "make_mosaic_block", stop_at(0))
    made.clear()
    assert run(task, *words(world, tmp_path / "parts")) == 0  # what is finished is not made again


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aoi": None}, "--stac needs --aoi AREA.geojson."),
        ({"date": None}, "--stac needs --date 2023-06-01/2023-06-30."),
        ({"stac": None, "aoi": None, "date": None, "catalogue": None}, "Give --scene FILE, or --stac"),
    ],
)
def test_missing_options_are_named_at_once(changes, message, tmp_path, capsys):
    assert main(["map", "-c", "c.yaml", "--ckpt_path", "b.ckpt", *words(tmp_path, tmp_path / "o", **changes)]) == 2
    assert message in capsys.readouterr().err


def test_bad_input_is_one_clear_line_and_nothing_is_written(task, world, tmp_path, capsys):
    utm = tmp_path / "utm.geojson"
    ring = [[LEFT, TOP], [LEFT + 100, TOP], [LEFT, TOP + 100], [LEFT, TOP]]
    utm.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    for changes, message in (
        ({"aoi": utm}, "is in another CRS"),
        ({"date": "2019-01-01/2019-02-01"}, "2019"),
        ({"date": "yesterday"}, "--date takes a day or a range"),
        ({"stac": tmp_path / "nothing.json"}, "nothing.json"),
        ({"catalogue": "earth_search"}, "S1RTC"),
    ):
        out = tmp_path / "out"
        capsys.readouterr()
        assert run(task, *words(world, out, **changes)) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("terramind: ")]
        assert len(error) == 1
        assert message in error[0]
        assert not out.exists()
