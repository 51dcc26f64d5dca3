"""Thinking-in-Modalities with the truth in place of a thought: what is built, read, stored and refused."""

from __future__ import annotations

import copy

import pytest
import torch

from terramind_plugin.builders import build_image_tokenizer, build_tim
from terramind_plugin.errors import ConfigError, DataError, WeightsError, WeightsNotFoundError

NAMES = ("S2L1C", "S1GRD")
NANO = "terramind_sim_nano"


def build(**arguments):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_tim(NANO, list(NAMES), **{"tim_observed": ["LULC"], **arguments}).eval()


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture
def cover():
    return torch.randint(0, 10, (3, 1, 64, 64), generator=torch.Generator().manual_seed(1)).float()


@pytest.fixture
def chips(images, cover):
    return {**images(NAMES, 3), "LULC": cover}


def test_there_is_no_generator_if_all_is_given(model):
    assert model.sampler is None
    names = list(model.state_dict())
    assert any(name.startswith("given_tokens.tok_lulc@224.encoder.") for name in names)
    assert not any(name.startswith(("sampler.", "given_tokens.tok_lulc@224.decoder.")) for name in names)
    assert model.modalities == [*NAMES, "LULC"]


def test_the_truth_is_read_as_a_thought_would_be(chips, cover, model):
    """The same token ids, imagined or given, give the same features."""
    thinking = build(tim_observed=[])
    thinking.load_state_dict({**thinking.state_dict(), **{
        name: value for name, value in model.state_dict().items() if not name.startswith("given_tokens.")
    }})  # fmt: skip
    ids = model.given_tokens.tokenizers()["tok_lulc@224"].tokenize(cover)
    assert ids.shape == (3, 8, 8)
    assert torch.equal(model.generate_tokens(chips)["LULC"], ids)
    thinking.sampler.forward = lambda inputs, **_: {"LULC": ids}
    with torch.no_grad():
        for got, want in zip(model(chips), thinking({name: chips[name] for name in NAMES}), strict=True):
            assert torch.equal(got, want)
        other = model({**chips, "LULC": cover.flip(-1)})[-1]
    assert not torch.allclose(other, model(chips)[-1])


def test_precision_does_not_change_the_tokens(chips, model):
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.generate_tokens(chips)["LULC"], build().generate_tokens(chips)["LULC"])


def test_a_sample_without_the_truth_does_without_it(chips, model):
    chips["LULC"][1] = torch.nan
    mask = {"LULC": torch.tensor([True, False, True])}
    other = {**chips, "LULC": chips["LULC"].clone()}
    other["LULC"][1] = 3.0
    with torch.no_grad():
        got = model(chips, modality_mask=mask)[-1]
        assert got.isfinite().all()
        torch.testing.assert_close(got, model(other, modality_mask=mask)[-1], rtol=0, atol=0)


def test_only_encoder_and_embeddings_train(chips):
    model = build()
    model.freeze()
    model.unfreeze()
    assert not model.given_tokens.training
    sum(layer.square().sum() for layer in model(chips)).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("given_tokens."), name


def test_what_is_given_conditions_what_is_imagined(chips, cover):
    model = build(tim_modalities=["NDVI", "LULC", "coords"])
    thoughts = model.generate_tokens(chips)
    with pytest.warns(DeprecationWarning, match="generate_tokens"):
        assert all(torch.equal(ids, thoughts[name]) for name, ids in model.think(chips).items())
    assert list(thoughts) == ["NDVI", "LULC", "coords"]
    assert "tok_lulc@224" not in model.sampler.model.decoder_embeddings
    changed = model.generate_tokens({**chips, "LULC": (cover + 1) % 10})
    assert not torch.equal(thoughts["NDVI"], changed["NDVI"])
    alone = build(tim_modalities=["NDVI", "LULC"], tim_chained_generations=False)
    thoughts, changed = alone.generate_tokens(chips), alone.generate_tokens({**chips, "LULC": (cover + 1) % 10})
    assert torch.equal(thoughts["NDVI"], changed["NDVI"])
    with torch.no_grad():
        assert model(chips)[-1].shape == (3, 64, 128)
    assert set(model.generated_tokens) == {"NDVI", "coords"}


def test_a_cache_knows_what_was_given(chips, cover, tmp_path):
    arguments = {"tim_modalities": ["NDVI", "LULC"], "tim_cache": tmp_path / "cache"}
    model = build(**arguments)
    first, changed = model.generate_tokens(chips), model.generate_tokens({**chips, "LULC": (cover + 1) % 10})
    assert not torch.equal(first["NDVI"], changed["NDVI"])
    assert torch.equal(build(**arguments).generate_tokens(chips)["NDVI"], first["NDVI"])
    with pytest.raises(ConfigError, match="tim_cache has no use"):
        build(tim_cache=tmp_path / "cache")


def test_features_of_a_frozen_backbone_are_remembered_with_the_truth(chips, tmp_path):
    model = build(feature_cache=tmp_path / "cache", feature_cache_dtype="float32", out_indices=[5])
    model.freeze()
    first = model(chips)[-1]
    assert torch.equal(model(chips)[-1], first)
    assert not torch.equal(model({**chips, "LULC": chips["LULC"].flip(-1)})[-1], first)


def test_checkpoint_without_the_tokenizer(chips, model):
    slim = build(tim_store_generator=False)
    slim.load_state_dict(model.state_dict())
    stored = slim.state_dict()
    assert not any(name.startswith("given_tokens.") for name in stored)
    twin = copy.deepcopy(slim)
    torch.nn.init.zeros_(twin.encoder_norm.weight)
    twin.load_state_dict(stored)
    assert torch.equal(twin(chips)[-1], slim(chips)[-1])
    other = build(tim_store_generator=False)
    next(other.given_tokens.parameters()).data.add_(1)
    with pytest.raises(WeightsError, match="another generator"):
        other.load_state_dict(stored)


def test_tokenizers_come_from_a_file_or_the_checkpoint(tmp_path, model, monkeypatch):
    tokenizer = build_image_tokenizer(f"{NANO}_tokenizer_lulc")
    torch.save(tokenizer.state_dict(), tmp_path / "lulc.pt")
    torch.save(model.state_dict(), tmp_path / "oracle.pt")
    plain = {name: value for name, value in model.state_dict().items() if not name.startswith("given_tokens.")}
    torch.save(plain, tmp_path / "plain.pt")

    def weights(**arguments):
        return build(**arguments).given_tokens.state_dict()["tok_lulc@224.quant_proj.weight"]

    path = {"LULC": str(tmp_path / "lulc.pt")}
    assert torch.equal(weights(tim_tokenizer_ckpt_paths=path), tokenizer.quant_proj.weight)
    own = model.given_tokens.state_dict()["tok_lulc@224.quant_proj.weight"]
    assert torch.equal(weights(ckpt_path=tmp_path / "oracle.pt"), own)
    got = weights(ckpt_path=tmp_path / "plain.pt", tim_tokenizer_ckpt_paths=path)
    assert torch.equal(got, tokenizer.quant_proj.weight)
    with pytest.raises(WeightsError, match=r"plain.pt holds no tokenizer of LULC.*tim_tokenizer_ckpt_paths"):
        build(ckpt_path=tmp_path / "plain.pt")
    monkeypatch.setattr("terramind_plugin.model.download.SHIPPED", tmp_path)
    with pytest.raises(WeightsNotFoundError, match=f"{NANO}_tokenizer_lulc"):
        build(ckpt_path=tmp_path / "plain.pt", pretrained=True)
    with pytest.raises(ConfigError, match=r"names \['DEM'\]; tim_observed has \['LULC'\]"):
        build(tim_tokenizer_ckpt_paths={"DEM": "dem.pt"})


def test_inputs_that_are_no_truth(chips, cover, model):
    with pytest.raises(ConfigError, match=r"tim_observed names LULC, but the model got \['S2L1C', 'S1GRD'\]"):
        model({name: chips[name] for name in NAMES})
    for wrong, shown in ((10.0, "found 10"), (2.5, "found 2.5"), (torch.nan, "found nan")):
        cover[0, 0, 0, 0] = wrong
        with pytest.raises(DataError, match=rf"LULC, named in tim_observed: Class ids .* 0 to 9, {shown}"):
            model({**chips, "LULC": cover})
    with pytest.raises(ConfigError, match="LULC: expected 1 channels, got 2"):
        model({**chips, "LULC": cover.expand(-1, 2, -1, -1)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tim_observed": ["NDVI"]}, r"NDVI, which is not among tim_modalities \['LULC'\]"),
        ({"tim_observed": "LULC2"}, "must be a list"),
        ({"tim_observed": ["coords"], "tim_modalities": ["coords"]}, "coords has no image tokenizer"),
        ({"tim_observed": ["S1GRD"], "tim_modalities": ["S1GRD"]}, "takes as an image already"),
    ],
)
def test_what_cannot_be_given(arguments, message):
    with pytest.raises(ConfigError, match=message):
        build(**arguments)
