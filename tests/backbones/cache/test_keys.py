"""Keys: a sample has one, whatever batch it comes in, and another where anything it depends on differs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terramind_plugin.backbones.cache.keys import Fingerprint, describe_context, list_tensors, sample_keys
from terramind_plugin.system import parallel

CONTEXT = describe_context(what="test")
NAMES = ["S2L2A", "S1GRD", "DEM"]


def _batch(numbers, dtype=torch.float32):
    generator = torch.Generator()
    return {
        name: torch.stack([torch.randn(2, 4, 4, generator=generator.manual_seed(10 * n + i)) for n in numbers]).to(
            dtype
        )
        for i, name in enumerate(NAMES)
    }


samples = st.lists(
    st.tuples(st.integers(0, 5), st.lists(st.booleans(), min_size=3, max_size=3)), min_size=1, max_size=6
)


@settings(max_examples=60, deadline=None)
@given(samples=samples)
def test_a_sample_has_one_key_in_any_batch(samples):
    batch = _batch([number for number, _ in samples])
    present = dict(zip(NAMES, torch.tensor([has for _, has in samples]).T, strict=True))
    keys = sample_keys(CONTEXT, batch, present)
    identities = []
    for key, (number, has) in zip(keys, samples, strict=True):
        has = has if any(has) else [True] * 3
        alone = {name: x for (name, x), there in zip(_batch([number]).items(), has, strict=True) if there}
        assert sample_keys(CONTEXT, dict(reversed(alone.items())), None) == [key]
        identities.append((number, *has))
    assert [keys.index(key) for key in keys] == [identities.index(identity) for identity in identities]


def test_what_a_sample_lacks_has_no_say():
    batch, other = _batch([0, 1]), _batch([0, 1])
    other["S1GRD"][1] = 7.0
    present = {"S2L2A": torch.tensor([True, True]), "S1GRD": torch.tensor([True, False]), "DEM": torch.ones(2) > 0}
    assert sample_keys(CONTEXT, batch, present) == sample_keys(CONTEXT, other, present)
    assert sample_keys(CONTEXT, batch, None) != sample_keys(CONTEXT, other, None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_every_type(dtype):
    assert sample_keys(CONTEXT, _batch([0], dtype), None) != sample_keys(CONTEXT, _batch([0]), None)


def test_how_a_tensor_lies_in_memory_has_no_say():
    batch = _batch([0, 1])
    spread = {name: x.to(memory_format=torch.channels_last) for name, x in batch.items()}
    assert sample_keys(CONTEXT, batch, None) == sample_keys(CONTEXT, spread, None)


@pytest.mark.parametrize("count", [2, 5])
def test_threads_have_no_say(count, monkeypatch):
    """Samples large enough that threads hash them, of which one lacks a modality."""
    chips = {name: torch.randn(7, 3, 128, 128) for name in NAMES}
    present = {name: torch.ones(7, dtype=torch.bool) for name in NAMES}
    present["S1GRD"][4] = False
    monkeypatch.setattr(parallel, "HASH_THREADS", 1)
    alone = sample_keys(CONTEXT, chips, present)
    monkeypatch.setattr(parallel, "HASH_THREADS", count)
    assert sample_keys(CONTEXT, chips, present) == alone
    assert len(set(alone)) == 7


@pytest.mark.parametrize("write", ["in place", "data", "swap", "part", "buffer", "scalar", "load"])
def test_weights_that_change_are_noticed(write):
    model, other = (torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8)) for _ in range(2))
    fingerprint = Fingerprint()
    before = fingerprint.of(model)
    assert fingerprint.of(model) == before
    with torch.no_grad():
        if write == "in place":
            model[0].weight[0, 0] += 1
        elif write == "data":
            model[0].weight.data.mul_(1.5)
        elif write == "swap":
            model[0].weight = other[0].weight
        elif write == "part":
            model[0] = other[0]
        elif write == "buffer":
            model[1].running_var = other[1].running_var + 1
        elif write == "scalar":
            model[1].num_batches_tracked += 1
        else:
            model.load_state_dict(other.state_dict())
    assert fingerprint.of(model) != before
    assert fingerprint.of(model) == Fingerprint().of(model)


def test_all_tensors_are_listed():
    inner = torch.nn.Linear(4, 4, bias=False)
    model = torch.nn.ModuleDict({"a": inner, "b": torch.nn.Sequential(inner, torch.nn.BatchNorm1d(4)), "c": None})
    expected = [*model.parameters(), *model.buffers()]
    assert {id(x) for x in list_tensors(model)} == {id(x) for x in expected}
