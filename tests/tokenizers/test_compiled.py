"""The decoders run as few graphs, without breaks, and give what they give without."""

from __future__ import annotations

import copy

import pytest
import torch

from terramind_plugin.model import compiled
from terramind_plugin.tokenizers import image as image_module
from tests.conftest import count_graphs

pytestmark = pytest.mark.usefixtures("fresh_graphs")


@pytest.mark.parametrize("dtype", [None, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=["float32", "bf16"])
def test_a_denoising_step_is_one_graph(small, traced, dtype):
    model = small("S1GRD", encoder=False)
    ready = copy.deepcopy(model).for_inference("default")
    tokens = torch.randint(0, 15360, (2, 3, 2), generator=torch.Generator().manual_seed(1))
    for seed, steps in ((0, 3), (1, 3), (2, 4)):
        expected = model.decode_tokens(tokens, steps, seed=seed, dtype=dtype)
        assert torch.equal(ready.decode_tokens(tokens, steps, seed=seed, dtype=dtype), expected)
        assert count_graphs() == (1, 0)
    (shapes,) = compiled.find_call(ready._steps._kept[dtype or torch.float32][1])._shapes.values()
    assert (len(shapes.graphs), shapes.calls, shapes._seen) == (1, 10, {})  # every step of every image runs in it
    ready.decode_tokens(tokens[:1], 2, dtype=dtype)  # a last, smaller batch has no graph of its own
    assert count_graphs() == (1, 0)


def test_class_decoder_and_encoder_are_a_graph_each(small, traced):
    model = small("LULC")
    ready = copy.deepcopy(model).for_inference("default")
    ids = torch.randint(0, 10, (2, 64, 32))
    for _ in range(3):
        assert torch.equal(ready(ids), model(ids))
    assert count_graphs() == (2, 0)


def test_weights_that_change_are_noticed(small):
    model = small("S1GRD", encoder=False)
    ready = copy.deepcopy(model).for_inference()
    tokens = torch.zeros(1, 2, 2, dtype=torch.int32)
    half = {"timesteps": 1, "dtype": torch.bfloat16}
    before = ready.decode_tokens(tokens, **half)
    assert torch.equal(before, model.decode_tokens(tokens, **half))
    other = small("S1GRD", encoder=False, seed=1)
    ready.load_state_dict(other.state_dict())
    assert torch.equal(ready.decode_tokens(tokens, **half), other.decode_tokens(tokens, **half))
    assert not torch.equal(ready.decode_tokens(tokens, **half), before)
    ready.to(torch.float64)
    assert ready.decode_tokens(tokens, 1).dtype == torch.float64


def test_weights_are_cast_once(small, monkeypatch):
    model = small("S1GRD", encoder=False).for_inference()
    tokens = torch.zeros(1, 2, 2, dtype=torch.int32)
    steps = model._steps
    for dtype in (torch.float32, torch.bfloat16):
        model.decode_tokens(tokens, 1, dtype=dtype)
        kept = steps._kept[dtype][1]
        model.decode_tokens(tokens, 2, dtype=dtype)
        assert steps._kept[dtype][1] is kept
    assert steps._kept[torch.float32][1].unet is model.decoder
    assert all(
        one.is_contiguous(memory_format=torch.channels_last)
        for _, step in steps._kept.values()
        for one in step.parameters()
        if one.dim() == 4
    )
    assert list(model.state_dict()) == list(copy.deepcopy(model).state_dict())
    assert not copy.deepcopy(model)._steps._kept


def test_unknown_mode(small):
    with pytest.raises(image_module.ConfigError, match="Choose one of graphs, default, off"):
        small("LULC").for_inference("graph")
