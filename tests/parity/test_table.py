"""The table's numbers are those TerraTorch registers."""

import pytest

from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.model.variants import VARIANTS

PIXELS = [m for m in MODALITIES.values() if m.patch_key]
TOKENS = [m for m in MODALITIES.values() if m.token_key]


@pytest.fixture(scope="module")
def register(backbones):
    from terratorch.models.backbones.terramind.model import terramind_register

    return terramind_register


@pytest.fixture(scope="module")
def info(backbones):
    from terratorch.models.backbones.terramind.model.modality_info import MODALITY_INFO

    return MODALITY_INFO


def test_all_pixel_modalities_are_in_the_table(register):
    assert {m.patch_key for m in PIXELS} == set(register.PRETRAINED_BANDS)


@pytest.mark.parametrize("modality", PIXELS, ids=lambda m: m.name)
def test_bands(register, modality):
    assert [band.common_name for band in modality.bands] == register.PRETRAINED_BANDS[modality.patch_key]


@pytest.mark.parametrize("modality", PIXELS, ids=lambda m: m.name)
def test_channels(info, modality):
    assert len(modality.bands) == info[modality.patch_key]["num_channels"]


@pytest.mark.parametrize("modality", [m for m in MODALITIES.values() if m.bands], ids=lambda m: m.name)
def test_statistics(register, modality):
    keys = [key for key in (modality.patch_key, modality.token_key) if key]
    for key in keys:
        assert list(modality.mean) == register.v1_pretraining_mean[key]
        assert list(modality.std) == register.v1_pretraining_std[key]


def test_all_statistics_are_in_the_table(register):
    known = {key for m in MODALITIES.values() for key in (m.patch_key, m.token_key)}
    assert set(register.v1_pretraining_mean) <= known
    assert set(register.v1_pretraining_std) <= known


@pytest.mark.parametrize("modality", TOKENS, ids=lambda m: m.name)
def test_vocabulary(info, modality):
    entry = info[modality.token_key]
    assert modality.vocab_size == entry["vocab_size"]
    assert modality.vocab_size == entry["encoder_embedding"].keywords["vocab_size"]
    assert modality.max_length == entry["encoder_embedding"].keywords.get("max_length")


@pytest.mark.parametrize("modality", TOKENS, ids=lambda m: m.name)
def test_kind(info, modality):
    assert (modality.kind == "sequence") == (info[modality.token_key]["type"] == "seq")


@pytest.mark.parametrize("variant", [v for v in VARIANTS.values() if v.hub_repo], ids=lambda v: v.name)
def test_hub_file(register, variant):
    entry = register.pretrained_weights[variant.name]
    assert (variant.hub_repo, variant.hub_file) == (entry["hf_hub_id"], entry["hf_hub_filename"])


def test_terratorch_band_names_are_found(backbones):
    from terratorch.datasets.utils import HLSBands, OpticalBands, SARBands

    s2, s1 = MODALITIES["S2L2A"], MODALITIES["S1GRD"]
    assert [s2.find_band(band) for band in (OpticalBands.BLUE, OpticalBands.NIR_NARROW, HLSBands.SWIR_2)] == [1, 8, 11]
    assert [s1.find_band(band) for band in (SARBands.VV, SARBands.VH)] == [0, 1]
