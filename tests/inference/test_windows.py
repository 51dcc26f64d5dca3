"""Windows over images of any size."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terramind_plugin.errors import ConfigError
from terramind_plugin.inference.windows import Plan, plan_axis, plan_windows


@st.composite
def axes(draw: Any) -> dict[str, int]:
    multiple = draw(st.sampled_from([1, 8, 16]))
    align = draw(st.sampled_from([1, multiple]))
    crop = multiple * draw(st.integers(1, max(1, 96 // multiple)))
    margin = draw(st.integers(0, (crop - align) // 2))
    stride = align * draw(st.integers(1, max(1, (crop - 2 * margin) // align)))
    length = draw(st.integers(1, 600))
    return {
        "length": length,
        "crop": crop,
        "stride": stride,
        "margin": margin,
        "multiple": multiple,
        "align": align,
    }


@settings(deadline=None)
@given(axes())
def test_weights_sum_to_one_everywhere(numbers: dict[str, int]) -> None:
    axis = plan_axis(**numbers)
    total = np.zeros(axis.length)
    for index, start in enumerate(axis.starts):
        first, last = axis.used(index)
        weights = axis.weights(index)
        assert 0 <= first < last <= axis.length
        assert start <= first
        assert last <= start + axis.size
        assert weights.shape == (last - first,)
        assert (weights > 0).all()
        total[first:last] += weights
    np.testing.assert_allclose(total, 1, atol=1e-5)


@settings(deadline=None)
@given(axes())
def test_where_windows_lie(numbers: dict[str, int]) -> None:
    axis = plan_axis(**numbers)
    steps = np.diff(axis.starts)
    assert axis.starts[0] == 0
    assert ((steps > 0) & (steps <= numbers["stride"])).all()
    assert all(start % numbers["align"] == 0 for start in axis.starts)
    assert axis.size % numbers["multiple"] == 0
    assert axis.size <= numbers["crop"]
    end = axis.starts[-1] + axis.size
    assert axis.length <= end < axis.length + max(numbers["align"], numbers["multiple"])
    for index in range(1, len(axis.starts)):
        assert axis.used(index)[0] == axis.starts[index] + numbers["margin"]
        assert axis.used(index - 1)[1] <= axis.starts[index - 1] + axis.size - numbers["margin"]


@settings(deadline=None, max_examples=50)
@given(axes(), axes(), st.integers(1, 40))
def test_bands_finish_each_row_once_and_never_too_early(
    rows: dict[str, int], columns: dict[str, int], batch_size: int
) -> None:
    plan = Plan(plan_axis(**rows), plan_axis(**columns))
    bands = plan.blocks(batch_size)
    assert [row for band in bands for row in band.rows] == list(range(len(plan.rows.starts)))
    assert [band.first for band in bands] == [0, *(band.last for band in bands[:-1])]
    assert bands[-1].last == plan.rows.length
    assert sum(len(list(plan.windows(band))) for band in bands) == len(plan)
    for band, later in pairwise(bands):
        assert band.first < band.last
        assert all(plan.rows.used(row)[0] >= band.last for row in range(later.rows.start, len(plan.rows.starts)))
        assert plan.reach(band) >= band.last


def test_a_common_case() -> None:
    plan = plan_windows(500, 100, 224, 192, 8, multiple=16, align=16)
    assert plan.rows.starts == (0, 192, 288)  # 276 would end with the image but is not a multiple of 16
    assert plan.columns.starts == (0,)
    assert plan.window == (224, 112)
    assert [plan.rows.used(i) for i in range(3)] == [(0, 216), (200, 408), (296, 500)]
    assert plan.blocks(1)[1] == (range(1, 2), 200, 296)
    assert len(plan.blocks(8)) == 1


@pytest.mark.parametrize(
    ("across", "batch_size", "together"),
    [(12, 8, 2), (47, 8, 1), (3, 8, 2), (3, 10, 3), (4, 9, 2), (1, 1, 1), (9, 2, 2)],
)
def test_bands_fill_their_batches(across: int, batch_size: int, together: int) -> None:
    plan = plan_windows(300, 10 * across, 10, 10)
    assert len(plan.blocks(batch_size)[0].rows) == together


def test_without_overlap_each_window_counts_fully() -> None:
    axis = plan_axis(30, 10, 10)
    assert axis.starts == (0, 10, 20)
    assert all((axis.weights(i) == 1).all() for i in range(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 0}, "at least one pixel"),
        ({"crop": 20, "multiple": 16}, "crop must be a positive multiple of 16, got 20"),
        ({"margin": 16}, "less than half of crop 32, got 16"),
        (
            {"margin": 4, "stride": 25},
            r"stride must be from 1 to 24 \(crop 32 without margin 4 on both sides\), got 25",
        ),
        ({"stride": 0}, "got 0"),
        ({"stride": 24, "align": 16}, "in steps of 16"),
    ],
)
def test_numbers_that_do_not_fit(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_axis(**{"length": 100, "crop": 32, "stride": 16, **change})
