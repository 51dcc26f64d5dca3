"""Random numbers of a scene belong to its places."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


def test_numbers_are_what_they_should_be() -> None:
    noise = SceneNoise(0, [(0, 0)], (512, 512), 16)
    normal, uniform = noise.normal(3, 512, 512), noise.uniform(1024, 4)
    assert abs(normal.mean()) < 0.01
    assert abs(normal.std() - 1) < 0.01
    assert 0 <= uniform.min() < uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.02
    assert not torch.equal(normal, noise.normal(3, 512, 512))
    assert not torch.equal(normal, SceneNoise(1, [(0, 0)], (512, 512), 16).normal(3, 512, 512))
