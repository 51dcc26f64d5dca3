"""Overlaps and their measures against sets of pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

from terramind_plugin.evaluate import overlap as overlaps


@settings(deadline=None)
@given(arrays.arrays(bool, (3, 40)))
def test_overlap(masks):
    predicted, true, known = masks
    there, wanted, counted = ({*np.flatnonzero(mask)} for mask in masks)
    overlap = overlaps.count_overlap(predicted, true, known)
    found, sought = there & counted, wanted & counted
    assert overlap == (len(found & sought), len(found - sought), len(sought - found))
    for measure, whole in (
        (overlaps.intersection_over_union, found | sought),
        (overlaps.precision, found),
        (overlaps.recall, sought),
    ):
        value = float(measure(overlap))
        assert np.isnan(value) if not whole else value == pytest.approx(len(found & sought) / len(whole))
