"""Regions of a map: one grid a zone, blocks made ahead of their reader, no seam, resumed after a stop."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import rasterio
from shapely.geometry import Polygon, box, mapping

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.georeference import apply_affine
from terramind_plugin.sources import mosaic, regions
from terramind_plugin.sources.block import chip_path, done_path
from terramind_plugin.sources.mosaic import Feed, refuse_failures
from terramind_plugin.sources.plan import make_request
from terramind_plugin.sources.reading import read_mask, read_modality
from terramind_plugin.sources.regions import plan_regions
from tests.sources.conftest import LEFT, TOP
from tests.sources.ground import HOME, Ground, aoi, reflectance

DATES = "2023-05-01/2023-09-30"


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(regions, "BLOCK_SIDE", 120)


def ask(root, modalities=("S2L2A",), dates=DATES, **changes):
    return make_request(modalities, dates, [str(root / "catalog.json")], ["planetary_computer"], **changes)


def everything(feed):
    paths = feed.prepare()
    feed.need(0, feed.region.grid.height)
    feed.close()
    found = {}
    for modality, path in paths.items():
        with rasterio.open(path) as file:
            found[modality] = file.read()
    return found


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def area(ground, tmp_path_factory):
    """Return a file with an area of 4 x 3 small blocks."""
    return aoi(tmp_path_factory.mktemp("area") / "my area.geojson", HOME,
               (LEFT + 500, TOP - 4500, LEFT + 4800, TOP - 700))  # fmt: skip


def test_blocks_join_without_a_seam(ground, area, tmp_path):
    """What all blocks give together is what one read of the region gives, bit by bit in the zone of the scenes."""
    (region,) = plan_regions(ask(ground.root, ("S2L2A", "S1RTC", "DEM", "LULC")), area, tmp_path / "plan")
    assert len(region.blocks) >= 12
    assert (region.name, region.grid.crs.to_epsg()) == ("my_area_32632", 32632)
    assert region.grid.transform.c % 60 == region.grid.transform.f % 60 == 0
    found = everything(Feed(region, tmp_path / "blocks"))
    order = regions._read_orders(tmp_path / "plan", None, None, 1, None, print)[region.name]
    for modality in ("S1RTC", "DEM", "LULC"):
        first = [region.scenes[key] for key in order[modality][0]]
        whole = read_modality(region.grid, modality, first)
        if modality == "S1RTC":
            assert np.array_equal(found[modality], whole.values, equal_nan=True)
        else:
            assert np.abs(found[modality].astype(int) - whole.values).max() <= (1 if modality == "DEM" else 0)
    whole = read_modality(region.grid, "S2L2A", [region.scenes[key] for key in order["S2L2A"][0]])
    clear = np.isin(read_mask(region.grid, [region.scenes[key] for key in order["S2L2A"][0]]).values[0], mosaic.CLEAR)
    assert clear.all()
    apart = np.abs(found["S2L2A"].astype(int) - whole.values).max(axis=(1, 2))
    coarse = [name in ("B01", "B09") for name in MODALITIES["S2L2A"].band_names]
    assert apart[~np.array(coarse)].max() == 0
    assert apart.max() <= 1  # rounding of what is interpolated between pixels of 60 m
    rows, columns = np.mgrid[: region.grid.height, : region.grid.width] + 0.5
    x, y = apply_affine(region.grid.transform, columns, rows)
    assert np.abs(found["S2L2A"][3] - reflectance("B04", x, y)).max() < 1  # in its own zone: no offset, no resampling


def test_clouds_and_swath_edges_are_filled_from_other_passes(tmp_path):
    ground = Ground(tmp_path)
    names = ["S2B_MSIL2A_20230612T102609_R108_T32TPT_20230612T150000",
             "S2B_MSIL2A_20230617T102609_R065_T32TPT_20230617T150000"]  # fmt: skip
    ground.s2(names[0], "2023-06-12T10:26:09Z", LEFT, TOP, 360, cloud=(60, 180, 60, 240))
    ground.s2(names[1], "2023-06-17T10:26:09Z", LEFT, TOP, 360, baseline="03.01", orbit=65, swath=140)
    ground.save()
    place = aoi(tmp_path / "a.geojson", HOME, (LEFT + 60, TOP - 3540, LEFT + 3540, TOP - 60))
    (region,) = plan_regions(ask(tmp_path), place, tmp_path / "plan")
    (values,) = everything(Feed(region, tmp_path / "blocks")).values()
    rows, columns = np.mgrid[: region.grid.height, : region.grid.width] + 0.5
    x, y = apply_affine(region.grid.transform, columns, rows)
    down, across = (TOP - y) / 10, (x - LEFT) / 10
    cloudy = (down > 60) & (down < 180) & (across > 140) & (across < 240)
    truth = reflectance("B03", x, y)
    away = ~((down > 58) & (down < 182) & (across > 130) & (across < 242))
    assert np.abs(values[2] - truth)[away].max() < 1
    inner = (down > 70) & (down < 170) & (across > 150) & (across < 230)
    assert inner[cloudy].any()
    assert (values[2][inner] == 8000).all()  # cloudy on every date that shows it
    assert values.min() > 0


def test_two_workers_make_the_same_bytes(ground, area, tmp_path):
    for workers in (1, 2):
        (region,) = plan_regions(
            ask(ground.root, ("S2L2A", "S1RTC")), area, tmp_path / f"plan{workers}", workers=workers
        )
        everything(Feed(region, tmp_path / f"blocks{workers}", workers))
    assert content(tmp_path / "blocks1") == content(tmp_path / "blocks2")
    names = ("orders.json", "plan.parquet", "scenes.parquet")
    assert all((tmp_path / "plan1" / n).read_bytes() == (tmp_path / "plan2" / n).read_bytes() for n in names)


def test_rows_are_made_when_they_are_needed_and_once(ground, area, tmp_path, monkeypatch):
    made = []
    make = mosaic.make_mosaic_block
    monkeypatch.setattr(mosaic, "make_mosaic_block", lambda task: made.append(task.block.place.id) or make(task))
    (region,) = plan_regions(ask(ground.root), area, tmp_path / "plan")
    across = -(-region.grid.width // 120)
    feed = Feed(region, tmp_path / "blocks")
    feed.prepare()
    feed.need(0, 64)
    assert len(made) == across
    feed.need(0, 120)
    assert len(made) == across
    feed.need(100, 130)
    assert len(made) == 2 * across
    feed.close()
    again = Feed(region, tmp_path / "blocks")  # as after a kill
    again.prepare()
    again.need(240, 250)
    again.need(0, region.grid.height)
    assert sorted(made) == sorted(block.place.id for block in region.blocks)
    again.close()


def test_a_block_without_a_record_is_made_again_with_the_same_bytes(ground, area, tmp_path):
    (region,) = plan_regions(ask(ground.root), area, tmp_path / "plan")
    everything(Feed(region, tmp_path / "blocks"))
    before = content(tmp_path / "blocks")
    first = region.blocks[0].place.id
    done_path(tmp_path / "blocks", first).unlink()
    chip_path(tmp_path / "blocks", "S2L2A", first).write_bytes(b"half a fi")
    other = done_path(tmp_path / "blocks", region.blocks[1].place.id)
    other.write_text(json.dumps(json.loads(other.read_text()) | {"fingerprint": "of another plan"}))
    everything(Feed(region, tmp_path / "blocks"))
    assert content(tmp_path / "blocks") == before


def test_a_scene_that_fails_costs_its_pixels_and_is_listed(tmp_path):
    ground = Ground(tmp_path)
    names = ["S2B_MSIL2A_20230612T102609_R108_T32TPT_20230612T150000",
             "S2B_MSIL2A_20230617T102609_R065_T32TPT_20230617T150000"]  # fmt: skip
    ground.s2(names[0], "2023-06-12T10:26:09Z", LEFT, TOP, 240)
    ground.s2(names[1], "2023-06-17T10:26:09Z", LEFT, TOP, 240, cloud=(0, 60, 0, 60))
    ground.save()
    place = aoi(tmp_path / "a.geojson", HOME, (LEFT + 60, TOP - 2340, LEFT + 2340, TOP - 60))
    path = tmp_path / "s2" / names[0] / "B05.tif"
    path.write_bytes(path.read_bytes()[:2000])
    (region,) = plan_regions(ask(tmp_path), place, tmp_path / "plan")
    feed = Feed(region, tmp_path / "blocks")
    (values,) = everything(feed).values()
    assert values.min() > 0
    with pytest.raises(DataError, match=rf"without 1 scene that cannot be read.*{names[0]}.*B05.*--skip_scenes"):
        refuse_failures(feed.failed)
    refuse_failures({})
    skipping = ask(tmp_path, skipped=[names[0]])
    with pytest.raises(ConfigError, match=r"holds the plan of another request \(skip_scenes"):
        plan_regions(skipping, place, tmp_path / "plan")
    (region,) = plan_regions(skipping, place, tmp_path / "other")
    assert [scene.id for scene in region.scenes.values()] == [names[1]]


def test_a_plan_that_is_there_is_taken_without_a_search(ground, area, tmp_path, monkeypatch):
    (region,) = plan_regions(ask(ground.root), area, tmp_path / "plan")
    monkeypatch.setattr(regions, "plan_scenes", lambda *_, **__: pytest.fail("searched again"))
    monkeypatch.setattr(regions, "_measure", lambda *_: pytest.fail("looked at clouds again"))
    said = []
    (again,) = plan_regions(ask(ground.root), area, tmp_path / "plan", say=said.append)
    assert again.fingerprint == region.fingerprint
    assert said[0].startswith("using the plan")


def test_zones_are_cut_at_their_meridians(tmp_path):
    over = box(11.9, 47.6, 12.1, 47.7)
    parts = dict(regions._zones(over))
    assert {*parts} == {32632, 32633}
    assert parts[32632].bounds[2] == parts[32633].bounds[0] == 12
    assert [*dict(regions._zones(box(5, 60, 11, 61)))] == [32632]  # Norway
    assert [*dict(regions._zones(box(10, -0.1, 10.1, 0.1)))] == [32632, 32732]


def test_blocks_that_do_not_touch_the_area_are_left_out(ground, tmp_path):
    x, y = LEFT + 1000, TOP - 1000
    corner = Polygon([(x, y), (x + 6000, y), (x, y - 6000)])
    path = tmp_path / "corner.geojson"
    from terramind_plugin.sources.grids import to_degrees

    ring = np.column_stack(to_degrees(HOME, *np.array(corner.exterior.coords).T))
    path.write_text(json.dumps(mapping(Polygon(ring))))
    (region,) = plan_regions(ask(ground.root), path, tmp_path / "plan")
    across, down = (-(-side // 120) for side in (region.grid.width, region.grid.height))
    assert across * down / 2 < len(region.blocks) < 0.85 * across * down
    (values,) = everything(Feed(region, tmp_path / "blocks")).values()
    assert (values[:, -60:, -60:] == 0).all()
    assert (values[:, :60, :60] > 0).all()


def test_radar_keeps_to_one_direction(tmp_path):
    ground = Ground(tmp_path)
    ground.s1("near but partial", "2023-06-12T05:26:09Z", LEFT, TOP, 240, orbit=15, state="descending", gap=200)
    ground.s1("whole", "2023-06-14T05:26:09Z", LEFT, TOP, 360, orbit=88)
    ground.s1("same direction", "2023-06-24T05:26:09Z", LEFT, TOP, 360, orbit=88)
    ground.save()
    place = aoi(tmp_path / "a.geojson", HOME, (LEFT + 100, TOP - 3000, LEFT + 3000, TOP - 100))
    (region,) = plan_regions(ask(tmp_path, ("S1RTC",), "2023-06-01/2023-06-30"), place, tmp_path / "plan")
    (passes,) = {block.passes["S1RTC"] for block in region.blocks if len(block.passes["S1RTC"]) == 3}
    assert [keys[0].split("/")[1] for keys in passes] == ["whole", "same direction", "near but partial"]


def test_land_cover_is_of_the_nearest_year(ground, area, tmp_path):
    wanted = datetime(2022, 7, 1, tzinfo=UTC)
    (region,) = plan_regions(ask(ground.root, ("LULC",), "2022-07-01"), area, tmp_path / "plan")
    first = region.scenes[region.blocks[0].passes["LULC"][0][0]]
    assert first.start <= wanted <= first.end


def test_full_disk_ends_the_run_in_words(ground, area, tmp_path, monkeypatch):
    (region,) = plan_regions(ask(ground.root), area, tmp_path / "plan")

    def refuse(*_, **__):
        raise DataError("b.tif cannot be written: Is the disk full?") from OSError(28, os.strerror(28))

    monkeypatch.setattr(mosaic, "write_geotiff", refuse)
    feed = Feed(region, tmp_path / "blocks")
    feed.prepare()
    with pytest.raises(DataError, match="Is the disk full"):
        feed.need(0, 10)
    assert not list(Path(tmp_path / "blocks").rglob("*.tmp"))
