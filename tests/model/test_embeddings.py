"""Patches and their position embeddings."""

import copy

import pytest
import torch

from terramind_plugin.model import embeddings
from terramind_plugin.model.embeddings import ImageEmbedding, resize_positions, sincos_positions


@pytest.fixture
def embedding():
    return ImageEmbedding(channels=2, dim=32, patch_size=16, img_size=(64, 64))


@pytest.fixture
def calls(monkeypatch):
    """Return a list that grows with each interpolation."""
    sizes = []

    def counted(positions, grid, size):
        sizes.append(size)
        return resize_positions(positions, grid, size)

    monkeypatch.setattr(embeddings, "resize_positions", counted)
    return sizes


def test_rows_before_columns():
    table = sincos_positions(3, 5, 16).reshape(3, 5, 16)
    assert torch.equal(table[1, 0, :8], table[1, 4, :8])
    assert torch.equal(table[0, 2, 8:], table[2, 2, 8:])
    assert not torch.equal(table[0, 0, :8], table[1, 0, :8])
    assert not torch.equal(table[0, 0, 8:], table[0, 1, 8:])


def test_positions_differ():
    table = sincos_positions(14, 10, 192)[0]
    assert torch.cdist(table, table).fill_diagonal_(1).min() > 0.1


def test_resizing_to_the_same_grid_changes_nothing():
    table = sincos_positions(4, 6, 16)
    assert torch.allclose(resize_positions(table, (4, 6), (4, 6)), table, atol=1e-6)


def test_resizing_a_table_that_is_not_square():
    table = sincos_positions(4, 8, 16)
    wide = resize_positions(table, (4, 8), (4, 16)).reshape(4, 16, 16)
    # Rows stay what they are when only columns are added.
    assert torch.allclose(wide[..., :8], table.reshape(4, 8, 16)[:, :1, :8].expand(4, 16, 8), atol=1e-5)


def test_patch_order():
    embedding = ImageEmbedding(channels=1, dim=4, patch_size=16, img_size=(32, 48))
    torch.nn.init.ones_(embedding.proj.weight)
    embedding.pos_emb.zero_()
    image = torch.zeros(1, 1, 32, 48)
    image[..., 16:32, 32:48] = 1
    assert embedding(image)[0, :, 0].tolist() == [0, 0, 0, 0, 0, 256]


def test_interpolated_once_a_size(embedding, calls):
    for size in [(6, 6), (6, 6), (2, 8), (6, 6), (4, 4)]:
        embedding.positions(size)
    assert calls == [(6, 6), (2, 8)]


def test_the_cache_is_bounded(embedding, calls):
    for columns in range(5, 5 + 3 * embeddings.CACHED_SIZES):
        embedding.positions((4, columns))
        assert len(embedding._resized) <= embeddings.CACHED_SIZES


def test_right_after_loading(embedding):
    embedding.positions((6, 6))
    state = embedding.state_dict()
    state["pos_emb"] = state["pos_emb"] + 1
    embedding.load_state_dict(state)
    assert torch.equal(embedding.positions((6, 6)), resize_positions(state["pos_emb"], (4, 4), (6, 6)))


def test_right_after_loading_into_the_parent(embedding):
    parent = torch.nn.Sequential(embedding)
    embedding.positions((6, 6))
    parent.load_state_dict({name: value + 1 for name, value in parent.state_dict().items()}, assign=True)
    assert torch.equal(embedding.positions((6, 6)), resize_positions(embedding.pos_emb, (4, 4), (6, 6)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_right_after_a_change_of_type(embedding, dtype):
    embedding.positions((6, 6))
    embedding.to(dtype)
    got = embedding.positions((6, 6))
    assert got.dtype == dtype
    assert torch.equal(got, resize_positions(embedding.pos_emb, (4, 4), (6, 6)))


def test_copies_do_not_share(embedding):
    embedding.positions((6, 6))
    twin = copy.deepcopy(embedding)
    twin.load_state_dict({name: value * 2 for name, value in twin.state_dict().items()})
    assert torch.equal(embedding.positions((6, 6)), resize_positions(embedding.pos_emb, (4, 4), (6, 6)))
    assert torch.equal(twin.positions((6, 6)), resize_positions(twin.pos_emb, (4, 4), (6, 6)))


def test_training_after_inference_mode(embedding, calls):
    image = torch.randn(1, 2, 96, 96)
    with torch.inference_mode():
        before = embedding(image)
    after = embedding(image)
    after.sum().backward()
    assert torch.equal(before, after)
    assert embedding.mod_emb.grad is not None
    assert calls == [(6, 6)]
    assert not embedding.positions((6, 6)).is_inference()


def test_the_cache_is_no_weight(embedding):
    embedding.positions((6, 6))
    assert set(embedding.state_dict()) == {"pos_emb", "mod_emb", "proj.weight"}
