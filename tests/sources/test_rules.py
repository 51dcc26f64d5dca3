"""The table of collections, row by row, and what an item says of its offset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shapely import box

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.sources.plan import make_request
from terramind_plugin.sources.rules import RULES, CollectionRule, catalogue_of, choose_rules, read_rules
from terramind_plugin.sources.scenes import group_passes, make_scene

GROUND = box(10, 47, 11, 48).wkb
ADDRESSES = {
    "planetary_computer": "https://planetarycomputer.microsoft.com/api/stac/v1",
    "earth_search": "https://earth-search.aws.element84.com/v1",
    "cdse": "https://stac.dataspace.copernicus.eu/v1",
}


def item(rule: CollectionRule, name: str = "scene", **properties: Any) -> dict[str, Any]:
    given = {"datetime": "2023-06-12T10:26:09Z", **properties}
    assets = {asset: {"href": f"https://host/{asset}.tif"} for asset in rule.assets.values()}
    return {"id": name, "properties": given, "assets": assets}


def rule(catalogue: str, collection: str) -> CollectionRule:
    return next(one for one in RULES if (one.catalogue, one.collection) == (catalogue, collection))


@pytest.mark.parametrize("row", RULES, ids=lambda row: f"{row.catalogue}-{row.collection}")
def test_each_row_names_all_bands(row: CollectionRule):
    needed = {*MODALITIES[row.modality].band_names} | ({"SCL"} if row.modality == "S2L2A" else set())
    assert set(row.assets) == needed
    assert len(set(row.assets.values())) == len(needed)
    scene = make_scene(item(row, **{"s2:processing_baseline": "05.09"}), row, GROUND)
    assert scene.assets[next(iter(row.assets))] == f"https://host/{row.assets[next(iter(row.assets))]}.tif"
    assert scene.offset == (1000 if row.offset == "baseline" else 0)


@pytest.mark.parametrize(
    ("catalogue", "collection", "band", "asset"),
    [
        ("planetary_computer", "sentinel-2-l2a", "B8A", "B8A"),
        ("planetary_computer", "sentinel-2-l2a", "SCL", "SCL"),
        ("planetary_computer", "sentinel-1-rtc", "VH", "vh"),
        ("planetary_computer", "io-lulc-annual-v02", "LULC", "data"),
        ("earth_search", "sentinel-2-c1-l2a", "B8A", "nir08"),
        ("earth_search", "sentinel-2-l2a", "B09", "nir09"),
        ("earth_search", "sentinel-2-l2a", "B05", "rededge1"),
        ("cdse", "sentinel-2-l2a", "B02", "B02_10m"),
        ("cdse", "sentinel-2-l2a", "B05", "B05_20m"),
        ("cdse", "sentinel-2-l2a", "B09", "B09_60m"),
        ("cdse", "sentinel-2-l2a", "SCL", "SCL_20m"),
        ("earth_search", "sentinel-2-l1c", "B10", "cirrus"),
        ("cdse", "sentinel-2-l1c", "B8A", "B8A"),
        ("cdse", "cop-dem-glo-30-dged-cog", "DEM", "data"),
    ],
)
def test_assets(catalogue: str, collection: str, band: str, asset: str):
    assert rule(catalogue, collection).assets[band] == asset


@pytest.mark.parametrize(
    ("properties", "name", "offset"),
    [
        ({"s2:processing_baseline": "05.09"}, "new", 1000),
        ({"s2:processing_baseline": "04.00"}, "first", 1000),
        ({"s2:processing_baseline": "03.01"}, "old", 0),
        ({"s2:processing_baseline": "05.00", "datetime": "2017-06-12T10:26:09Z"}, "reprocessed", 1000),
        ({"s2:processing_baseline": "02.14", "datetime": "2022-06-12T10:26:09Z"}, "late", 0),
        ({"s2:processing_baseline": 5.1}, "number", 1000),
        ({"processing:version": "05.11"}, "cdse", 1000),
        ({"processing:version": "02.09"}, "cdse", 0),
        ({}, "S2C_MSIL2A_20250330T100051_N0511_R122_T33UWP_20250330T145914", 1000),
        ({}, "S2A_MSIL2A_20190330T100051_N0211_R122_T33UWP_20190330T145914", 0),
        ({"s2:product_uri": "S2B_MSIL2A_20190629T212529_N0500_R043_T06VVN_20230605T080531.SAFE"}, "uri", 1000),
        ({"s2:granule_id": "S2B_OPER_MSI_L2A_TL_ESRI_20201006T080533_A012081_T06VVN_N02.12"}, "granule", 0),
    ],
)
@pytest.mark.parametrize(
    "row", [one for one in RULES if one.offset == "baseline"], ids=lambda row: f"{row.catalogue}-{row.collection}"
)
def test_the_baseline_decides_on_the_offset_and_never_the_date(row, properties, name, offset):
    assert make_scene(item(row, name, **properties), row, GROUND).offset == offset


def test_an_unknown_baseline_is_no_guess():
    row = rule("planetary_computer", "sentinel-2-l2a")
    with pytest.raises(DataError, match="processing baseline"):
        make_scene(item(row), row, GROUND)


@pytest.mark.parametrize(
    ("properties", "fine"),
    [
        ({"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}, True),
        ({"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": False}, True),
        ({"s2:processing_baseline": "04.00", "datetime": "2022-10-12T10:00:00Z"}, True),
        ({"s2:processing_baseline": "04.00", "datetime": "2022-01-26T10:00:00Z"}, False),
        (
            {"s2:processing_baseline": "04.00", "datetime": "2022-01-26T10:00:00Z",
             "earthsearch:boa_offset_applied": True},
            True,
        ),
        ({"s2:processing_baseline": "03.01", "datetime": "2022-01-24T10:00:00Z"}, True),
    ],
)  # fmt: skip
def test_earth_search_l2a_has_no_offset_and_doubtful_scenes_are_refused(properties, fine):
    row = rule("earth_search", "sentinel-2-l2a")
    if fine:
        assert make_scene(item(row, **properties), row, GROUND).offset == 0
    else:
        with pytest.raises(DataError, match="sentinel-2-c1-l2a"):
            make_scene(item(row, **properties), row, GROUND)


def test_the_product_names_the_orbit_where_the_item_does_not():
    row = rule("earth_search", "sentinel-2-c1-l2a")
    uri = "S2B_MSIL2A_20190629T212529_N0500_R043_T06VVN_20230605T080531.SAFE"
    given = {"s2:processing_baseline": "05.00", "s2:product_uri": uri}
    assert make_scene(item(row, "S2B_T06VVN_20190629T212529_L2A", **given), row, GROUND).orbit == 43
    assert make_scene(item(row, "S2B_T06VVN", **given, **{"sat:relative_orbit": 7}), row, GROUND).orbit == 7
    radar = rule("planetary_computer", "sentinel-1-rtc")
    assert make_scene(item(radar, "S1A_IW_R043_rtc"), radar, GROUND).orbit is None


def test_passes_of_one_day_without_an_orbit_are_told_apart_by_their_time():
    row = rule("planetary_computer", "sentinel-1-rtc")
    times = {"a": "2023-06-12T05:10:00Z", "b": "2023-06-12T16:50:00Z", "c": "2023-06-12T05:10:25Z"}
    scenes = [make_scene(item(row, name, datetime=time), row, GROUND) for name, time in times.items()]
    passes = group_passes(scenes, 10.0).values()
    assert [[scene.id for scene in found] for found in passes] == [["a", "c"], ["b"]]


def test_an_item_of_l1c_with_files_of_l2a_is_refused():
    row = rule("earth_search", "sentinel-2-l1c")
    wrong = item(row, "S2A_10UDV_20221109_0_L1C", **{"s2:processing_baseline": "04.00"})
    assert make_scene(wrong, row, GROUND).offset == 1000
    wrong["assets"]["blue"]["href"] = "s3://sentinel-s2-l2a/tiles/10/U/DV/2022/11/9/0/R10m/B02.jp2"
    with pytest.raises(DataError, match="its files are L2A"):
        make_scene(wrong, row, GROUND)


def test_an_item_without_an_asset_is_told():
    row = rule("planetary_computer", "sentinel-1-rtc")
    without = item(row)
    del without["assets"]["vh"]
    with pytest.raises(DataError, match="no asset vh"):
        make_scene(without, row, GROUND)


def test_addresses_choose_the_catalogue():
    assert {name: catalogue_of(address) for name, address in ADDRESSES.items()} == {name: name for name in ADDRESSES}
    assert catalogue_of("https://example.org/planetarycomputer.microsoft.com") is None


def test_a_collection_with_two_meanings_needs_a_choice():
    with pytest.raises(ConfigError, match="differs between planetary_computer, earth_search, cdse"):
        choose_rules(read_rules(None), "S2L2A", {"sentinel-2-l2a"})
    assert choose_rules(read_rules(None), "DEM", {"cop-dem-glo-30"})[0].assets == {"DEM": "data"}
    assert choose_rules(read_rules("earth_search"), "S2L2A", None)[0].collection == "sentinel-2-c1-l2a"


def test_rules_of_a_user(tmp_path: Path):
    path = tmp_path / "rules.yaml"
    path.write_text("[{collection: mine, modality: S1RTC, assets: {VV: co, VH: cross}, units: power}]")
    (row,) = read_rules(str(path))
    assert (row.collection, row.assets["VH"], row.offset) == ("mine", "cross", "none")
    for text, message in (
        ("{}", "list of collections"),
        ("[{collection: mine}]", "lacks modality, assets, units"),
        ("[{collection: mine, modality: S1RTC, assets: {VV: co}, units: power}]", "VH is missing"),
        ("[{collection: mine, modality: DEM, assets: {DEM: a}, units: feet}]", "units is one of"),
        ("[{collection: mine, modality: DEM, assets: {DEM: a}, units: metres, nodatum: 0}]", "no key 'nodatum'"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_rules(str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["S1GRD"], "2023-06-12", ["x.json"]), "uncalibrated amplitudes"),
        ((["NDVI"], "2023-06-12", ["x.json"]), "not read from catalogues"),
        ((["S2L2A", "S2L2A"], "2023-06-12", ["x.json"]), "twice"),
        ((["S2L3"], "2023-06-12", ["x.json"]), "Unknown modality"),
        ((["S2L2A"], "June", ["x.json"]), "2023-05-01/2023-09-30"),
        ((["S2L2A"], "2023-02-30", ["x.json"]), "--date takes"),
        ((["S2L2A"], "2023-06-12/2023-06-01", ["x.json"]), "ends before it begins"),
        ((["S2L2A", "DEM"], "2023-06-12", ["DEM=x.json"]), "No source for S2L2A"),
        ((["S2L2A"], "2023-06-12", ["x.json", "y.json"]), "two values"),
        ((["S2L2A"], "2023-06-12", ["x.json"], ["planetary"]), "Did you mean 'planetary_computer'"),
        ((["S1RTC"], "2023-06-12", [ADDRESSES["earth_search"]]), "It is in planetary_computer"),
        ((["S2L1C"], "2023-06-12", [ADDRESSES["planetary_computer"]]), "cdse, earth_search"),
        ((["S2L2A"], "2023-06-12", ["x.json"], [], {"S2L2A": "landsat"}), "landsat is not known"),
    ],
)
def test_requests_that_are_not_possible(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_request(*arguments)


def test_radar_of_planetary_computer_needs_a_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PC_SDK_SUBSCRIPTION_KEY", raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    with pytest.raises(ConfigError, match="PC_SDK_SUBSCRIPTION_KEY"):
        make_request(["S2L2A", "S1RTC"], "2023-06-12", [ADDRESSES["planetary_computer"]])
    monkeypatch.setenv("PC_SDK_SUBSCRIPTION_KEY", "key")
    request = make_request(["S2L2A", "S1RTC"], "2023-06-12", [ADDRESSES["planetary_computer"]])
    assert [rule.collection for rule in request.rules("S1RTC") if rule.modality == "S1RTC"] == ["sentinel-1-rtc"]
