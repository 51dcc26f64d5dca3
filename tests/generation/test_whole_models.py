"""TerraTorch's thinking and generating models as a whole beside our parts, with the same random weights."""

import random
import warnings
from functools import partial

import pytest
import torch

from terramind_plugin.builders import build_generator
from terramind_plugin.generation.schedules import Decoding
from tests.generation.conftest import BLANK_SENTINELS, TINY, ReplayedNoise, scatter_weights
from tests.generation.test_parity import EXACT, SINGLE, check_scores

SEED = 7


@pytest.fixture
def _fixed_seed(monkeypatch):
    monkeypatch.setattr(random, "randint", lambda *_: SEED)


@pytest.fixture(scope="session")
def thinking():
    """Return TerraTorch's Thinking-in-Modalities model, tiny, taking the likeliest tokens."""
    from terratorch.models.backbones.terramind.model.terramind_tim import TerraMindTiM
    from terratorch.models.backbones.terramind.model.tm_utils import LayerNorm
    from terratorch.models.backbones.terramind.tokenizer.text.text_tokenizer import CoordsTokenizer

    def make(modalities, thoughts, chained):
        norm = partial(LayerNorm, eps=1e-6, bias=False)
        tokenizers = {"coords": lambda pretrained: CoordsTokenizer(None)}
        model = TerraMindTiM(
            modalities=list(modalities),
            tim_modalities=list(thoughts),
            tim_chained_generations=chained,
            tim_temps=0.0,
            norm_layer=norm,
            tokenizer_dict=tokenizers,
            **TINY,
        )
        return scatter_weights(model).double().eval()

    return make


@pytest.mark.usefixtures("_fixed_seed")
@pytest.mark.parametrize("chained", [True, False], ids=["chained", "apart"])
@pytest.mark.parametrize("thoughts", [["LULC"], ["S1RTC", "LULC"], ["LULC", "coords"]], ids="-".join)
def test_thoughts(thinking, generator, give, record, thoughts, chained):
    modalities = ["S2L1C", "S1GRD"]
    theirs = thinking(modalities, thoughts, chained)
    ours = generator(
        modalities, thoughts, remembered=thoughts if chained else [], sentinels=BLANK_SENTINELS, dtype=torch.float64
    )
    ours.model.load_state_dict(theirs.sampler.model.state_dict(), strict=True)
    x = give(modalities)
    tokens = dict(x)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs(tokens)
    how = Decoding(temperature=0.0, max_tokens=4)
    got = ours(x, noise=ReplayedNoise(2, SEED, lambda total: [total]), decoding=how)
    check_scores(*record, EXACT)
    for name in thoughts:
        want = tokens[name]
        assert torch.equal(got[name].flatten(1)[:, : want.shape[1]], want)


@pytest.mark.slow
@pytest.mark.usefixtures("_fixed_seed")
def test_generated_images(give, record):
    from terratorch.registry import FULL_MODEL_REGISTRY

    arguments = {"modalities": ["S2L2A", "LULC"], "output_modalities": ["S1GRD", "NDVI"], "temps": 0.0}
    theirs = scatter_weights(FULL_MODEL_REGISTRY.build("terratorch_terramind_v1_tiny_generate", **arguments)).eval()
    ours = build_generator("terramind_v1_tiny", **arguments)
    assert ours.load_state_dict(theirs.state_dict(), strict=True)
    x = {**give(["S2L2A"], dtype=torch.float32), "LULC": torch.randint(10, (2, 96, 96))}
    tokens = {}
    for key, tokenizer in theirs.tokenizer.items():
        tokenizer.decode_tokens = lambda ids, key=key, **_: tokens.setdefault(key, ids).float()[:, None]
    one_hot = torch.nn.functional.one_hot(x["LULC"], 10).movedim(-1, 1).float()
    theirs({**x, "LULC": one_hot})
    inputs = {"S2L2A": x["S2L2A"], "LULC": ours.tokenizer["tok_lulc@224"].tokenize(x["LULC"])}
    got = ours.sampler(inputs, noise=ReplayedNoise(2, SEED, lambda total: [total]), decoding=ours.decoding)
    check_scores(*record, SINGLE)
    assert torch.equal(got["S1GRD"], tokens["tok_sen1grd@224"])
    assert torch.equal(got["NDVI"], tokens["tok_ndvi@224"])
