"""Scores against computations of another kind."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terramind_plugin.evaluate import scores

places = st.tuples(st.floats(-180, 180), st.floats(-90, 90))


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 50)] * 3), min_size=1, max_size=12))
def test_intervals_over_chips(counts):
    made = scores.score_overlaps(counts)
    hits, false, missed = (sum(column) for column in zip(*counts, strict=True))
    if not hits + false + missed:
        assert np.isnan(made.value)
        return
    assert made.value == pytest.approx(hits / (hits + false + missed))
    assert 0 <= made.interval[0] <= made.interval[1] <= 1
    if len(counts) == 1:
        assert made.interval == pytest.approx((made.value, made.value))


def test_the_interval_is_that_of_drawing_chips_one_by_one():
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 100, (25, 3))
    made = scores.score_overlaps(counts)
    drawn = []
    for _ in range(4000):
        hits, false, missed = sum(counts[rng.integers(25)] for _ in range(25))
        drawn.append(hits / (hits + false + missed))
    assert made.interval == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.01)
    assert scores.score_overlaps(counts) == made


@settings(deadline=None)
@given(places, places)
def test_great_circles(first, second):
    def point(place):
        east, north = np.deg2rad(place)
        return np.array([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)])

    one, other = point(first), point(second)
    angle = np.arctan2(np.linalg.norm(np.cross(one, other)), one @ other)
    assert float(scores.great_circle(first, second)) == pytest.approx(angle * 6371.0088, abs=0.01)
    assert float(scores.great_circle(first, (second[0] + 360, second[1]))) == pytest.approx(angle * 6371.0088, abs=0.01)


def test_other_intervals():
    assert scores.score_median([3.0]) == scores.Score(3.0, (3.0, 3.0))
    assert scores.score_median([1.0, 2.0, 9.0]).value == 2
    made = scores.score_mean([0.0, 1.0] * 50)
    assert made.value == 0.5
    assert made.interval == pytest.approx((0.4015, 0.5985), abs=1e-3)
