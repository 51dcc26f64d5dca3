"""Images that are not square: height before width everywhere."""

import pytest
import torch

from terramind_plugin.builders import build_backbone, build_tim
from terramind_plugin.errors import ConfigError
from terramind_plugin.model.embeddings import resize_positions, sincos_positions

PAIR = ("S2L2A", "S1GRD")


@pytest.fixture
def bright(image):
    """Return an image [1, 12, 64, 96] and the same with one other patch, in row 1, column 4."""
    plain = image("S2L2A", 1, 64, 96) * 0.1
    changed = plain.clone()
    changed[..., 16:32, 64:80] += 3
    return plain, changed


def changed_token(one, other):
    """Return row and column where two maps [1, D, rows, columns] differ most."""
    difference = (one - other).square().sum(dim=1)[0]
    return divmod(int(difference.argmax()), difference.shape[1])


def test_token_grid(tiny, bright):
    one, other = (tiny(["S2L2A"])(image)[0] for image in bright)
    grids = [x.transpose(1, 2).unflatten(2, (4, 6)) for x in (one, other)]
    assert changed_token(*grids) == (1, 4)


def test_reshape_tokens_to_image(backbones, tiny, bright):
    from terratorch.models.necks import ReshapeTokensToImage

    neck = ReshapeTokensToImage([192], remove_cls_token=False)
    grids = [neck([tiny(["S2L2A"])(image)[0]], image_size=(64, 96))[0] for image in bright]
    assert grids[0].shape == (1, 192, 4, 6)
    assert changed_token(*grids) == (1, 4)


def test_token_pyramid(tiny, bright):
    from terramind_plugin.integration.necks import TokenPyramid

    neck = TokenPyramid([192] * 12, [0, 0, 0, 0]).eval()
    levels = [neck(tiny(["S2L2A"])(image), image_size=(64, 96)) for image in bright]
    assert levels[0][2].shape == (1, 192, 4, 6)
    assert changed_token(levels[0][2], levels[1][2]) == (1, 4)
    row, column = changed_token(levels[0][0], levels[1][0])
    assert (row // 4, column // 4) == (1, 4)


def test_made_for_a_size_that_is_not_square(tiny, image):
    model = tiny(["S2L2A"], img_size=(64, 96))
    embedding = next(iter(model.encoder_embeddings.values()))
    assert torch.equal(embedding.pos_emb, sincos_positions(4, 6, 192))
    assert model(image("S2L2A", 1, 64, 96))[-1].shape == (1, 24, 192)
    assert torch.equal(embedding.positions((8, 6)), resize_positions(embedding.pos_emb, (4, 6), (8, 6)))


def test_rows_and_columns_are_not_exchanged(tiny, image):
    """A stripe along a row and one along a column give different features in a model, but alike token by token."""
    model = tiny(["S2L2A"], depth=2)
    x = image("S2L2A", 1, 64, 96)
    wide, high = model(x)[-1], model(x.transpose(2, 3))[-1]
    assert wide.shape == high.shape
    assert not torch.allclose(wide, high.unflatten(1, (6, 4)).transpose(1, 2).flatten(1, 2), atol=1e-2)


@pytest.mark.parametrize("size", [(16, 16), (16, 224), (240, 16)])
def test_small_and_narrow(tiny, images, size):
    out = tiny(PAIR, depth=2)(images(PAIR, 1, *size))[-1]
    assert out.shape == (1, size[0] * size[1] // 256, 192)
    assert out.isfinite().all()


def test_several_sizes_in_turn(tiny, image):
    model = tiny(["S2L2A"], depth=2)
    first = model(image("S2L2A", 1, 64, 96))[-1]
    model(image("S2L2A", 1, 96, 64))
    assert torch.equal(model(image("S2L2A", 1, 64, 96))[-1], first)


@pytest.mark.parametrize("size", [0, 8, (64, 100), (100, 64)])
def test_impossible_size(tiny, size):
    with pytest.raises(ConfigError, match="img_size must be a multiple of 16"):
        tiny(["S2L2A"], img_size=size)


@pytest.mark.parametrize("kind", [build_backbone, build_tim])
def test_the_small_model_says_once_that_images_are_larger_than_its_own(kind, caplog):
    model = kind("terramind_sim_nano", ["S1GRD"], pretrained=True).eval()
    with torch.no_grad():
        model(torch.zeros(1, 2, 64, 64))
        assert not caplog.records
        model({"S1GRD": torch.zeros(1, 2, 128, 64)})
        model({"S1GRD": torch.zeros(1, 2, 128, 64)})
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("terramind_sim_nano was trained on images of 64 x 64 pixels and gets 128 x 64")
    assert "to 64 pixels. In commands leave out --crop" in message
