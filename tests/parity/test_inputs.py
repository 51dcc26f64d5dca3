"""Inputs of TerraTorch's guide beside images with all bands: the same features under the same weights.

These restate the cases of TerraTorch's tests of backbones and TiM that use LULC, NDVI and coords.
"""

from __future__ import annotations

from dataclasses import replace
from types import MethodType

import pytest
import torch

from terramind_plugin.tokenizers import variants
from terramind_plugin.tokenizers.coordinates import build_coords_vocabulary
from tests.conftest import without_initialisation

TOKENS = ("S2L2A", "LULC", "NDVI", "coords")
EXACT, SINGLE = 1e-9, 1e-5
PLACES = torch.tensor([[11.5, 48.13], [-0.4, -33.9]], dtype=torch.float64)
LANDSAT = ["COASTAL_AEROSOL", "BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2", "PANCHROMATIC", "CIRRUS",
           "THERMAL_1", "THERMAL_2"]  # fmt: skip


@pytest.fixture(scope="module")
def shallow():
    """Let our tokenizers have one block, as those of `shorten` have."""
    with pytest.MonkeyPatch.context() as patch:
        for name, variant in list(variants.TOKENIZERS.items()):
            patch.setitem(variants.TOKENIZERS, name, replace(variant, depth=1))
        yield


def shorten(theirs):
    """Take from TerraTorch's tokenizers what costs time, and give them the vocabulary that they lack."""
    theirs.tokenizer["coords"].text_tokenizer = build_coords_vocabulary()
    for key, tokenizer in theirs.tokenizer.items():
        if key != "coords":
            tokenizer.encoder.blocks = tokenizer.encoder.blocks[:1]
            del tokenizer.decoder
            prepare = tokenizer.prepare_input
            tokenizer.prepare_input = lambda x, prepare=prepare: prepare(x).float()
    return theirs


def in_precision(models, dtype):
    """Return models with their tokenizers in single precision, the only one that TerraTorch's work in."""
    for model in models:
        model.to(dtype).tokenizer.float()
    return models


@pytest.fixture(scope="module")
def tokenized(backbones, scatter, shallow):
    """Return TerraTorch's backbone with tokenizers and ours with its weights."""
    with without_initialisation():
        theirs = shorten(backbones.build("terratorch_terramind_v1_tiny", modalities=list(TOKENS)))
        ours = backbones.build("terramind_v1_tiny", modalities=list(TOKENS)).eval()
    ours.load_state_dict(scatter(theirs).eval().state_dict(), strict=True)
    return theirs, ours


@pytest.fixture
def chips(images):
    def make(names=TOKENS, side=96, dtype=torch.float64):
        known = {
            **images(["S2L2A", "NDVI"], 2, side, side, dtype=dtype),
            "LULC": torch.randint(0, 10, (2, side, side), generator=torch.Generator().manual_seed(2)),
            "coords": PLACES.to(dtype),
        }
        return {name: known[name] for name in names}

    return make


@torch.no_grad()
def compare(tokenized, x, assert_same, tolerance=EXACT, method="mean", dtype=torch.float64):
    theirs, ours = in_precision(tokenized, dtype)
    theirs.merge_method, before = method, (theirs.merge_method, ours.merge_method)
    ours.merge_method = "none" if method is None else method
    try:
        assert_same(ours(x), theirs(dict(x)), tolerance)
    finally:
        theirs.merge_method, ours.merge_method = before


@pytest.mark.parametrize("method", ["mean", "max", "dict", None])
def test_tokenized_inputs(tokenized, chips, assert_same, method):
    compare(tokenized, chips(), assert_same, method=method)


@pytest.mark.parametrize("names", [("S2L2A", "LULC"), ("S2L2A", "coords"), ("NDVI", "coords"), ("LULC",)], ids=str)
def test_some_of_the_inputs(tokenized, chips, assert_same, names):
    compare(tokenized, chips(names), assert_same)


def test_published_size_in_single_precision(tokenized, chips, assert_same):
    compare(tokenized, chips(side=224, dtype=torch.float32), assert_same, SINGLE, dtype=torch.float32)


@torch.no_grad()
def test_token_ids_are_what_tokenizers_make(tokenized, chips):
    theirs, ours = in_precision(tokenized, torch.float64)
    x = chips()
    ids = ours.tokenize(x)
    for name, key in (("LULC", "tok_lulc@224"), ("NDVI", "tok_ndvi@224")):
        assert torch.equal(ids[name].long(), theirs.tokenizer[key].encode(x[name])[-1].long())
    assert torch.equal(ids["coords"], theirs.tokenizer["coords"].encode(x["coords"])["tensor"])
    as_ids = ours({**x, "LULC": ids["LULC"], "NDVI": ids["NDVI"]})
    for got, want in zip(as_ids, ours(x), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("method", ["mean", "max", "dict", None])
def test_two_images_of_one_modality(pair, images, assert_same, method):
    names = ["S2L2A_before", "S2L2A_after", "DEM"]
    theirs, ours = pair("tiny", names, dtype=torch.float64, merge_method=method)
    x = {name: image.double() for name, image in images(["DEM"], 1, 96, 96).items()}
    x |= {name: images(["S2L2A"], 1, 96, 96, seed=seed)["S2L2A"].double() for seed, name in enumerate(names[:2])}
    x = {name: x[name] for name in names}
    with torch.no_grad():
        assert_same(ours(x), theirs(dict(x)), EXACT)


def test_concatenated_images_of_one_modality(pair, images, assert_same):
    """TerraTorch's features are right; the channels that it tells decoders are those of one image."""
    names = ["S2L2A_before", "S2L2A_after"]
    theirs, ours = pair("tiny", names, dtype=torch.float64, merge_method="concat")
    x = {name: images(["S2L2A"], 1, 96, 96, seed=seed)["S2L2A"].double() for seed, name in enumerate(names)}
    with torch.no_grad():
        got, want = ours(x), theirs(dict(x))
    assert_same(got, want, EXACT)
    assert ours.out_channels[-1] == want[-1].shape[-1] == 2 * theirs.out_channels[-1]


def test_bands_of_another_sensor(reference, backbones, images, assert_same, tmp_path):
    """Landsat's bands by the patches of Sentinel-2; bands that Sentinel-2 lacks are drawn, so their pixels are 0."""
    path = tmp_path / "full.pt"
    torch.save(reference("tiny", ["S2L1C", "S1GRD"]).state_dict(), path)
    arguments = {"modalities": ["S2L1C_L8", "S1GRD"], "ckpt_path": str(path), "bands": {"S2L1C_L8": LANDSAT}}
    theirs = backbones.build("terratorch_terramind_v1_tiny", **arguments).double().eval()
    ours = backbones.build("terramind_v1_tiny", **arguments).double().eval()
    x = images(["S1GRD"], 1, 96, 96, dtype=torch.float64)
    x["S2L1C_L8"] = images(["S2L1C"], 1, 96, 96, dtype=torch.float64)["S2L1C"][:, : len(LANDSAT)].clone()
    new = [LANDSAT.index(name) for name in ("PANCHROMATIC", "THERMAL_1", "THERMAL_2")]
    changed = {**x, "S2L1C_L8": x["S2L1C_L8"].clone()}
    x["S2L1C_L8"][:, new] = 0
    with torch.no_grad():
        assert_same(ours(x), theirs(dict(x)), EXACT)
        assert not torch.allclose(ours(changed)[-1], ours(x)[-1])


@pytest.fixture(scope="module")
def thinking(backbones, scatter, shallow):
    """Return TerraTorch's TiM backbone with inputs that are tokens, and ours with its weights."""
    arguments = {"modalities": ["S2L2A", "LULC", "coords"], "tim_modalities": ["LULC", "NDVI"]}
    with pytest.warns(UserWarning, match="not pre-trained"), without_initialisation():
        theirs = shorten(backbones.build("terratorch_terramind_v1_tiny_tim", **arguments))
    with without_initialisation():
        ours = backbones.build("terramind_v1_tiny_tim", **arguments).eval()
    ours.load_state_dict(scatter(theirs).eval().state_dict(), strict=True)
    return in_precision((theirs, ours), torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("names", [("S2L2A", "LULC", "coords"), ("S2L2A", "coords")], ids=["given", "generated"])
def test_what_is_given_is_not_generated(thinking, chips, assert_same, names):
    theirs, ours = thinking
    x = chips(names)
    seen = {}
    generate, decoding = theirs.sampler.generate, ours.decoding

    def spy(sampler, *args, **kwargs):
        seen.update(generate(*args, **kwargs))
        return seen

    theirs.sampler.generate, theirs.tim_temps = MethodType(spy, theirs.sampler), 0.0
    ours.decoding = replace(decoding, temperature=0.0)
    try:
        want, got = theirs(dict(x)), ours(x)
    finally:
        theirs.sampler.generate, ours.decoding = generate, decoding
    assert set(ours.generated_tokens) == {"LULC", "NDVI"} - set(names)
    for name, ids in ours.generated_tokens.items():
        assert torch.equal(ids.flatten(1), seen[f"tok_{name.lower()}@224"]["tensor"].reshape(2, -1)), name
    if "LULC" in names:  # else TerraTorch's order of modalities is another one, and rounding with it
        assert_same(got, want, EXACT)
