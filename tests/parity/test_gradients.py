"""Gradients of a loss on all layers equal those of TerraTorch's own TerraMind."""

import pytest
import torch

EXACT, SINGLE = 1e-9, 1e-4


def gradients(model, x):
    """Return the gradients of parameters and images, by name."""
    x = {name: image.clone().requires_grad_() for name, image in x.items()}
    generator = torch.Generator().manual_seed(7)
    loss = 0
    for layer in model(dict(x)):
        for tokens in layer.values() if isinstance(layer, dict) else [layer]:
            loss = loss + (tokens * torch.randn(tokens.shape, generator=generator).to(tokens)).mean()
    model.zero_grad()
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**grads, **{name: image.grad for name, image in x.items()}}


@pytest.fixture
def compare(pair, images):
    def run(size, *, dtype, pixels=224, given=("S2L2A", "S1GRD"), **kwargs):
        theirs, ours = pair(size, ["S2L2A", "S1GRD"], dtype=dtype, **kwargs)
        x = images(given, 1, pixels, pixels, dtype=dtype)
        want = {name: grad.clone() for name, grad in gradients(theirs, x).items()}
        got = gradients(ours, x)
        assert set(got) == set(want)
        for name, grad in want.items():
            limit = (EXACT if dtype == torch.float64 else SINGLE) * grad.abs().max().item()
            assert (got[name] - grad).abs().max().item() <= limit, name

    return run


@pytest.mark.parametrize("method", ["mean", "max", "concat", "dict", None])
def test_merge(compare, method):
    compare("tiny", dtype=torch.float64, pixels=64, merge_method=method)


def test_single_precision(compare):
    compare("tiny", dtype=torch.float32, pixels=112)


def test_gated(compare):
    compare("base", dtype=torch.float32, pixels=64)


def test_missing_token(compare):
    compare("tiny", dtype=torch.float64, pixels=64, given=["S2L2A"], merge_method="concat")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_large_models(compare, size):
    compare(size, dtype=torch.float64)
