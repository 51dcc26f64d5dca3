"""TerraTorch's own TerraMind beside ours, with the same random weights."""

import pytest
import torch

from tests.conftest import draw_weights, without_initialisation


@pytest.fixture(scope="session")
def scatter():
    return draw_weights


@pytest.fixture(scope="session")
def reference(backbones):
    """Return TerraTorch's backbone in evaluation mode with random weights."""

    def make(size, modalities, **kwargs):
        with without_initialisation():
            model = backbones.build(f"terratorch_terramind_v1_{size}", modalities=list(modalities), **kwargs)
        return draw_weights(model).eval()

    return make


@pytest.fixture(scope="session")
def pair(backbones, reference):
    """Return TerraTorch's backbone and ours with the same weights, as views of one memory."""

    def make(size, modalities, *, dtype=torch.float32, **kwargs):
        theirs = reference(size, modalities, **kwargs).to(dtype)
        with without_initialisation():
            ours = backbones.build(f"terramind_v1_{size}", modalities=list(modalities), **kwargs)
        ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
        return theirs, ours.to(dtype).eval()

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
