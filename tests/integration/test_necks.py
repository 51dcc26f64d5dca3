"""The token pyramid."""

import pytest
import torch

from terramind_plugin.backbones.layer_list import LayerList
from terramind_plugin.errors import ConfigError
from terramind_plugin.integration import necks
from terramind_plugin.integration.necks import TokenPyramid

WIDTHS = [32] * 12
CHOSEN = [2, 5, 8, 11]


@pytest.fixture(scope="module")
def chain(backbones):
    """Return TerraTorch's three necks as one."""
    from terratorch.models.necks import NeckSequential, build_neck_list

    def make(indices=CHOSEN):
        necks, channels = build_neck_list(
            [
                {"name": "SelectIndices", "indices": indices},
                {"name": "ReshapeTokensToImage", "remove_cls_token": False},
                {"name": "LearnedInterpolateToPyramidal"},
            ],
            WIDTHS,
        )
        return NeckSequential(*necks), channels

    return make


def tokens(count, layers=12, batch=2):
    return [torch.randn(batch, count, 32) for _ in range(layers)]


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (160, 32)])
@pytest.mark.parametrize("training", [False, True])
def test_like_terratorchs_chain(chain, size, training):
    theirs, channels = chain()
    ours = TokenPyramid(WIDTHS)
    ours.load_state_dict(theirs[2].state_dict(), strict=True)
    features = tokens(size[0] * size[1] // 256)
    with torch.inference_mode(not training):
        got = ours.train(training)(features, image_size=size)
        want = theirs.train(training)(features, image_size=size)
    assert ours.process_channel_list(WIDTHS) == channels
    for one, other, stride in zip(got, want, (4, 8, 16, 32), strict=True):
        if training:  # on some CPUs from another layout in memory
            torch.testing.assert_close(one, other)
        else:
            assert torch.equal(one, other)
        assert one.shape[-2:] == (size[0] // stride, size[1] // stride)


def test_square_without_a_size():
    assert [x.shape[-1] for x in TokenPyramid(WIDTHS)(tokens(16))] == [16, 8, 4, 2]


@pytest.mark.parametrize(("depth", "expected"), [(12, [2, 5, 8, 11]), (24, [5, 11, 17, 23]), (4, [0, 1, 2, 3])])
def test_default_layers(depth, expected):
    assert TokenPyramid([32] * depth).positions == expected


def test_layers_by_number_or_from_the_end():
    assert TokenPyramid(WIDTHS, [0, 1, -2, -1]).positions == [0, 1, 10, 11]


def test_layers_that_the_backbone_selected():
    widths = LayerList([32] * 4, CHOSEN, positions=True)
    features = tokens(16, 4)
    for indices in (None, CHOSEN, [-4, -3, -2, -1]):
        neck = TokenPyramid(widths, indices)
        assert neck.positions == [0, 1, 2, 3]
        torch.nn.init.ones_(neck.fpn1[0].weight)
        # TerraTorch's TemporalWrapper makes a plain list of the backbone's.
        for given in (features, LayerList(features, CHOSEN)):
            assert torch.equal(neck.eval()(given)[2].flatten(2).transpose(1, 2), features[2])


@pytest.mark.parametrize("indices", [[2, 5, 8], [2, 5, 8, 12], [2, 5, 8, -13], [0, 1, 2, 3, 4]])
def test_wrong_layers(indices):
    with pytest.raises(ConfigError, match=r"needs four layers out of \[0, 1, 2.*got indices"):
        TokenPyramid(WIDTHS, indices)


def test_layers_that_the_backbone_left_out():
    with pytest.raises(ConfigError, match=r"out of \[2, 5, 8, 11\], got indices \[0, 5, 8, 11\]"):
        TokenPyramid(LayerList([32] * 4, CHOSEN, positions=True), [0, 5, 8, 11])


def test_too_few_layers():
    with pytest.raises(ConfigError, match="at least four layers, the backbone gives 3"):
        TokenPyramid([32] * 3)


@pytest.mark.parametrize("size", [None, (64, 64), (96, 64)])
def test_tokens_that_form_no_grid(size):
    with pytest.raises(ConfigError, match=r"got 32 tokens.*merge_method mean, max or concat"):
        TokenPyramid(WIDTHS)(tokens(32), image_size=size)


def test_layers_by_modality():
    features = [{"S2L2A": x} for x in tokens(16)]
    with pytest.raises(ConfigError, match=r"got dict. Use merge_method mean, max or concat"):
        TokenPyramid(WIDTHS)(features)


def test_time_series_that_was_not_pooled():
    with pytest.raises(ConfigError, match=r"got Tensor\[2, 3, 16, 32\].*temporal_pooling"):
        TokenPyramid(WIDTHS)([torch.randn(2, 3, 16, 32)] * 12)


def test_registered(backbones):
    from terratorch.registry import NECK_REGISTRY

    assert type(NECK_REGISTRY.build("terramind_pyramid", WIDTHS)) is TokenPyramid


def test_gradients_reach_all_layers():
    features = [x.requires_grad_() for x in tokens(16)]
    sum(x.sum() for x in TokenPyramid(WIDTHS)(features)).backward()
    assert [i for i, x in enumerate(features) if x.grad is not None] == CHOSEN


@pytest.mark.parametrize("planes", [True, False])
def test_layout_in_memory_has_no_say(planes, monkeypatch):
    """Training takes whole planes where that is faster, inference never; the numbers are the same."""
    neck = TokenPyramid(WIDTHS).eval()
    features = tokens(16)
    with torch.inference_mode():
        expected = neck(features)
    assert expected[2].is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(necks, "TRAINS_ON_PLANES", planes)
    got = neck(features)
    assert got[2].is_contiguous() == planes
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)
