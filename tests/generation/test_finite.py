"""Images that are not finite, into everything that makes token ids of them."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from terramind_plugin.builders import build_generator, build_image_tokenizer, build_tim
from terramind_plugin.errors import DataError
from terramind_plugin.generation.sampling import sample, sample_ids
from terramind_plugin.model.finite import FiniteGuard, zero_nan

ODD = [float("nan"), float("inf"), float("-inf")]
SAID = "has values that are NaN or infinite. Fill them with the mean"


def _with(image, value):
    image = image.clone()
    image[0, 0, 10, 11] = value
    return image


@pytest.fixture(scope="module")
def generator():
    return build_generator("terramind_sim_nano", ["S1GRD"], ["DEM", "coords"], pretrained=True, timesteps=1)


@pytest.fixture(scope="module")
def thinker():
    torch.manual_seed(0)
    return build_tim("terramind_sim_nano", ["S2L2A", "S1GRD"])


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("call", ["generate", "locate", "map_locations", "sampler", "whole bands"])
def test_generators(generator, image, value, call):
    x = _with(image("S1GRD", 2), value)
    calls = {
        "generate": lambda: generator({"S1GRD": x}),
        "locate": lambda: generator.locate({"S1GRD": x}, 1),
        "map_locations": lambda: generator.map_locations({"S1GRD": x}, 0.1),
        "sampler": lambda: generator.sampler({"S1GRD": x}),
        "whole bands": lambda: generator(S1GRD=torch.full_like(x, value), standardize=True),
    }
    with pytest.raises(DataError, match=f"S1GRD {SAID}"):
        calls[call]()


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("training", [False, True])
def test_thinking_backbones(thinker, images, value, training):
    x = images(["S2L2A", "S1GRD"], 2)
    x["S1GRD"] = _with(x["S1GRD"], value)
    with pytest.raises(DataError, match=f"S1GRD {SAID}"):
        thinker.train(training)(x)


def test_what_a_mask_declares_may_be_anything(thinker, images):
    x = images(["S2L2A", "S1GRD"], 2)
    x["S1GRD"][1] = torch.nan
    mask = {"S1GRD": torch.tensor([True, False])}
    assert thinker.eval()(x, modality_mask=mask)[-1].isfinite().all()
    x["S1GRD"][0, 0, 3, 3] = torch.inf  # declared to be there
    with pytest.raises(DataError, match=SAID):
        thinker(x, modality_mask=mask)


@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("training", [False, True])
def test_tokenizers(image, value, training):
    tokenizer = build_image_tokenizer("terramind_sim_nano_tokenizer_s1grd").train(training)
    for call in (tokenizer.encode, tokenizer.tokenize, tokenizer):
        with pytest.raises(DataError, match=SAID):
            call(_with(image("S1GRD"), value))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_p", [0.0, 0.8])
def test_scores_that_are_not_finite_give_ids_of_the_vocabulary(temperature, top_p):
    """An id outside of it would end the process on a GPU before the error can be told."""
    scores = torch.full((1, 3, 20), torch.nan)
    for draws in (torch.rand(1, 3, 1), torch.rand(1, 3, 9)):
        ids = sample_ids(scores, draws, temperature=temperature, top_p=top_p)
        other, _ = sample(scores, draws, temperature=temperature, top_p=top_p)
        assert ((ids >= 0) & (ids < 20) & (other >= 0) & (other < 20)).all()


def test_a_guard_can_be_copied_and_stored():
    for guard in (copy.deepcopy(FiniteGuard()), pickle.loads(pickle.dumps(FiniteGuard()))):
        guard({"a": torch.zeros(2), "ids": torch.zeros(2, dtype=torch.long)}, wait=True)
        with pytest.raises(DataError, match="b and c have values"):
            guard({"a": torch.zeros(2), "b": torch.tensor([torch.nan]), "c": torch.tensor([torch.inf])}, wait=False)


def test_infinity_does_not_become_a_number():
    assert zero_nan(torch.tensor([torch.nan, torch.inf, -torch.inf, 2.0])).tolist() == [0, torch.inf, -torch.inf, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_not_waited_for():
    guard = FiniteGuard()
    torch.cuda.set_sync_debug_mode("error")
    try:
        guard({"a": torch.full((1000, 1000), torch.nan, device="cuda")}, wait=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    with pytest.raises(DataError, match="a has values that are NaN"):
        guard({"a": torch.zeros(2, device="cuda")}, wait=False)
