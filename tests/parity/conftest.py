"""TerraTorch's own TerraMind beside ours, with the same random weights."""

import pytest
import torch


def scatter_weights(model):
    """Move all parameters off the values that a mistake could hide behind (ones in norms, zeros in biases)."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.nan_to_num(0, 0, 0).clamp(-1, 1) + 0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def scatter():
    return scatter_weights


@pytest.fixture(scope="session")
def reference(backbones):
    """Return TerraTorch's backbone in evaluation mode with random weights."""

    def make(size, modalities, **kwargs):
        model = backbones.build(f"terratorch_terramind_v1_{size}", modalities=list(modalities), **kwargs)
        return scatter_weights(model).eval()

    return make


@pytest.fixture(scope="session")
def pair(backbones, reference):
    """Return TerraTorch's backbone and ours with the same weights, as views of one memory."""

    def make(size, modalities, *, dtype=torch.float32, **kwargs):
        theirs = reference(size, modalities, **kwargs).to(dtype)
        ours = backbones.build(f"terramind_v1_{size}", modalities=list(modalities), **kwargs).to(dtype).eval()
        ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
        return theirs, ours

    return make


@pytest.fixture(scope="session")
def assert_same():
    """Check tensors, lists and dicts of tensors for equality within a share of the reference's largest value."""

    def check(got, want, tolerance):
        if isinstance(want, dict):
            assert list(got) == list(want)
            got, want = list(got.values()), list(want.values())
        if isinstance(want, list | tuple):
            assert len(got) == len(want)
            for one, other in zip(got, want, strict=True):
                check(one, other, tolerance)
            return
        assert got.shape == want.shape
        assert got.dtype == want.dtype
        limit = tolerance * max(1.0, want.abs().max().item())
        assert (got - want).abs().max().item() <= limit

    return check
