"""Small tokenizers, whose tests are fast, and the published sizes beside TerraTorch's own."""

from dataclasses import replace

import pytest
import torch

from terramind_plugin.tokenizers.image import ImageTokenizer
from terramind_plugin.tokenizers.variants import TOKENIZERS, UNetSize

SMALL_UNET = UNetSize(width=32, multipliers=(1, 2, 2, 2), blocks=1)


def scatter_weights(model):
    """Move all weights off the values that a mistake could hide behind (ones in norms, zeros in last layers)."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def scatter():
    return scatter_weights


@pytest.fixture(scope="session")
def variant():
    """Return the published variant of a modality with fewer and narrower layers."""

    def make(modality, **numbers):
        published = TOKENIZERS[f"terramind_v1_tokenizer_{modality.lower()}"]
        unet = None if published.unet is None else SMALL_UNET
        return replace(published, **{"dim": 48, "depth": 2, "num_heads": 3, "image_size": 64, "unet": unet} | numbers)

    return make


@pytest.fixture(scope="session")
def small(variant):
    """Return a small tokenizer with weights that do not depend on what else the test draws."""

    def make(modality="S1GRD", *, seed=0, **parts):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return scatter_weights(ImageTokenizer(variant(modality), **parts))

    return make


@pytest.fixture(scope="session")
def models(backbones):
    """Return TerraTorch's registry of full models, with this package in it."""
    from terratorch.registry import FULL_MODEL_REGISTRY

    return FULL_MODEL_REGISTRY
