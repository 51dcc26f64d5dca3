"""Thinking-in-Modalities next to TerraTorch's own, with the same weights."""

from __future__ import annotations

from dataclasses import replace
from types import MethodType

import pytest
import torch

NAMES = ["S2L1C", "S1GRD"]


@pytest.fixture(scope="module")
def pair():
    """TerraTorch's TiM backbone and ours, with its weights loaded strictly."""
    from terratorch.registry import BACKBONE_REGISTRY

    import terramind_plugin  # noqa: F401

    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="not pre-trained"):
        theirs = BACKBONE_REGISTRY.build("terratorch_terramind_v1_tiny_tim", modalities=NAMES).eval()
    ours = BACKBONE_REGISTRY.build("terramind_v1_tiny_tim", modalities=NAMES).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def test_features_are_equal_for_the_same_thought(pair, images):
    theirs, ours = pair
    chips = images(NAMES, 2, 224, 224)
    ids = torch.randint(0, 4375, (2, 14, 14))

    def inject(sampler, given, *args, **kwargs):
        return {**given, "tok_lulc@224": {**given["tok_lulc@224"], "tensor": ids.flatten(1)}}

    generate, think = theirs.sampler.generate, ours.generate_tokens
    theirs.sampler.generate = MethodType(inject, theirs.sampler)
    ours.generate_tokens = lambda *args, **kwargs: {"LULC": ids}
    try:
        with torch.no_grad():
            expected, got = theirs(dict(chips)), ours(chips)
    finally:
        theirs.sampler.generate, ours.generate_tokens = generate, think
    for layer, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(layer, reference, rtol=0, atol=1e-5 * max(1, reference.abs().max()))


def test_likeliest_thoughts_are_equal(pair, images):
    """Temperature 0 leaves no chance but the order in which tokens are drawn, which one step does not have."""
    theirs, ours = pair
    chips = images(NAMES, 2, 224, 224)
    seen = {}
    generate, decoding = theirs.sampler.generate, ours.decoding

    def spy(*args, **kwargs):
        seen.update(generate(*args, **kwargs))
        return seen

    theirs.sampler.generate, theirs.tim_temps = spy, 0.0
    ours.decoding = replace(decoding, temperature=0.0)
    try:
        with torch.no_grad():
            theirs(dict(chips))
            thought = ours.generate_tokens(chips)["LULC"]
    finally:
        theirs.sampler.generate, ours.decoding = generate, decoding
    assert torch.equal(thought.flatten(1), seen["tok_lulc@224"]["tensor"].reshape(2, -1))
