"""Modality dropout, freezing, precision and recomputation."""

import random

import pytest
import torch

PAIR = ("S2L2A", "S1GRD")


def kept(layer):
    """Return a boolean [modalities, B]: which modalities the samples kept."""
    return torch.stack([tokens.flatten(1).any(dim=1) for tokens in layer.values()])


@pytest.fixture
def small(images):
    return lambda batch, modalities=PAIR: images(modalities, batch, 16, 16)


@pytest.mark.parametrize("rate", [0.5, 0.95, 1.0])
def test_one_modality_always_stays(tiny, small, rate):
    model = tiny(PAIR, depth=1, merge_method="dict", modality_drop_rate=rate).train()
    draws = torch.cat([kept(model(small(256))[-1]) for _ in range(8)], dim=1)
    assert draws.any(dim=0).all()
    # The survivor is drawn, not fixed.
    only_first, only_second = draws[0] & ~draws[1], draws[1] & ~draws[0]
    assert abs(only_first.float().mean() - only_second.float().mean()) < 0.06
    assert draws.float().mean().item() == pytest.approx(1 - rate / 2, abs=0.05)


def test_the_only_real_modality_stays(tiny, small):
    model = tiny(PAIR, depth=1, merge_method="dict", modality_drop_rate=0.9).train()
    real = torch.arange(256) % 2 == 0
    for _ in range(8):
        left = kept(model(small(256), modality_mask={"S2L2A": real, "S1GRD": ~real})[-1])
        assert torch.equal(left, torch.stack([real, ~real]))


def test_samples_are_dropped_one_by_one(tiny, small):
    model = tiny(PAIR, depth=1, merge_method="dict", modality_drop_rate=0.5).train()
    assert 0 < kept(model(small(64))[-1])[0].sum() < 64


def test_a_single_modality_is_never_dropped(tiny, small):
    model = tiny(["S2L2A"], depth=2, modality_drop_rate=0.9)
    x = small(8, ["S2L2A"])
    assert torch.equal(model.train()(x)[-1], model.eval()(x)[-1])


@pytest.mark.parametrize("method", ["mean", "max", "concat", "dict", "none"])
def test_no_dropout_in_evaluation(tiny, small, method):
    model = tiny(PAIR, depth=2, merge_method=method, modality_drop_rate=0.9)
    plain = tiny(PAIR, depth=2, merge_method=method)
    x = small(16)
    one, other = model(x)[-1], plain(x)[-1]
    if method == "dict":
        one, other = torch.cat(list(one.values())), torch.cat(list(other.values()))
    assert torch.equal(one, other)


def test_evaluation_draws_nothing(tiny, small):
    model = tiny(PAIR, depth=2, modality_drop_rate=0.5, drop_path_rate=0.5, drop_rate=0.1)
    state = torch.get_rng_state()
    model(small(4))
    assert torch.equal(torch.get_rng_state(), state)


def test_reproducible(tiny, small):
    model = tiny(PAIR, depth=2, modality_drop_rate=0.5).train()
    x = small(32)
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(model(x)[-1])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_the_standard_library_is_left_alone(tiny, small):
    model = tiny(PAIR, depth=2, modality_drop_rate=0.5, drop_path_rate=0.5).train()
    state = random.getstate()
    model(small(4))
    assert random.getstate() == state


def test_dropped_is_missing(tiny, small):
    """A dropped modality is the same as one that the mask declares missing."""
    model = tiny(PAIR, depth=2, merge_method="dict", modality_drop_rate=0.5).train()
    x = small(32)
    layer = model(x)[-1]
    mask = dict(zip(PAIR, kept(layer), strict=True))
    for name, tokens in model.eval()(x, modality_mask=mask)[-1].items():
        assert torch.allclose(tokens, layer[name], atol=1e-6)


def test_freeze(tiny):
    model = tiny(PAIR, depth=2, drop_path_rate=0.5).train()
    model.freeze()
    assert not any(p.requires_grad for p in model.parameters())
    torch.nn.Sequential(model).train()
    assert not any(module.training for module in model.modules())
    model.unfreeze()
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())


def test_partly_frozen_trains(tiny):
    model = tiny(PAIR, depth=2)
    model.freeze()
    model.encoder_norm.requires_grad_(True)
    assert model.train() is model
    assert model.encoder[0].training
    assert not model.eval().training


@pytest.mark.parametrize("name", ["drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_dropout(tiny, small, name):
    model = tiny(PAIR, depth=3, **{name: 0.5})
    x = small(8)
    assert torch.equal(model(x)[-1], model(x)[-1])
    model.train()
    assert not torch.equal(model(x)[-1], model(x)[-1])


@pytest.mark.parametrize("masked", [False, True])
def test_recomputation_has_the_same_gradients(tiny, images, masked):
    mask = {"S1GRD": torch.tensor([True, False])} if masked else None
    grads = []
    for recompute in (False, True):
        model = tiny(PAIR, depth=3, activation_checkpointing=recompute, drop_path_rate=0.2).train()
        torch.manual_seed(3)
        model(images(PAIR), modality_mask=mask)[-1].square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method", ["mean", "max", "concat"])
def test_bfloat16(tiny, images, masked, method):
    model = tiny(PAIR, depth=6, merge_method=method)
    x, mask = images(PAIR), {"S1GRD": torch.tensor([True, False])} if masked else None
    want = model(x, modality_mask=mask)[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(x, modality_mask=mask)[-1]
    assert torch.nn.functional.cosine_similarity(got.float(), want, dim=-1).min() > 0.999
    got.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_bfloat16_weights(tiny, images):
    model = tiny(PAIR)
    x = images(PAIR, 2, 96, 64)
    want = model(x)[-1]
    got = model.bfloat16()({name: image.bfloat16() for name, image in x.items()})[-1]
    assert got.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(got.float(), want, dim=-1).min() > 0.99


def test_result_does_not_depend_on_the_batch(tiny, images):
    model = tiny(PAIR)
    x = images(PAIR, 4)
    one = model({name: image[1:2] for name, image in x.items()})[-1]
    assert torch.allclose(model(x)[-1][1:2], one, atol=1e-5)
