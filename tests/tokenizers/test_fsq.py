"""Codes and token ids of finite scalar quantisation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.tokenizers.fsq import FiniteScalarQuantizer
from terramind_plugin.tokenizers.variants import CLASS_CODE_LEVELS, CODE_LEVELS, TOKENIZERS

levels = st.lists(st.integers(2, 9), min_size=1, max_size=5)


def latents_of(codes):
    """Return latents whose sigmoid is almost the codes, as far as it can be."""
    return codes.clamp(1e-4, 1 - 1e-4).logit()


def round_trip(quantizer, ids):
    codes = quantizer.codes(ids)
    again, found = quantizer(latents_of(codes))
    assert torch.equal(found.long(), ids.long())
    torch.testing.assert_close(again, codes)
    return codes


@pytest.mark.parametrize("numbers", [CODE_LEVELS, CLASS_CODE_LEVELS])
def test_every_id_has_its_own_codes(numbers):
    quantizer = FiniteScalarQuantizer(numbers)
    ids = torch.arange(quantizer.codebook_size).reshape(1, 1, -1)
    codes = round_trip(quantizer, ids)
    assert len(codes[0, :, 0].T.unique(dim=0)) == quantizer.codebook_size


@given(levels, st.data())
def test_ids_and_codes_belong_together(numbers, data):
    quantizer = FiniteScalarQuantizer(numbers)
    some = st.lists(st.integers(0, math.prod(numbers) - 1), min_size=6, max_size=6)
    round_trip(quantizer, torch.tensor(data.draw(some)).reshape(1, 2, 3))


@given(levels, st.integers(0, 2**31), st.floats(0.1, 30))
def test_range(numbers, seed, spread):
    quantizer = FiniteScalarQuantizer(numbers)
    latents = spread * torch.randn(2, len(numbers), 3, 4, generator=torch.Generator().manual_seed(seed))
    codes, ids = quantizer(latents)
    assert 0 <= codes.min() <= codes.max() <= 1
    assert 0 <= ids.min() <= ids.max() < quantizer.codebook_size
    torch.testing.assert_close(quantizer.codes(ids), codes)
    steps = codes * (torch.tensor(numbers) - 1)[:, None, None]
    torch.testing.assert_close(steps, steps.round())
    assert ((codes - latents.sigmoid()).abs() <= 0.5 / (torch.tensor(numbers) - 1)[:, None, None] + 1e-6).all()


def test_first_channel_counts_fastest():
    quantizer = FiniteScalarQuantizer((7, 5))
    _, ids = quantizer(latents_of(torch.tensor([1.0, 0.25])).reshape(1, 2, 1, 1))
    assert ids.item() == 6 + 1 * 7


def test_gradient_passes_through_rounding():
    latents = torch.randn(1, 5, 2, 2, requires_grad=True)
    FiniteScalarQuantizer(CODE_LEVELS)(latents)[0].sum().backward()
    smooth = latents.detach().sigmoid()
    torch.testing.assert_close(latents.grad, smooth * (1 - smooth))


def test_vocabulary_sizes_are_the_tables():
    for variant in TOKENIZERS.values():
        model = next(model for model in VARIANTS.values() if model.family == variant.family)
        assert math.prod(variant.levels) == model.vocab_size(variant.modality)


@pytest.mark.parametrize("ids", [[-1], [15360]])
def test_id_out_of_range(ids):
    with pytest.raises(DataError, match="expected 0 to 15359"):
        FiniteScalarQuantizer(CODE_LEVELS).codes(torch.tensor(ids).reshape(1, 1, 1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite(value):
    latents = torch.zeros(1, 5, 2, 2)
    latents[0, 3, 1, 0] = value
    with pytest.raises(DataError, match="Fill them"):
        FiniteScalarQuantizer(CODE_LEVELS)(latents)


@pytest.mark.parametrize("numbers", [[], [8, 1]])
def test_impossible_levels(numbers):
    with pytest.raises(ConfigError, match="at least 2"):
        FiniteScalarQuantizer(numbers)
