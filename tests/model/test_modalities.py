"""Names and bands are understood in the spellings users have, and near misses get a suggestion."""

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terramind_plugin.errors import ConfigError
from terramind_plugin.model.modalities import MODALITIES, find, resolve, statistics

IMAGES = [m for m in MODALITIES.values() if m.bands]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("S2L2A", "S2L2A"),
        ("s2l2a", "S2L2A"),
        ("S2-L2A", "S2L2A"),
        ("S2_L1C", "S2L1C"),
        ("S1_RTC", "S1RTC"),
        ("s1grd", "S1GRD"),
        ("sen1rtc", "S1RTC"),
        ("untok_sen1rtc@224", "S1RTC"),
        ("tok_lulc@224", "LULC"),
        ("S2RGB", "RGB"),
        ("elevation", "DEM"),
        ("landcover", "LULC"),
        ("Coordinates", "coords"),
        ("location", "coords"),
    ],
)
def test_spelling(spelling, name):
    assert resolve(spelling) is MODALITIES[name]


@pytest.mark.parametrize("name", ["S1", "s1", "sen1", "Sentinel-1", "SAR"])
def test_sentinel_1_is_ambiguous(name):
    with pytest.raises(ConfigError, match="ambiguous: write S1GRD or S1RTC"):
        resolve(name)


@pytest.mark.parametrize("name", ["S2", "sentinel_2"])
def test_sentinel_2_is_ambiguous(name):
    with pytest.raises(ConfigError, match="write S2L1C or S2L2A"):
        resolve(name)


@pytest.mark.parametrize("name", ["caption", "Captions"])
def test_captions_are_refused(name):
    with pytest.raises(ConfigError, match="they have no captions"):
        resolve(name)


def test_ambiguous_is_not_found():
    assert find("S1") is None


@pytest.mark.parametrize(("typo", "meant"), [("S2L2", "S2L2A"), ("S1GDR", "S1GRD"), ("DEMM", "DEM"), ("ndwi", "NDVI")])
def test_near_miss(typo, meant):
    with pytest.raises(ConfigError, match=f"Unknown modality '{typo}'.*Did you mean '{meant}'"):
        resolve(typo)


def test_far_miss_lists_all():
    with pytest.raises(ConfigError) as error:
        resolve("hyperspectral cube")
    assert all(name in str(error.value) for name in MODALITIES)
    assert "Did you mean" not in str(error.value)


@given(
    st.sampled_from([s for m in MODALITIES.values() for s in (m.name, *m.aliases)]),
    st.sampled_from(["", "-", "_", " "]),
    st.integers(0, 20),
    st.booleans(),
)
def test_case_and_separators_do_not_matter(spelling, separator, place, upper):
    varied = spelling[:place] + separator + spelling[place:]
    assert find(varied.upper() if upper else varied.lower()) is find(spelling)


@pytest.mark.parametrize(
    ("modality", "band", "index"),
    [("S2L2A", "B4", 3), ("S2L2A", "b04", 3), ("S2L2A", "red", 3), ("S2L2A", "B8A", 8), ("S2L2A", "B8", 7),
     ("S2L2A", "B12", 11), ("S2L1C", "B10", 10), ("S2L1C", "B12", 12), ("S1GRD", "vh", 1), ("RGB", "G", 1)],
)  # fmt: skip
def test_band(modality, band, index):
    assert MODALITIES[modality].band_index(band) == index


@given(st.data())
def test_band_spellings(data):
    modality = data.draw(st.sampled_from(IMAGES))
    index = data.draw(st.integers(0, len(modality.bands) - 1))
    band = modality.bands[index]
    name = data.draw(st.sampled_from([band.name, band.common_name]))
    if name.startswith("B0") and data.draw(st.booleans()):
        name = "B" + name[2:]
    name = "".join(data.draw(st.sampled_from([c.lower(), c.upper()])) for c in name)
    name = data.draw(st.sampled_from(["", " "])) + name + data.draw(st.sampled_from(["", " "]))
    assert modality.find_band(name) == index


@given(st.sampled_from(IMAGES), st.text(max_size=8))
def test_other_text_is_no_band(modality, text):
    index = modality.find_band(text)
    names = {b.name for b in modality.bands} | {b.common_name for b in modality.bands}
    names |= {name.replace("B0", "B") for name in names}
    assert (index is not None) == (text.strip().upper() in names)


def test_each_spelling_is_one_band():
    for modality in IMAGES:
        spellings = [s for b in modality.bands for s in {b.name, b.common_name}]
        assert len(spellings) == len(set(spellings))


def test_unknown_band():
    with pytest.raises(ConfigError, match=r"Unknown band 'NIR' for modality S2L2A.*B08 \(NIR_BROAD\)"):
        MODALITIES["S2L2A"].band_index("NIR")
    with pytest.raises(ConfigError, match="Did you mean 'SWIR_1'"):
        MODALITIES["S2L2A"].band_index("SWIR1")


def test_cirrus_is_only_in_l1c():
    assert MODALITIES["S2L2A"].find_band("CIRRUS") is None
    assert MODALITIES["S2L1C"].find_band("CIRRUS") == 10


def test_statistics_in_the_order_given():
    means, stds = statistics(MODALITIES["S1GRD"], ["VH", "VV"])
    assert means == [-20.293, -12.599]
    assert stds == [5.890, 5.195]


def test_land_cover_classes():
    land_cover = MODALITIES["LULC"]
    assert land_cover.class_names == (
        "no data", "water", "trees", "flooded vegetation", "crops", "built", "bare", "snow/ice", "clouds", "rangeland",
    )  # fmt: skip
    assert len(land_cover.class_colors) == len(set(land_cover.class_colors)) == 10
    assert land_cover.valid_range == (0, 9)


def test_rgb_bands():
    assert [MODALITIES["S2L2A"].bands[i].common_name for i in MODALITIES["S2L2A"].rgb] == ["RED", "GREEN", "BLUE"]
    assert all(max(m.rgb) < len(m.bands) for m in IMAGES)


def test_means_are_in_the_valid_range():
    for modality in IMAGES:
        low, high = modality.valid_range
        assert all(low <= mean <= high for mean in modality.mean)


def test_the_table_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        MODALITIES["DEM"].units = "ft"


def test_import_is_light():
    code = (
        "import sys, terramind_plugin.model.modalities; print({'torch', 'terratorch', 'lightning'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
