"""A UNet decoder that upsamples and convolves at once, beside TerraTorch's own."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from terratorch.models.decoders import UNetDecoder
from terratorch.registry import DECODER_REGISTRY
from torch.nn import functional as F

from terramind_plugin.integration.decoders import UpsamplingBlock, upsample_at_once, upsampling_kernel
from terramind_plugin.integration.registry import UnknownNameError

WIDTHS, CHANNELS = [16, 18, 20, 22], [24, 20, 18, 16]  # attention takes a sixteenth


@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31)
)
def test_the_kernel_repeats_pixels_and_convolves(batch, into, out, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, into, height, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(out, into, 3, 3, generator=generator, dtype=torch.float64)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), weight, padding=1)
    made = F.conv_transpose2d(x, upsampling_kernel(weight), stride=2, padding=1)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)


def pair(**more):
    """Return TerraTorch's decoder and ours, with the same weights."""
    theirs = UNetDecoder(WIDTHS, CHANNELS, **more)
    with torch.no_grad():
        for value in theirs.state_dict().values():
            value.copy_(torch.rand_like(value.float()) + 0.1)
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter))
    ours = DECODER_REGISTRY.build("terramind_unet", WIDTHS, CHANNELS, **more)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def assert_near(made, expected, tolerance=1e-5):
    """Assert that nothing differs by more than a share of the largest number."""
    assert (made - expected).abs().max() < tolerance * max(1, expected.abs().max())


def maps(dtype=torch.float32, coarsest=(3, 2)):
    sides = [[side * 2**level for side in coarsest] for level in (3, 2, 1, 0)]
    return [torch.randn(2, width, *side, dtype=dtype) for width, side in zip(WIDTHS, sides, strict=True)]


@pytest.mark.parametrize("norm", ["batchnorm", "identity"])
def test_it_computes_what_terratorch_computes(norm):
    theirs, ours = (model.eval() for model in pair(use_batchnorm=norm))
    with torch.no_grad():
        x = maps()
        assert_near(ours(x), theirs(x))
        x = maps(torch.float64)
        assert_near(ours.double()(x), theirs.double()(x), 1e-9)


def test_in_bf16_it_is_as_close_as_terratorch_s():
    theirs, ours = (model.eval() for model in pair())
    x = maps()
    with torch.no_grad():
        exact = theirs(x)
        with torch.autocast("cpu", torch.bfloat16):
            errors = [(model(x).float() - exact).norm() / exact.norm() for model in (theirs, ours)]
    assert 0 < errors[1] < 1.5 * errors[0] < 0.1


def test_it_learns_as_terratorch_s():
    theirs, ours = (model.double().train() for model in pair())
    x = maps(torch.float64)
    gradients = []
    for model in (theirs, ours):
        inputs = [level.clone().requires_grad_() for level in x]
        out = model(inputs)
        (out * torch.linspace(-1, 1, out.shape[-1], dtype=torch.float64)).sum().backward()
        gradients.append([*(level.grad for level in inputs), *(parameter.grad for parameter in model.parameters())])
    for expected, made in zip(*gradients, strict=True):
        assert_near(made, expected, 1e-9)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("more", [{"attention_type": "scse"}, {}])
def test_what_is_not_twofold_or_attends_takes_the_usual_way(more):
    theirs, ours = (model.eval() for model in pair(**more))
    x = maps()
    if not more:
        x[3] = x[3][..., :1, :]  # as from an image whose height is not a multiple of 32
    with torch.no_grad():
        assert_near(ours(x), theirs(x))


@pytest.mark.parametrize("trains", [True, False])
def test_new_weights_are_noticed(trains):
    theirs, ours = (model.eval().requires_grad_(trains) for model in pair())
    x, state = maps(), pair()[0].state_dict()
    weight = theirs.decoder.blocks[0].conv1[0].weight.detach().clone()
    with torch.no_grad():
        ours(x)
        before = theirs(x)
        changes = [
            lambda model: model.load_state_dict(state),
            lambda model: model.decoder.blocks[1].conv1[0].weight.mul_(2),
        ]
        if trains:  # as callbacks do that average weights
            changes.append(lambda model: model.decoder.blocks[0].conv1[0].weight.data.copy_(3 * weight))
        for change in changes:
            for model in (theirs, ours):
                change(model)
            assert_near(ours(x), theirs(x))
            assert not torch.equal(theirs(x), before)


def test_copies_have_kernels_of_their_own():
    ours = pair()[1].requires_grad_(False)
    x = maps()
    with torch.no_grad():
        expected = ours.eval()(x)
        assert all(block._kernel is not None for block in ours.decoder.blocks[:-1])  # the last enlarges nothing
        for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert all(block._kernel is None for block in copied.decoder.blocks)
            torch.testing.assert_close(copied(x), expected)


def test_only_blocks_of_the_library_change():
    class Own(UnetDecoderBlock):
        pass

    model = torch.nn.ModuleList([UnetDecoderBlock(2, 2, 2), Own(2, 2, 2)])
    names = list(model.state_dict())
    assert upsample_at_once(model) is model
    assert [type(block) for block in model] == [UpsamplingBlock, Own]
    assert list(model.state_dict()) == names


def test_a_wrong_name_is_named():
    with pytest.raises(UnknownNameError, match=r"Unknown name 'terramind_une'. Did you mean 'terramind_unet'"):
        DECODER_REGISTRY.find_class("terramind_une")
