"""Draws come from the right ids, with the right frequencies, whatever the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terramind_plugin.errors import ConfigError
from terramind_plugin.generation.sampling import (
    count_draws,
    find_nucleus,
    guide,
    keep_top_k,
    keep_top_p,
    sample,
    sample_ids,
)
from terramind_plugin.tokenizers.noise import Noise
from tests.reads import Reads


def scores(seed, batch=2, tokens=5, vocabulary=40, spread=3.0):
    return spread * torch.randn(batch, tokens, vocabulary, generator=torch.Generator().manual_seed(seed))


def sorted_nucleus(probabilities, top_p):
    """Return the nucleus that a stable sort finds."""
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    mass = ordered.cumsum(dim=-1)
    inside = torch.ones_like(ordered, dtype=torch.bool)
    inside[..., 1:] = mass[..., :-1] <= top_p
    return torch.empty_like(inside).scatter(-1, ids, inside)


def reference_filter(logits, top_k=0.0, top_p=0.0):
    from terratorch.models.backbones.terramind.model.generate import GenerationSampler

    return GenerationSampler(None).top_k_top_p_filtering(logits.clone().flatten(0, -2), top_k, top_p).view_as(logits)


@given(st.integers(0, 1000), st.sampled_from([0, 1, 3, 40, 100, 0.1, 0.5]))
@settings(max_examples=30, deadline=None)
def test_top_k_is_the_references(seed, top_k):
    logits = scores(seed)
    assert torch.equal(keep_top_k(logits, top_k), reference_filter(logits, top_k=top_k))


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.05, 0.5, 0.8, 0.99]))
@settings(max_examples=30, deadline=None)
def test_top_p_is_the_references(seed, top_p):
    logits = scores(seed)
    assert torch.equal(keep_top_p(logits, top_p), reference_filter(logits, top_p=top_p))


@given(st.integers(0, 10_000), st.sampled_from([2, 40, 4375]), st.floats(0.01, 0.99), st.sampled_from([0.1, 3.0, 10.0]))
@settings(max_examples=12, deadline=None)
def test_bisection_finds_the_nucleus_of_sorting(seed, vocabulary, top_p, spread):
    for dtype in (torch.float32, torch.float64):
        weights = scores(seed, vocabulary=vocabulary, spread=spread).to(dtype).softmax(dim=-1)
        got, want = find_nucleus(weights, top_p), sorted_nucleus(weights, top_p)
        mass = torch.where(got, weights, 0.0).sum(dim=-1)
        rounded = (mass - top_p).abs() < 1e-5  # the order of the sum decides where it ends there
        assert torch.equal(got[~rounded], want[~rounded])
        assert (got.sum(dim=-1) - want.sum(dim=-1)).abs().max() <= 1 or rounded.any()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.integers(0, 64))
@settings(max_examples=50, deadline=None)
def test_equally_likely_ids_enter_in_their_order(parts, top):
    """Probabilities and top_p are multiples of a power of two, so that sums are exact."""
    fixed = [*parts, 64 * 4 - sum(parts)]
    weights = torch.tensor(fixed, dtype=torch.float32) / 256
    assert torch.equal(find_nucleus(weights, top / 64), sorted_nucleus(weights, top / 64))
    assert torch.equal(find_nucleus(weights.flip(0), top / 64), sorted_nucleus(weights.flip(0), top / 64))


def test_edges_of_the_nucleus():
    weights = torch.tensor([[0.25, 0.5, 0.25, 0.0], [0.0, 0.0, 1.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    assert find_nucleus(weights, 0.0).tolist() == [
        [False, True, False, False],
        [False, False, True, False],
        [True] + [False] * 3,
    ]
    assert find_nucleus(weights, 1.0).all()
    assert find_nucleus(weights, 0.5).tolist() == [
        [True, True, False, False],
        [False, False, True, False],
        [True] * 3 + [False],
    ]


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("spread", [0.0, 3.0])
def test_a_gpu_draws_what_a_cpu_draws_and_nobody_waits(monkeypatch, temperature, spread):
    logits = scores(1, batch=3, tokens=50, vocabulary=300, spread=spread)
    draws = Noise.from_seed([1, 2, 3], 3).uniform(50, count_draws(0.8, temperature))
    draws[0, 0, :-1] = 1 - 2**-24  # all miss
    want = sample_ids(logits, draws, temperature=temperature, top_p=0.8)
    monkeypatch.setattr("terramind_plugin.generation.sampling.may_read", lambda device: False)
    with Reads() as reads:
        got = sample_ids(logits, draws, temperature=temperature, top_p=0.8)
    assert reads.names == []
    assert torch.equal(got, want)


def test_drawing_is_one_graph():
    logits, draws = scores(1), Noise.from_seed(0, 2).uniform(5, count_draws(0.8, 1.0))
    compiled = torch.compile(sample_ids, backend="eager", fullgraph=True)
    assert torch.equal(compiled(logits, draws, top_p=0.8), sample_ids(logits, draws, top_p=0.8))


def test_a_small_share_keeps_one():
    assert keep_top_k(scores(0), 0.001).isfinite().sum(dim=-1).eq(1).all()


@given(st.integers(0, 1000), st.sampled_from([0, 5]), st.sampled_from([0.0, 0.3, 0.8]), st.sampled_from([0.5, 1, 2]))
@settings(max_examples=60, deadline=None)
def test_draws_stay_inside(seed, top_k, top_p, temperature):
    logits = scores(seed)
    allowed = keep_top_p(keep_top_k(logits, top_k), top_p).isfinite()
    how = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    draws = Noise.from_seed(seed, 2).uniform(5, count_draws(top_p, temperature))
    for ids in (sample(logits, draws, **how)[0], sample_ids(logits, draws, **how)):
        assert allowed.gather(-1, ids[..., None]).all()


@given(st.integers(0, 1000), st.sampled_from([0, 5]), st.sampled_from([0.0, 0.3, 0.8]))
@settings(max_examples=30, deadline=None)
def test_temperature_zero_takes_the_likeliest(seed, top_k, top_p):
    logits = scores(seed)
    ids, sureness = sample(logits, None, temperature=0.0, top_k=top_k, top_p=top_p)
    assert torch.equal(ids, logits.argmax(dim=-1))
    torch.testing.assert_close(sureness, logits.softmax(dim=-1).amax(dim=-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.0, 0.35, 0.8])
def test_frequencies(temperature, top_p):
    logits = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05]).log()
    want = (keep_top_p(logits, top_p) / temperature).softmax(dim=-1)
    count = 40_000
    draws = Noise.from_seed(0, 1).uniform(count, count_draws(top_p, temperature))
    many = logits.expand(1, count, 5)
    ids, sureness = sample(many, draws, temperature=temperature, top_p=top_p)
    torch.testing.assert_close(sureness, want[ids])
    for drawn in (ids, sample_ids(many, draws, temperature=temperature, top_p=top_p)):
        frequencies = torch.bincount(drawn.flatten(), minlength=5) / count
        assert (frequencies - want).abs().max() < 0.01


def test_where_all_draws_miss():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(1, 4, 3)
    missing = torch.full((1, 4, 6), 0.99)
    missing[..., -1] = 0.9
    assert sample_ids(logits, missing, top_p=0.6).eq(1).all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
def test_ids_of_probability_zero_are_never_drawn(uniform):
    logits = torch.tensor([-torch.inf, 0.0, 1.0, -torch.inf]).expand(1, 1, 4)
    ids, _ = sample(logits, torch.full((1, 1, 1), uniform))
    assert ids.item() in (1, 2)


@pytest.mark.parametrize("top_p", [0.0, 0.8])
def test_a_sample_is_the_same_in_any_batch(top_p):
    logits = scores(3, batch=4)
    seeds = [5, 6, 7, 8]

    def draw(which):
        noise = Noise.from_seed([seeds[index] for index in which], len(which))
        return sample_ids(logits[which], noise.uniform(5, count_draws(top_p, 1.0)), top_p=top_p)

    together = draw([0, 1, 2, 3])
    for index in range(4):
        assert torch.equal(draw([index])[0], together[index])
    assert torch.equal(draw([3, 1]), together[[3, 1]])


def test_noise_leaves_the_global_generators_alone():
    state = torch.get_rng_state()
    noise = Noise.from_seed(0, 3)
    noise.order(10), noise.uniform(4, 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds():
    one = Noise.from_seed(3, 2).uniform(4)
    assert torch.equal(one[0], one[1])
    assert not torch.equal(Noise.from_seed(None, 1).uniform(9), Noise.from_seed(None, 1).uniform(9))
    with pytest.raises(ConfigError, match="Got 3 seeds for 2 samples"):
        Noise.from_seed([1, 2, 3], 2)


def test_half_precision_scores():
    logits = scores(0).bfloat16()
    ids, sureness = sample(logits, Noise.from_seed(0, 2).uniform(5, 1), top_p=0.8)
    assert sureness.dtype == torch.float32
    assert ids.max() < 40


def test_guidance():
    base, one, two = scores(0), scores(1), scores(2)
    torch.testing.assert_close(guide(base, [one], [1.0]), one)
    torch.testing.assert_close(guide(base, [one, two], [0.0, 0.0]), base)
    torch.testing.assert_close(guide(base, [one, two], [2.0, 0.5]), base + 2 * (one - base) + 0.5 * (two - base))
