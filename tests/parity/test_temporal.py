"""Time series behind TerraTorch's wrapper, compared with TerraTorch's own TerraMind under the same weights."""

from functools import cache

import pytest
import torch
from terratorch.models.utils import TemporalWrapper

PAIR = ("S2L2A", "S1GRD")
DATES = {"mean": 3, "max": 3, "concat": 3, "keep": 3, "diff": 2}


@pytest.fixture(scope="module")
def wrapped(pair):
    """Return TerraTorch's backbone and ours, each behind the wrapper."""

    @cache
    def encoders(modalities, merge):
        return pair("tiny", modalities, dtype=torch.float64, merge_method=merge)

    def make(pooling, modalities=PAIR, merge="mean", **series):
        return [TemporalWrapper(one, pooling=pooling, **series).eval() for one in encoders(tuple(modalities), merge)]

    return make


def _series(images, names, dates, size=16):
    shots = [images(names, 2, size, size, seed=date, dtype=torch.float64) for date in range(dates)]
    return {name: torch.stack([shot[name] for shot in shots], dim=2) for name in names}


@torch.inference_mode()
@pytest.mark.parametrize("merge", ["mean", "dict"])
def test_pooling(wrapped, images, assert_same, merge):
    for pooling, dates in DATES.items():
        theirs, ours = wrapped(pooling, merge=merge, n_timestamps=dates)
        x = _series(images, PAIR, dates)
        assert_same(ours(dict(x)), theirs(dict(x)), 1e-9)
        assert list(ours.out_channels) == list(theirs.out_channels)


@torch.inference_mode()
def test_parts_of_a_series(wrapped, images, assert_same):
    x = _series(images, PAIR, 4)
    for pooling, lengths in (("diff", [1, 3]), ("max", [2, 2])):
        theirs, ours = wrapped(pooling, subset_lengths=lengths)
        assert_same(ours(dict(x)), theirs(dict(x)), 1e-9)


@torch.inference_mode()
@pytest.mark.parametrize("names", [["S2L2A", "DEM"], ["DEM", "S2L2A"]])
def test_one_date_beside_a_series(wrapped, images, assert_same, names):
    x = _series(images, names, 3)
    x["DEM"] = x["DEM"][:, :, :1]
    repeated = {name: image.expand(-1, -1, 3, -1, -1) for name, image in x.items()}
    without = {**x, "DEM": x["DEM"][:, :, 0]}
    for pooling in ("mean", "concat"):
        theirs, ours = wrapped(pooling, names, n_timestamps=3)
        want = theirs(dict(repeated))
        for given in (x, repeated, without):
            assert_same(ours(dict(given)), want, 1e-9)
        assert_same(theirs(dict(x)), want, 0)  # TerraTorch's own takes it, too


@torch.inference_mode()
def test_one_modality_as_a_tensor(wrapped, images, assert_same):
    theirs, ours = wrapped("mean", ["S2L2A", "DEM"])
    x = _series(images, ["S2L2A"], 3)["S2L2A"]
    assert_same(ours(x), theirs({"S2L2A": x}), 1e-9)
