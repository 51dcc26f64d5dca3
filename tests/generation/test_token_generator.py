"""What the token generator promises, beyond equal scores."""

import pytest
import torch

from terramind_plugin.errors import ConfigError
from terramind_plugin.generation.decoding import START, STOP, first_piece
from terramind_plugin.generation.schedules import Decoding
from terramind_plugin.model.embeddings import PAD_ID
from terramind_plugin.model.encoder_decoder import EncoderDecoder

DRAWN = Decoding(steps=3, temperature=1.0, top_p=0.8)


@pytest.fixture(scope="module")
def chain(generator):
    return generator(["S2L2A", "S1GRD"], ["LULC", "DEM"], remembered=["LULC", "DEM"])


def inputs(give, *names, **kwargs):
    return give(names or ("S2L2A", "S1GRD"), dtype=torch.float32, **kwargs)


@pytest.mark.parametrize(
    "how", [DRAWN, Decoding(steps=4, scheme="maskgit", counts="cosine", top_p=0.0), Decoding(top_k=9)]
)
def test_shape_range_and_repeatability(chain, give, how):
    x = inputs(give, batch=2, height=64, width=96)
    out = chain(x, decoding=how)
    assert {name: list(ids.shape) for name, ids in out.items()} == {"LULC": [2, 4, 6], "DEM": [2, 4, 6]}
    assert 0 <= out["LULC"].min() <= out["LULC"].max() < 4375
    again = chain(dict(reversed(x.items())), decoding=how)
    assert all(torch.equal(out[name], again[name]) for name in out)


@pytest.mark.parametrize("how", [DRAWN, Decoding(steps=3, scheme="maskgit"), Decoding(steps=2, guidance=2.0)])
def test_a_sample_is_the_same_alone_and_in_a_batch(generator, give, how):
    model = generator(["S2L2A"], ["LULC", "coords"], dtype=torch.float64)
    x = give(["S2L2A"], 3)
    together = model(x, seed=[4, 5, 6], decoding=how)
    for index in (0, 2):
        alone = model({"S2L2A": x["S2L2A"][index : index + 1]}, seed=4 + index, decoding=how)
        for name, ids in together.items():
            assert torch.equal(alone[name][0], ids[index])


def test_seeds_differ_and_the_global_generator_is_left_alone(chain, give):
    x = inputs(give, batch=1)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, other = chain(x, seed=1), chain(x, seed=2)
    assert not torch.equal(one["LULC"], other["LULC"])
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_is_changed(chain, give):
    x = inputs(give)
    before = {name: image.clone() for name, image in x.items()}
    chain(x)
    assert list(x) == list(before)
    assert all(torch.equal(x[name], before[name]) for name in x)


def test_chained_tokens_condition_what_follows(generator, give, monkeypatch):
    x = inputs(give, "S2L2A")
    seen = []
    encode = EncoderDecoder.encode
    monkeypatch.setattr(
        EncoderDecoder, "encode", lambda self, parts, batch: seen.append(len(parts)) or encode(self, parts, batch)
    )
    model = generator(["S2L2A"], ["LULC", "DEM", "NDVI"])
    one = model(x, decoding=Decoding(temperature=0.0))
    assert seen == [1, 2, 3]
    with torch.no_grad():
        model.model.encoder_embeddings["tok_lulc@224"].token_emb.weight.mul_(3.0)
    other = model(x, decoding=Decoding(temperature=0.0))
    assert torch.equal(one["LULC"], other["LULC"])
    assert not torch.equal(one["DEM"], other["DEM"])


@pytest.mark.parametrize(("remembered", "count"), [([], 1), (["LULC"], 4)])
def test_the_context_is_computed_once_while_the_input_is_the_same(generator, give, monkeypatch, remembered, count):
    calls = []
    encode = EncoderDecoder.encode
    monkeypatch.setattr(
        EncoderDecoder, "encode", lambda self, parts, batch: calls.append(1) or encode(self, parts, batch)
    )
    generator(["S2L2A"], ["LULC"], remembered=remembered)(inputs(give, "S2L2A"), decoding=Decoding(steps=4))
    assert len(calls) == count


def test_each_token_is_decoded_once(generator, give, monkeypatch):
    asked = []
    logits = EncoderDecoder.grid_logits
    monkeypatch.setattr(
        EncoderDecoder,
        "grid_logits",
        lambda self, key, index, size, context: asked.append(index) or logits(self, key, index, size, context),
    )
    generator(["S2L2A"], ["LULC"])(inputs(give, "S2L2A"), seed=[1, 2], decoding=Decoding(steps=7))
    order = torch.cat(asked, dim=1)
    assert torch.equal(order.sort(dim=1).values, torch.arange(36).expand(2, 36))
    assert not torch.equal(order[0], order[1])


def test_a_sample_that_lacks_a_modality(generator, give):
    model = generator(["S2L2A", "S1GRD"], ["LULC"], dtype=torch.float64)
    x = give(["S2L2A", "S1GRD"], 2)
    present = {"S1GRD": torch.tensor([True, False])}
    x["S1GRD"][1] = torch.nan
    how = Decoding(steps=2, temperature=0.0)
    out = model(x, present=present, decoding=how)["LULC"]
    full = model({name: image[:1] for name, image in x.items()}, decoding=how)["LULC"]
    partial = model({"S2L2A": x["S2L2A"][1:]}, decoding=how)["LULC"]
    assert torch.equal(out, torch.cat([full, partial]))


def test_a_sample_that_lacks_everything_is_finite(generator, give):
    model = generator(["S2L2A"], ["LULC"])
    x = inputs(give, "S2L2A")
    out = model(x, present={"S2L2A": torch.tensor([True, False])})["LULC"]
    assert torch.equal(out, model(x)["LULC"])


def test_given_targets_are_left_out(generator, give):
    model = generator(["S2L2A", "LULC"], ["LULC", "DEM"])
    x = inputs(give, "S2L2A", "LULC")
    assert list(model(x)) == ["DEM"]
    assert list(model({"S2L2A": x["S2L2A"]}, targets=["LULC"])) == ["LULC"]
    with pytest.raises(ConfigError, match="LULC is both input and target"):
        model(x, targets=["LULC"])


def test_frozen_for_good(chain):
    assert not any(parameter.requires_grad for parameter in chain.parameters())
    assert not any(module.training for module in chain.train().modules())


def test_holds_no_tokenizer(chain):
    assert sum(parameter.numel() for parameter in chain.parameters()) < 20e6


def test_bfloat16(generator, give):
    x = inputs(give, "S2L2A", "coords")
    model = generator(["S2L2A", "coords"], ["LULC", "DEM"])
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x, decoding=DRAWN)["DEM"].shape == (2, 6, 6)
    x["S2L2A"] = x["S2L2A"].bfloat16()
    assert model.bfloat16()(x, decoding=DRAWN)["DEM"].shape == (2, 6, 6)


def test_rows_before_columns(generator, give):
    """A token's place is the same in a wide image as in the interpolated table of that size."""
    model = generator(["S2L2A"], ["LULC"])
    head = model.model.decoder_embeddings["tok_lulc@224"]
    wide, tall = head.positions((4, 6)).unflatten(1, (4, 6)), head.positions((6, 4)).unflatten(1, (6, 4))
    half = wide.shape[-1] // 2
    torch.testing.assert_close(wide[..., :half], tall[..., half:].transpose(1, 2))
    assert model(inputs(give, "S2L2A", height=96, width=64))["LULC"].shape == (2, 6, 4)


def test_unconditional(generator, give):
    model = generator(["coords"], ["LULC"])
    x = inputs(give, "coords")
    assert model(x)["LULC"].shape == (2, 14, 14)
    assert model(x, image_size=(32, 48))["LULC"].shape == (2, 2, 3)


@pytest.mark.parametrize(
    ("ids", "want"),
    [
        ([700, 800, 3], [700, 800, 3]),
        ([700, STOP, 900], [700, PAD_ID, PAD_ID]),
        ([700, 4, 900], [700, PAD_ID, PAD_ID]),
        ([4, START, 900], [900, PAD_ID, PAD_ID]),
        ([STOP, START, 900], [PAD_ID, PAD_ID, PAD_ID]),
        ([203, 204, START], [PAD_ID, PAD_ID, PAD_ID]),
    ],
)
def test_text_of_a_sequence(ids, want):
    assert first_piece(torch.tensor([ids])).tolist() == [want]


@pytest.mark.parametrize(
    ("names", "call", "message"),
    [
        (["S2L1C"], {}, "S2L1C has no tokens"),
        (["caption"], {}, "not supported by the TerraMind 1.0 weights"),
        (["S1"], {}, "ambiguous"),
        (["LULC", "landcover"], {}, "named twice"),
        ([], {}, "must be a list of names"),
        ("LULC", {}, "must be a list of names"),
        (["LULC"], {"remembered": ["DEM"]}, "remembered names 'DEM'"),
    ],
)
def test_impossible_targets(generator, names, call, message):
    with pytest.raises(ConfigError, match=message):
        generator(["S2L2A"], names, **call)


def test_impossible_calls(chain, give):
    x = inputs(give)
    with pytest.raises(ConfigError, match="expected one or several of"):
        chain({})
    with pytest.raises(ConfigError, match="Batch sizes differ"):
        chain({**x, "S1GRD": x["S1GRD"][:1]})
    with pytest.raises(ConfigError, match="need one size"):
        chain({**x, "S1GRD": x["S1GRD"][..., :64]})
    with pytest.raises(ConfigError, match="multiple of 16"):
        chain(x, image_size=(90, 96))
    with pytest.raises(ConfigError, match="Did you mean 'LULC'"):
        chain(x, targets=["LULCC"])
    with pytest.raises(ConfigError, match="Got 3 seeds for 2 samples"):
        chain(x, seed=[1, 2, 3])
