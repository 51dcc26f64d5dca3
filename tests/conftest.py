"""Fixtures that several folders use; no test reaches the network unless it is marked so."""

import logging
import os

os.environ["HF_HUB_OFFLINE"] = "1"

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from terramind_plugin.model.modalities import find
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.tokenizers import variants
from terramind_plugin.tokenizers.coordinates import build_coords_vocabulary

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def full_precision():
    """Undo what importing TerraTorch sets: 'medium' computes float32 products in bfloat16 on some machines."""
    torch.set_float32_matmul_precision("highest")


@contextmanager
def one_thread():
    """Compute with one thread: for tiny models a second one costs more than it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def without_initialisation():
    """Build layers without drawing their weights, for models whose weights are all set afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kaiming_uniform_", "normal_", "trunc_normal_", "uniform_", "xavier_uniform_"):
            patch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
        yield


@torch.no_grad()
def draw_weights(model):
    """Set all parameters to random values that hide no mistake: no ones in norms, no zeros in biases."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.02)
    return model


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    full_precision()


@pytest.fixture(autouse=True, scope="module")
def _working_folder():
    """Refuse tests that leave a file in the repository; they belong in `tmp_path`."""
    before = set(os.listdir())
    yield
    left = {name for name in set(os.listdir()) - before if not name.startswith(".")}
    assert not left, f"left in {os.getcwd()}: {', '.join(sorted(left))}"


@pytest.fixture(scope="session")
def image():
    """Return standardised images [batch, bands, height, width] of a modality, different for each seed."""

    def make(modality, batch=2, height=64, width=64, *, channels=None, seed=0, dtype=torch.float32):
        known = find(modality)
        channels = channels or (len(known.bands) if known else 3)
        generator = torch.Generator().manual_seed(seed + sum(map(ord, modality)))
        return torch.randn(batch, channels, height, width, generator=generator, dtype=dtype)

    return make


@pytest.fixture(scope="session")
def images(image):
    """Return images by modality."""

    def make(modalities, *args, **kwargs):
        return {name: image(name, *args, **kwargs) for name in modalities}

    return make


@pytest.fixture(scope="session")
def tiny():
    """Return a tiny backbone in evaluation mode whose weights do not depend on what else the test draws."""
    from terramind_plugin.backbones.encoder import TerraMindBackbone

    def make(modalities=("S2L2A", "S1GRD"), *, depth=12, seed=0, **kwargs):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            variant = replace(VARIANTS["terramind_v1_tiny"], depth=depth)
            return TerraMindBackbone(variant, list(modalities), **kwargs).eval()

    return make


@pytest.fixture(scope="session")
def backbones():
    """Return TerraTorch's registry of backbones, with this package in it."""
    from terratorch.registry import BACKBONE_REGISTRY

    import terramind_plugin  # noqa: F401

    full_precision()
    return BACKBONE_REGISTRY


@pytest.fixture(scope="module")
def small_tokenizers():
    """Replace the tokenizers by ones of the same kinds with few weights."""
    with pytest.MonkeyPatch.context() as patch:
        for name, variant in list(variants.TOKENIZERS.items()):
            unet = variant.unet and variants.UNetSize(width=32, multipliers=(1, 1), blocks=1, attention_at=(2,))
            patch.setitem(variants.TOKENIZERS, name, replace(variant, dim=48, depth=1, num_heads=3, unet=unet))
        yield


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """Return a vocabulary of coordinates like the published one."""
    path = tmp_path_factory.mktemp("vocabulary") / "config.json"
    build_coords_vocabulary(0.25, 200).save(str(path))
    return path


@pytest.fixture
def fresh_graphs(monkeypatch):
    """Begin and end a test without graphs of torch's compiler, and without what was said of compilation."""
    from torch._dynamo.utils import counters

    from terramind_plugin.model import compiled

    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)  # pytest would keep every line
    torch._dynamo.reset()
    counters.clear()
    compiled._said.clear()
    yield
    torch._dynamo.reset()


def count_graphs():
    """Return the numbers of graphs, and of breaks in them, since the test began."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


@pytest.fixture
def traced(monkeypatch):
    """Compile with dynamo alone: a graph runs the operations that it was made of."""
    from terramind_plugin.model import compiled

    begin = compiled.CompiledCall.__init__

    def init(self, *args, **more):
        begin(self, *args, **{**more, "backend": "eager"})

    monkeypatch.setattr(compiled.CompiledCall, "__init__", init)
