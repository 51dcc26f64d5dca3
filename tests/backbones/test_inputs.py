"""What a backbone is configured with and what it is given."""

import pytest
import torch

from terramind_plugin.builders import build_backbone, build_tim
from terramind_plugin.errors import ConfigError
from terramind_plugin.model.planning import plan_inputs

TINY = "terramind_v1_tiny"


def refused(message, *args, **kwargs):
    with pytest.raises(ConfigError, match=message):
        build_backbone(TINY, *args, **kwargs)


@pytest.mark.parametrize("modalities", [None, [], {}])
def test_no_modalities(modalities):
    refused(r"modalities is empty: name what the model gets, e\.g\. modalities: \[S2L2A, S1GRD\]", modalities)


def test_text_instead_of_a_list():
    refused(r"Write modalities: \[S2L2A\]", "S2L2A")


def test_unknown_modality():
    refused("Unknown modality 'S2L2'.*Did you mean 'S2L2A'", ["S2L2"])


def test_ambiguous_modality():
    refused("'S1' is ambiguous: write S1GRD or S1RTC", ["S2L2A", "S1"])


def test_modality_named_twice():
    refused("'S2L2A' is named twice", ["S2L2A", "s2l2a"])


def test_known_modality_as_new():
    refused("S2L2A has pre-trained weights. Write its name alone", [{"S2L2A": 4}])


@pytest.mark.parametrize("channels", [0, -1, 2.0, True, "three"])
def test_channels_of_a_new_modality(channels):
    refused("'THERMAL' needs its number of channels", [{"THERMAL": channels}])


@pytest.mark.parametrize("name", ["a.b", "a b", "", "values", "type"])
def test_name_of_a_new_modality(name):
    refused("letters, digits and underscores", [{name: 1}])


def test_new_modalities_as_one_mapping():
    assert [(s.name, s.channels) for s in plan_inputs({"A": 1, "B": 2})] == [("A", 1), ("B", 2)]


def test_unknown_band():
    refused("Unknown band 'NIR'.*add it to new_bands", ["S2L2A"], bands={"S2L2A": ["RED", "NIR"]})


def test_band_named_twice():
    refused("names a band twice", ["S2L2A"], bands={"S2L2A": ["RED", "B04"]})


def test_bands_of_a_modality_that_is_not_there():
    refused("bands names .*not among", ["S2L2A"], bands={"S1GRD": ["VV"]})


def test_bands_as_text():
    refused("must be a list of band names", ["S2L2A"], bands={"S2L2A": "RED"})


def test_new_band_without_an_entry():
    refused("new_bands names 'NDWI', which no entry of bands holds", ["S2L2A"], new_bands=["NDWI"])


def test_band_positions():
    (spec,) = plan_inputs(["S2L2A"], {"s2l2a": ["NDWI", "B4", "BLUE"]}, ["NDWI"])
    assert spec.band_sources == (None, 3, 1)
    assert spec.channels == 3


def test_unknown_argument():
    refused("no argument 'merge_methode'. Did you mean 'merge_method'", ["S2L2A"], merge_methode="max")


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("merge_method", "maen", "Did you mean 'mean'"),
        ("out_indices", [3, 2], "ascending order, 0 to 11"),
        ("out_indices", [2, 12], "0 to 11, got"),
        ("out_indices", [], "out_indices"),
        ("img_size", 225, "multiple of 16"),
        ("drop_path_rate", 1.0, "drop_path_rate must be"),
        ("modality_drop_rate", 1.5, "between 0 and 1"),
        ("patch_size", 8, "patches of 16 pixels, got patch_size 8"),
        ("pretrained", "weights.pt", "A file is given as ckpt_path"),
    ],
)
def test_impossible_value(argument, value, message):
    refused(message, ["S2L2A"], **{argument: value})


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(depth=2)


@pytest.mark.parametrize("given", [None, {}])
def test_no_input(model, given):
    with pytest.raises(ConfigError, match=r"got no input. It takes"):
        model(given)


def test_unknown_input(model, image):
    with pytest.raises(ConfigError, match=r"'S1GDR' that it does not take.*Did you mean 'S1GRD'"):
        model({"S2L2A": image("S2L2A"), "S1GDR": image("S1GRD")})


def test_known_modality_that_this_model_lacks(model, image):
    with pytest.raises(ConfigError, match="'DEM' that it does not take"):
        model({"S2L2A": image("S2L2A"), "DEM": image("DEM")})


def test_wrong_channels(model, image):
    with pytest.raises(ConfigError, match=r"S2L2A: expected 12 channels, got 13.*B01, B02"):
        model(image("S2L1C"))


def test_wrong_channels_of_a_selection(tiny, image):
    with pytest.raises(ConfigError, match=r"expected 2 channels, got 12.*must list the same bands"):
        tiny(["S2L2A"], depth=2, bands={"S2L2A": ["RED", "BLUE"]})(image("S2L2A"))


def test_time_series(model):
    with pytest.raises(ConfigError, match="time series set backbone_use_temporal: true"):
        model(torch.zeros(1, 12, 3, 64, 64))


def test_single_image_without_a_batch(model):
    with pytest.raises(ConfigError, match=r"expected a tensor \[batch, bands, height, width\]"):
        model(torch.zeros(12, 64, 64))


def test_unequal_sizes(model, image):
    with pytest.raises(ConfigError, match="Sizes differ: S2L2A"):
        model({"S2L2A": image("S2L2A"), "S1GRD": image("S1GRD", height=32)})


@pytest.mark.parametrize("method", ["dict", "none"])
def test_unequal_sizes_that_are_not_merged(tiny, image, method):
    out = tiny(depth=2, merge_method=method)({"S2L2A": image("S2L2A"), "S1GRD": image("S1GRD", height=32)})[-1]
    tokens = out if method == "none" else torch.cat(list(out.values()), 1)
    assert tokens.shape == (2, 16 + 8, 192)


def test_unequal_batches(model, image):
    with pytest.raises(ConfigError, match="Batch sizes differ"):
        model({"S2L2A": image("S2L2A"), "S1GRD": image("S1GRD", 3)})


def test_size_that_is_no_multiple(model, image):
    with pytest.raises(ConfigError, match="multiples of 16, got 64 x 60"):
        model(image("S2L2A", width=60))


@pytest.mark.parametrize("method", ["mean", "max", "concat", "dict", "none"])
def test_order_of_the_dict_does_not_matter(tiny, images, method):
    model = tiny(["S2L2A", "S1GRD", "DEM"], depth=2, merge_method=method)
    x = images(["S2L2A", "S1GRD", "DEM"])
    for one, other in zip(model(x), model(dict(reversed(x.items()))), strict=True):
        if method == "dict":
            assert list(one) == list(other)
            one, other = torch.cat(list(one.values())), torch.cat(list(other.values()))
        assert torch.equal(one, other)


def test_keywords(model, images):
    x = images(["S2L2A", "S1GRD"])
    assert torch.equal(model(**x)[-1], model(x)[-1])


def test_keyword_of_the_second_modality(model, image):
    assert torch.equal(model(S1GRD=image("S1GRD"))[-1], model({"S1GRD": image("S1GRD")})[-1])


def test_tensor_and_keyword(model, images):
    x = images(["S2L2A", "S1GRD"])
    assert torch.equal(model(x["S2L2A"], S1GRD=x["S1GRD"])[-1], model(x)[-1])


def test_tensor_is_the_first_modality(model, image):
    assert torch.equal(model(image("S2L2A"))[-1], model({"S2L2A": image("S2L2A")})[-1])


def test_other_spelling(model, images):
    x = images(["S2L2A", "S1GRD"])
    assert torch.equal(model({"s2l2a": x["S2L2A"], "untok_sen1grd@224": x["S1GRD"]})[-1], model(x)[-1])


def test_the_caller_keeps_his_dict(model, images):
    x = images(["S1GRD", "S2L2A"])
    before = {name: image.clone() for name, image in x.items()}
    mask = {"S1GRD": torch.tensor([True, False])}
    model(x, modality_mask=mask)
    assert list(x) == list(before)
    assert list(mask) == ["S1GRD"]
    for name, image in before.items():
        assert torch.equal(x[name], image)


def test_bands_by_number(tiny):
    bands = {"S2L2A": ["BLUE", 13]}
    with pytest.raises(ConfigError, match=r"Unknown band '13' .* add it to new_bands: \[13\]"):
        tiny(["S2L2A"], depth=1, bands=bands)
    for number in (13, "13"):
        assert tiny(["S2L2A"], depth=1, bands=bands, new_bands=[number]).observed[0].band_sources == (1, None)


def test_arguments_by_position(tiny, images):
    """As the exporter to ONNX that traces hands them on."""
    model = tiny(["S2L2A", "S1GRD"], depth=2)
    x, mask = images(["S2L2A", "S1GRD"]), {"S1GRD": torch.tensor([True, False])}
    with torch.no_grad():
        assert torch.equal(model(x, mask, (64, 64))[-1], model(x, modality_mask=mask)[-1])


def test_advice_suits_the_model(images):
    """A backbone that thinks needs one size, whatever it merges."""
    model = build_tim("terramind_v1_tiny", ["S2L2A", "S1GRD"], merge_method="dict")
    x = {**images(["S2L2A"]), **images(["S1GRD"], 2, 96, 96)}
    with pytest.raises(ConfigError, match=r"Resample the modalities to one grid\.$"):
        model(x)
