"""Random numbers of a scene belong to its places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terramind_plugin.inference import noise as scene_noise
from terramind_plugin.inference.noise import SceneNoise


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=2, max_size=4), st.integers(0, 9))
def test_windows_agree_where_they_overlap(corners: list[tuple[int, int]], seed: int) -> None:
    corners = [(row * 16, column * 16) for row, column in corners]
    noise = SceneNoise(seed, corners, (160, 96), 16)
    alone = SceneNoise(seed, corners[1:2], (160, 96), 16)
    order, uniform, normal = noise.order(60), noise.uniform(60, 3), noise.normal(2, 160, 96)
    assert torch.equal(order.sort(dim=1).values, torch.arange(60).expand(len(corners), -1))
    assert torch.equal(order[1:2], alone.order(60))
    assert torch.equal(uniform[1:2], alone.uniform(60, 3))
    assert torch.equal(normal[1:2], alone.normal(2, 160, 96))
    by_place = torch.empty_like(uniform).scatter_(1, order[..., None].expand_as(uniform), uniform).view(-1, 10, 6, 3)
    (top, left), (other_top, other_left) = corners[:2]
    down, across = other_top - top, other_left - left
    if 0 <= down < 160 and 0 <= across < 96:
        assert torch.equal(normal[0, :, down:, across:], normal[1, :, : 160 - down, : 96 - across])
        rows, columns = down // 16, across // 16
        assert torch.equal(by_place[0, rows:, columns:], by_place[1, : 10 - rows, : 6 - columns])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 20), st.integers(0, 20), st.sampled_from([(33, 24), (16, 17), (8, 8)]))
def test_windows_agree_at_odd_corners(row: int, column: int, size: tuple[int, int]) -> None:
    scene = SceneNoise(3, [(0, 0)], (60, 60), 1).normal(2, 60, 60)
    window = SceneNoise(3, [(row, column), (1, 2)], size, 1).normal(2, *size)
    assert torch.equal(window[0], scene[0, :, row : row + size[0], column : column + size[1]])
    assert torch.equal(window[1], scene[0, :, 1 : 1 + size[0], 2 : 2 + size[1]])


def test_numbers_are_what_they_should_be() -> None:
    noise = SceneNoise(0, [(0, 0)], (512, 512), 16)
    normal, uniform = noise.normal(3, 512, 512), noise.uniform(1024, 4)
    moments = [float((normal.double() ** power).mean()) for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.03)
    assert 4.4 < normal.abs().max() < 6.3
    assert 0 <= uniform.min() < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.02
    assert not torch.equal(normal, noise.normal(3, 512, 512))
    assert not torch.equal(normal, SceneNoise(1, [(0, 0)], (512, 512), 16).normal(3, 512, 512))


def test_neighbours_draws_and_seeds_are_independent() -> None:
    noise = SceneNoise(0, [(0, 0)], (512, 512), 16)
    one, next_draw = noise.normal(2, 512, 512)[0].double(), noise.normal(2, 512, 512)[0].double()
    other_seed = SceneNoise(1, [(0, 0)], (512, 512), 16).normal(2, 512, 512)[0].double()
    pairs = [(one, next_draw), (one, other_seed), (one[0], one[1])]
    pairs += [(one[:, row:, column:], one[:, : 512 - row, : 512 - column]) for row, column in
              [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (16, 0), (0, 16), (256, 0), (0, 256)]]  # fmt: skip
    for first, second in pairs:
        for power in (1, 2):  # squares: numbers may be uncorrelated and still depend on one another
            x, y = first**power, second**power
            assert abs(np.corrcoef(x.flatten(), y.flatten())[0, 1]) * x.numel() ** 0.5 < 4.5


def test_pieces_and_batches_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    corners = [(0, 0), (7, 5), (40, 12)]
    usual = SceneNoise(5, corners, (48, 48), 16).normal(5, 48, 48)
    monkeypatch.setattr(scene_noise, "AT_ONCE", 1)  # one channel at once
    assert torch.equal(SceneNoise(5, corners, (48, 48), 16).normal(5, 48, 48), usual)
    keys = torch.tensor([3, -9])
    together = scene_noise._normal(scene_noise._hash(keys, corners, 48, 48))  # as on a GPU
    for corner, window in zip(corners, together, strict=True):
        assert torch.equal(scene_noise._normal(scene_noise._hash(keys, [corner], 48, 48))[0], window)


def test_numbers_are_the_same_on_every_machine() -> None:
    """The hash beside Python's exact integers, and the table beside the distribution function."""
    word, mask = 0x0123456789ABCDEF, 2**64 - 1
    bits = scene_noise._hash(torch.tensor([word]), [(3, 4)], 2, 6)
    for row in range(2):
        for pair in range(3):
            state = ((((3 + row) << 32) + 2 + pair) * 0x9E3779B97F4A7C15 + word) & mask
            state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
            state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
            state ^= state >> 31
            got = [int(one) & (2**32 - 1) for one in bits[0, 0, row, 2 * pair : 2 * pair + 2]]
            assert got == [state & (2**32 - 1), state >> 32]
    words = torch.tensor([0x00000001, 0x00123456, 0x40000000, 0x7FFFFFFF, -0x7FFFFFFF, -1], dtype=torch.int32)
    tails = torch.tensor([(int(one) & 0x7FFFFFFF) | 1 for one in words], dtype=torch.float64) * 2.0**-32
    expected = -torch.special.ndtri(tails) * torch.tensor([1, 1, 1, 1, -1, -1])
    assert torch.allclose(scene_noise._normal(words).double(), expected, atol=2e-6)
    assert scene_noise._uniform(words).tolist()[-1] == 1 - 2**-24
