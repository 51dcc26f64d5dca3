"""Inputs of models by the names that users give them."""

from __future__ import annotations

import pytest
import torch

from terramind_plugin.backbones.encoder import TerraMindBackbone
from terramind_plugin.builders import build_backbone, build_generator
from terramind_plugin.errors import ConfigError, DataError, WeightsError
from terramind_plugin.model.modalities import find, find_exact, find_layer
from terramind_plugin.model.planning import plan_inputs, say_sources

NANO = "terramind_sim_nano"
SIX = ["BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2"]


@pytest.mark.parametrize(
    ("name", "exact", "product", "layer"),
    [
        ("s2-l2a", "S2L2A", "S2L2A", "S2L2A"),
        ("S2L2A_before", None, "S2L2A", "S2L2A"),
        ("S2L1C_L8", None, "S2L1C", "S2L1C"),
        ("S1_RTC_after", None, "S1RTC", "S1RTC"),
        ("LULC_2020", None, None, "LULC"),
        ("DEM_slope", None, None, "DEM"),
        ("S2L2A_NDVI", None, None, None),
        ("S2L2A_S1GRD", None, None, None),
        ("DEMON", None, None, None),
        ("S1", None, None, None),
        ("THERMAL", None, None, None),
    ],
)
def test_names(name, exact, product, layer):
    found = [getattr(look(name), "name", None) for look in (find_exact, find, find_layer)]
    assert found == [exact, product, layer]


def keys(*args, **kwargs):
    return {spec.name: spec.key for spec in plan_inputs(*args, tokens=True, **kwargs)}


def test_embeddings_of_an_inputs_own_and_shared_ones():
    published = "untok_sen2l2a@224"
    two = [{"before": "S2L2A"}, {"after": "S2L2A"}]
    assert keys(two) == {"before": "before", "after": "after"}
    assert keys({"before": "S2L2A", "after": "s2l2a"}) == {"before": "before", "after": "after"}
    assert keys(two, share_embeddings=True) == {"before": published, "after": published}
    assert keys(["S2L2A", {"after": "S2L2A"}]) == {"S2L2A": published, "after": "after"}
    assert keys(["S2L2A_before", "S2L2A_after"]) == {"S2L2A_before": published, "S2L2A_after": published}
    assert keys([{"S2L2A_after": 3}, "S2L2A"]) == {"S2L2A_after": "S2L2A_after", "S2L2A": published}
    assert keys([{"cover": "LULC"}, "NDVI"]) == {"cover": "cover", "NDVI": "tok_ndvi@224"}


def test_an_image_of_any_bands_as_in_terratorch():
    (spec,) = plan_inputs([], in_chans=4)
    assert (spec.name, spec.channels, spec.pretrained) == ("image", 4, None)


def test_bands_of_a_modality_count_for_all_its_inputs():
    specs = plan_inputs([{"before": "S2L2A"}, "S2L2A"], {"S2L2A": SIX, "before": SIX[:2]})
    assert {spec.name: spec.channels for spec in specs} == {"before": 2, "S2L2A": 6}
    specs = plan_inputs(["S2L2A_before", "S2L2A_after"], {"S2L2A_before": SIX})
    assert [spec.channels for spec in specs] == [6, 6]


def test_what_another_sensors_bands_start_from_is_said():
    specs = plan_inputs(["S2L1C_L8", {"after": "DEM"}], {"S2L1C_L8": ["RED", "PANCHROMATIC", "THERMAL_1"]})
    said = say_sources(specs)
    assert "patches of S2L1C; these bands are new and start from random weights: PANCHROMATIC, THERMAL_1." in said[0]
    assert "after has the patches of DEM, in an embedding of its own" in said[1]
    assert specs[0].band_sources == (3, None, None)


@pytest.mark.parametrize(
    ("modalities", "arguments", "message"),
    [
        (["S2L2A_before", "S2L2A_before"], {}, "'S2L2A_before' is named twice"),
        (["S2L2A", "sen2l2a"], {}, r"named twice.*names of their own, e\.g\. \{before: S2L2A\}"),
        ([{"after": "S2L2"}], {}, "'after' needs its number of channels.*Did you mean 'S2L2A'"),
        ([{"S2L1C": "S2L2A"}], {}, "S2L1C is the name of another modality"),
        ([{"a.b": "S2L2A"}], {}, "letters, digits and underscores"),
        (["S2L1C_L8"], {"bands": {"S2L1C_L8": ["GREN"]}}, "Did you mean 'GREEN'"),
        (["S2L2A"], {"bands": {"S2L2A": ["PANCHROMATIC"]}}, r"add it to new_bands: \[PANCHROMATIC\]"),
        (["S2L2A_a", "S2L2A_b"], {"bands": {"S2L2A_a": SIX, "S2L2A_b": SIX[:2]}}, "one embedding and need the same"),
        (["NDVI"], {"bands": {"NDVI": ["RED"]}}, "Unknown band 'RED'"),
        (["S2L2A"], {"in_chans": 3}, "in_chans is for empty modalities"),
    ],
)
def test_refused(modalities, arguments, message):
    with pytest.raises(ConfigError, match=message):
        plan_inputs(modalities, tokens=True, **arguments)


@pytest.fixture(scope="module")
def places():
    return torch.tensor([[11.5, 48.1], [-120.2, -33.9]])


@pytest.fixture(scope="module")
def model():
    return build_backbone(NANO, ["S2L2A", "LULC", "coords"], pretrained=True).eval()


@pytest.fixture
def chips(images, places):
    cover = torch.randint(0, 10, (2, 1, 64, 64), generator=torch.Generator().manual_seed(3))
    return {**images(["S2L2A"], 2), "LULC": cover, "coords": places}


@torch.no_grad()
def test_inputs_that_are_tokens_change_the_features(model, chips):
    features = model(chips)[-1]
    assert features.shape == (2, 64, 128)
    for name in ("LULC", "coords"):
        other = {**chips, name: chips[name].roll(1, 0)}
        assert not torch.allclose(model(other)[-1], features, atol=1e-4), name
    ids = model.tokenize(chips)["LULC"]
    assert torch.equal(model({**chips, "LULC": ids})[-1], features)
    assert torch.equal(model({**chips, "LULC": chips["LULC"][:, 0]})[-1], features)


@torch.no_grad()
def test_a_sample_without_a_position_or_an_image(model, chips):
    chips["coords"] = chips["coords"].clone()
    chips["coords"][1] = torch.nan
    masks = {"coords": torch.tensor([True, False])}
    got = model(chips, modality_mask=masks)[-1]
    without = model({name: chips[name] for name in ("S2L2A", "LULC")})[-1]
    assert torch.allclose(got[1], without[1], atol=1e-4)
    assert not torch.allclose(got[0], without[0], atol=1e-3)
    nothing = {"S2L2A": torch.tensor([True, False]), "LULC": torch.tensor([True, False])}
    assert model({**chips, "coords": torch.zeros(2, 2)}, modality_mask=nothing)[-1].isfinite().all()


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"coords": torch.zeros(2, 3)}, ConfigError, r"coords: expected positions \[batch, 2\]"),
        ({"coords": torch.tensor([[48.0, 120.0], [0.0, 0.0]])}, DataError, "are they swapped"),
        ({"coords": torch.full((2, 2), torch.nan)}, DataError, "coords: lat nan is outside"),
        ({"LULC": torch.full((2, 1, 64, 64), 12)}, DataError, "LULC: Class ids must be whole numbers from 0 to 9"),
        ({"LULC": torch.full((2, 8, 8), 5000)}, DataError, "LULC: token ids are whole numbers from 0 to"),
        ({"LULC": torch.zeros(2, 3, 64, 64)}, ConfigError, "LULC: expected 1 channels, got 3"),
        ({"LULC": torch.zeros(2, 7, 8).long()}, ConfigError, r"Sizes differ: S2L2A \[64, 64\], LULC \[56, 64\]"),
    ],
)
def test_impossible_values(model, chips, changes, kind, message):
    with pytest.raises(kind, match=message):
        model({**chips, **changes})


def test_positions_alone_make_no_map(model, places):
    with pytest.raises(ConfigError, match="and no image"):
        model({"coords": places})
    with pytest.raises(ConfigError, match=r"has no image: add one to coords"):
        build_backbone(NANO, ["coords"])


def test_dropped_modalities_leave_an_image(chips):
    model = build_backbone(NANO, ["S2L2A", "coords"], pretrained=True, modality_drop_rate=0.9).train()
    for _ in range(8):
        assert model({name: chips[name] for name in ("S2L2A", "coords")})[-1].isfinite().all()


def test_tokenizers_are_frozen_and_come_with_the_checkpoint(model, chips, tmp_path):
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert not any(name.startswith("tokenizer.") for name in names)
    model.freeze()
    model.unfreeze()
    assert names == [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    model.eval()
    path = tmp_path / "model.pt"
    torch.save(model.state_dict(), path)
    again = build_backbone(NANO, ["S2L2A", "LULC", "coords"], ckpt_path=path).eval()
    fresh = build_backbone(NANO, ["S2L2A", "LULC", "coords"]).eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        for other in (again, fresh):
            assert torch.equal(other(chips)[-1], model(chips)[-1])
    plain = {name: value for name, value in model.state_dict().items() if not name.startswith("tokenizer.tok")}
    torch.save(plain, path)
    with pytest.raises(WeightsError, match=r"no tokenizer of LULC.*backbone_tokenizer_ckpt_paths: \{LULC:"):
        build_backbone(NANO, ["S2L2A", "LULC", "coords"], ckpt_path=path)


def test_a_vocabulary_of_another_resolution_comes_with_the_checkpoint(model, chips):
    published = build_backbone("terramind_v1_tiny", ["S2L2A", "coords"])
    own = published.tokenizer.coords.state_dict()
    other = build_backbone(NANO, ["S2L2A", "LULC", "coords"])
    assert len(other.tokenizer.coords.latitudes) != len(own["latitudes"])
    other.tokenizer.coords.load_state_dict(own)
    assert torch.equal(
        other.tokenizer.coords.tokenize(chips["coords"]), published.tokenizer.coords.tokenize(chips["coords"])
    )


def test_own_embeddings_start_from_the_modality(images):
    plain = build_backbone(NANO, ["S2L2A"], pretrained=True)
    model = build_backbone(NANO, [{"before": "S2L2A"}, {"after": "S2L2A"}], bands={"after": SIX}, pretrained=True)
    own = plain.encoder_embeddings["untok_sen2l2a@224"].proj.weight
    assert torch.equal(model.encoder_embeddings["before"].proj.weight, own)
    columns = own.unflatten(1, (-1, 12))[..., [1, 2, 3, 8, 10, 11]].flatten(1)
    assert torch.equal(model.encoder_embeddings["after"].proj.weight, columns)
    shared = build_backbone(NANO, [{"before": "S2L2A"}, {"after": "S2L2A"}], share_embeddings=True, pretrained=True)
    assert list(shared.encoder_embeddings) == ["untok_sen2l2a@224"]
    image = images(["S2L2A"], 1)["S2L2A"]
    assert shared({"before": image, "after": image})[-1].shape == (1, 64, 128)
    with pytest.raises(ConfigError, match="got a modality 'S2L2A' that it does not take"):
        shared({"S2L2A": image})


def test_a_cache_knows_positions(chips, tmp_path):
    model = build_backbone(NANO, ["S2L2A", "coords"], pretrained=True, feature_cache=tmp_path, out_indices=[5])
    model.freeze()
    x = {name: chips[name] for name in ("S2L2A", "coords")}
    first = model(x)[-1]
    assert torch.equal(model(x)[-1], first)
    assert model.feature_cache.training.hits + model.feature_cache.evaluation.hits == 2
    assert not torch.equal(model({**x, "coords": x["coords"].flip(0)})[-1], first)


@torch.no_grad()
def test_a_generator_of_six_bands(images):
    """The patches of six bands are those of twelve with the others at their mean."""
    arguments = {"output_modalities": ["LULC"], "pretrained": True, "standardize": True, "temps": 0.0}
    all_bands = build_generator(NANO, ["S2L2A"], **arguments)
    six = build_generator(NANO, ["S2L2A"], bands={"S2L2A": SIX}, **arguments)
    scale = all_bands.standardisation["S2L2A"]
    places = [1, 2, 3, 8, 10, 11]
    standard = torch.zeros(1, 12, 64, 64)
    standard[:, places] = images(["S2L2A"], 1)["S2L2A"][:, places]
    image = scale.undo(standard)
    want, got = all_bands(image)["LULC"], six(image[:, places])["LULC"]
    assert torch.allclose(got, want, atol=1e-3)
    with pytest.raises(ConfigError, match=r"expected 6 channels, got 12"):
        six(image)
    with pytest.raises(ConfigError, match="needs one image per modality"):
        build_generator(NANO, ["S2L2A_a", "S2L2A_b"], output_modalities=["LULC"])


def test_a_backbone_needs_its_builder_for_positions():
    from terramind_plugin.model.variants import VARIANTS

    with pytest.raises(ConfigError, match="tokenizer of coordinates: build the model by its builder"):
        TerraMindBackbone(VARIANTS[NANO], ["S2L2A", "coords"])
