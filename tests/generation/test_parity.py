"""Scores and token ids equal those of TerraTorch's own sampler."""

import pytest
import torch

from terramind_plugin.generation.schedules import Decoding
from terramind_plugin.model.embeddings import PAD_ID
from terramind_plugin.model.modalities import resolve
from tests.generation.conftest import ReplayedNoise

EXACT, SINGLE = 1e-9, 1e-4


@pytest.fixture
def compare(pair, give, run_reference, record):
    def run(
        inputs,
        targets,
        remembered=None,
        *,
        given=None,
        steps=1,
        scheme="roar",
        counts="linear",
        pixels=(96, 96),
        dtype=torch.float64,
        **how,
    ):
        theirs, ours = pair(inputs, targets, remembered, dtype=dtype)
        x = give(given or inputs, 2, *pixels, dtype=dtype)
        lengths = how.pop("lengths", 4)
        want = run_reference(
            theirs, dict(x), targets, steps=steps, scheme=scheme, counts=counts, lengths=lengths, **how
        )
        decoding = Decoding(
            steps=steps, scheme=scheme, counts=counts, temperature=0.0, max_tokens=min(lengths - 1, 4), **how
        )
        noise = ReplayedNoise(2, 7, lambda total: [step.count for step in decoding.plan(total)], targets[0] == "coords")
        got = ours(x, noise=noise, decoding=decoding, image_size=pixels)
        check_scores(*record, EXACT if dtype == torch.float64 else SINGLE)
        for name in targets:
            ids, expected = got[name], want[resolve(name).token_key]
            if ids.ndim == 3:
                assert torch.equal(ids.flatten(1), expected)
            else:
                assert torch.equal(ids[:, : expected.shape[1]], expected)
                assert (ids[:, expected.shape[1] :] == PAD_ID).all()

    return run


def check_scores(theirs, ours, tolerance):
    assert len(ours) == len(theirs) > 0
    for want, got in zip(theirs, ours, strict=True):
        assert got.shape == want.shape
        assert (got - want).abs().max() <= tolerance * max(1.0, want.abs().max())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("steps", [1, 5])
def test_one_target(compare, steps, dtype):
    compare(["S2L2A", "S1GRD"], ["LULC"], steps=steps, dtype=dtype)


@pytest.mark.parametrize("steps", [1, 4])
def test_target_that_reads_itself(compare, steps):
    compare(["S2L1C"], ["LULC"], ["LULC"], steps=steps)


@pytest.mark.parametrize("steps", [1, 3])
def test_chain(compare, steps):
    compare(["S2L2A"], ["S1GRD", "DEM", "NDVI"], steps=steps)


def test_chain_without_memory(compare):
    compare(["S2L2A"], ["S1RTC", "LULC"], [], steps=3)


@pytest.mark.parametrize("counts", ["linear", "cosine"])
@pytest.mark.parametrize("remembered", [[], ["LULC"]])
def test_maskgit(compare, monkeypatch, counts, remembered):
    from terratorch.models.backbones.terramind.model.generate import GenerationSampler

    def surest(self, logits, *args, **kwargs):
        return logits.argmax(dim=-1), logits.softmax(dim=-1).amax(dim=-1)

    monkeypatch.setattr(GenerationSampler, "sample_tokens_batched", surest)
    compare(["S2L2A"], ["LULC"], remembered, steps=4, scheme="maskgit", counts=counts)


@pytest.mark.parametrize("scheme", ["roar", "maskgit"])
def test_guidance(compare, monkeypatch, scheme):
    from terratorch.models.backbones.terramind.model.generate import GenerationSampler

    def surest(self, logits, *args, **kwargs):
        return logits.argmax(dim=-1), logits.softmax(dim=-1).amax(dim=-1)

    monkeypatch.setattr(GenerationSampler, "sample_tokens_batched", surest)
    compare(["S2L2A", "S1GRD"], ["LULC"], ["LULC"], steps=3, scheme=scheme, guidance=2.5)


@pytest.mark.parametrize("inputs", [["LULC"], ["coords"], ["S2L2A", "LULC", "coords"], ["tok_sen2l2a@224"]], ids=str)
def test_tokens_as_input(compare, inputs):
    compare(inputs, ["S1GRD"], steps=2)


@pytest.mark.parametrize("remembered", [[], ["coords"]])
def test_coordinates(compare, remembered):
    compare(["S2L2A"], ["coords"], remembered)


def test_coordinates_condition_an_image(compare):
    compare(["S2L2A"], ["coords", "LULC"], steps=2)


def test_image_conditions_coordinates(compare):
    compare(["S2L2A"], ["LULC", "coords"], ["LULC", "coords"], steps=2, lengths=50)


def test_input_that_is_not_given(compare):
    compare(["S2L2A", "S1GRD", "DEM"], ["LULC"], given=["S1GRD"], steps=2)


@pytest.mark.parametrize("pixels", [(224, 224), (128, 128)])
def test_size(compare, pixels):
    compare(["S2L1C", "S1GRD"], ["LULC"], steps=2, pixels=pixels)
