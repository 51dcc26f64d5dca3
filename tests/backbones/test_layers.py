"""Selected layers, copies and files of the model."""

import copy
import pickle
from io import BytesIO

import pytest
import torch
from torch.utils import _pytree as pytree

from terramind_plugin.backbones.layer_list import LayerList

PAIR = ("S2L2A", "S1GRD")
CHOSEN = [2, 5, 8, 11]


@pytest.fixture
def layers():
    return LayerList(["third", "sixth", "ninth", "last"], CHOSEN)


@pytest.fixture
def widths(tiny):
    return tiny(PAIR, out_indices=CHOSEN).out_channels


def test_index_is_the_number_of_the_layer(layers):
    assert [layers[i] for i in CHOSEN] == ["third", "sixth", "ninth", "last"]
    assert layers[-1] == "last"
    assert layers[-4] == "third"


def test_iteration_is_by_position(layers):
    assert list(layers) == layers[:] == ["third", "sixth", "ninth", "last"]


def test_layer_that_was_not_kept(layers):
    with pytest.raises(IndexError, match=r"Layer 3 was not kept. out_indices kept \[2, 5, 8, 11\]"):
        layers[3]


def test_a_single_layer_is_the_first():
    assert LayerList(["last"], [11])[0] == "last"


def test_widths_by_layer_or_position(widths):
    assert [widths[i] for i in range(4)] == [widths[i] for i in CHOSEN] == [192] * 4


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "method": lambda x: x.copy(),
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "pytree": lambda x: pytree.tree_map(lambda leaf: leaf, x),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_index_the_same(widths, layers, name):
    for original in (widths, layers):
        twin = COPIES[name](original)
        assert twin is not original
        assert type(twin) is LayerList
        assert (list(twin), twin.layers, twin.positions) == (list(original), original.layers, original.positions)
        assert twin[8] == original[8]


def test_selected_layers_are_those_of_the_full_list(tiny, images):
    x = images(PAIR)
    everything, chosen = tiny(PAIR)(x), tiny(PAIR, out_indices=CHOSEN)(x)
    assert len(everything) == 12
    assert len(chosen) == 4
    for index in CHOSEN:
        assert torch.equal(chosen[index], everything[index])


def test_negative_layers(tiny):
    assert tiny(PAIR, out_indices=[-4, -1]).layers == (8, 11)


def test_all_layers_are_a_plain_list(tiny, images):
    model = tiny(PAIR, depth=2)
    assert type(model(images(PAIR))) is list
    assert type(model.out_channels) is list


@pytest.mark.parametrize(("method", "width"), [("mean", 192), ("max", 192), ("concat", 384), ("dict", 192)])
def test_out_channels(tiny, images, method, width):
    model = tiny(PAIR, depth=3, merge_method=method)
    assert model.out_channels == [width] * 3
    if method != "dict":
        assert model(images(PAIR))[0].shape[-1] == width


def save(model):
    file = BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), save])
def test_copies_of_the_model(tiny, images, duplicate):
    model = tiny(PAIR, depth=4, out_indices=[1, 3], merge_method="concat")
    x = images(PAIR, 2, 96, 64)
    want = model(x)
    twin = duplicate(model)
    got = twin(x)
    assert torch.equal(got[3], want[3])
    assert twin.out_channels.layers == (1, 3)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(model(x)[3], want[3])


def test_state_dict(tiny, images):
    model, other = tiny(PAIR, depth=2, seed=1), tiny(PAIR, depth=2, seed=2)
    x = images(PAIR)
    assert not torch.equal(model(x)[-1], other(x)[-1])
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x)[-1], other(x)[-1])


def test_other_type_and_size_after_each_other(tiny, images):
    model = tiny(PAIR, depth=2)
    single = model(images(PAIR, 1, 96, 96))[-1]
    double = model.double()({name: image.double() for name, image in images(PAIR, 1, 96, 96).items()})[-1]
    assert torch.allclose(double.float(), single, atol=1e-5)


def test_training_after_validation_in_inference_mode(tiny, images):
    model = tiny(PAIR, depth=2)
    x = images(PAIR, 1, 96, 96)
    with torch.inference_mode():
        want = model(x)[-1]
    got = model.train()(x)[-1]
    got.sum().backward()
    assert torch.equal(got, want)


@pytest.mark.parametrize("index", [2, -1, 0])
def test_the_only_layer_by_number_and_by_position(tiny, images, index):
    model = tiny(PAIR, depth=3, out_indices=[2]).eval()
    features = model(images(PAIR))
    assert features[index] is next(iter(features))
    assert model.out_channels[index] == 192
    with pytest.raises(IndexError, match=r"Layer 1 was not kept\. out_indices kept \[2\]"):
        features[1]
