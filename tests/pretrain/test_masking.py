"""Masks: budgets hold, nothing is read and predicted, everything is reached."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terramind_plugin.errors import ConfigError
from terramind_plugin.pretrain.masking import MaskPlan, draw_masks

PIXELS = ("S2L2A", "S2L1C", "RGB", "S1GRD", "DEM")
TOKENS = ("S2L2A", "S1GRD", "DEM", "LULC", "NDVI")
alphas = st.sampled_from([0.001, 0.05, 0.2, 1.0, 20.0])


@st.composite
def plans(draw):
    sequences = draw(st.sampled_from([{}, {"coords": 3}, {"coords": 3, "dates": 7}]))
    tokens = draw(st.lists(st.sampled_from(TOKENS), unique=True, min_size=1))
    pixels = draw(st.lists(st.sampled_from(PIXELS), unique=True))
    fewest = sum(sequences.values()) + draw(st.integers(1, 40))
    return MaskPlan(
        tuple(pixels),
        tuple(tokens),
        sequences,
        (fewest, fewest + draw(st.integers(0, 60))),
        sum(sequences.values()) + len(sequences) + draw(st.integers(1, 80)),
        {"tokens": draw(alphas), **({"pixels": draw(alphas)} if pixels else {})},
        {"tokens": draw(alphas)},
    )


def draw(plan, batch=16, places=16, seed=0):
    return draw_masks(plan, batch, places, torch.Generator().manual_seed(seed))


def count(masks):
    return sum(mask.sum(dim=1) for mask in masks.values())


@settings(max_examples=60, deadline=None)
@given(plans(), st.integers(1, 5), st.sampled_from([1, 4, 16, 64]), st.integers(0, 2**31))
def test_budgets_and_overlap(plan, batch, places, seed):
    masks = draw(plan, batch, places, seed)
    assert list(masks.inputs) == list(plan.entries)
    assert list(masks.targets) == list(plan.entries[len(plan.pixels) :])
    read, asked = count(masks.inputs), count(masks.targets)
    assert (read >= 1).all()
    assert (read <= plan.inputs[1]).all()
    assert (asked <= plan.targets).all()
    free = torch.zeros(batch, dtype=torch.long)
    for name in plan.tokens:
        pixels = masks.inputs.get(f"pixels.{name}", torch.zeros(batch, places, dtype=torch.bool))
        roles = torch.stack([pixels, masks.inputs[f"tokens.{name}"], masks.targets[f"tokens.{name}"]])
        assert (roles.sum(dim=0) <= 1).all()
        free += (roles.sum(dim=0) == 0).sum(dim=1)
    for name in plan.sequences:
        shown, told = masks.inputs[f"sequences.{name}"], masks.targets[f"sequences.{name}"]
        assert (shown[:, 1:] == shown[:, 1:2]).all()
        assert (told == told[:, :1]).all()
        assert not (shown[:, 1] & told[:, 0]).any()
        assert not (shown[:, 0] & ~told[:, 0]).any()
    # What is not predicted has a reason: the budget is spent, or nothing is left.
    assert ((asked == plan.targets) | (free == 0)).all()


def test_inputs_spend_their_budget_where_there_is_room():
    plan = MaskPlan((), TOKENS, {}, (20, 20), 8, {"tokens": 50.0})
    assert (count(draw(plan, places=64).inputs) == 20).all()


def test_every_role_is_reached():
    plan = MaskPlan(PIXELS, TOKENS, {"coords": 3}, (8, 80), 40)
    kinds = {"pixels": set(), "tokens": set(), "coords": set()}
    sums = dict.fromkeys(plan.entries, 0)
    for seed in range(20):
        masks = draw(plan, batch=64, seed=seed)
        for entry, mask in {**masks.inputs, **{f"to {k}": v for k, v in masks.targets.items()}}.items():
            sums[entry] = sums.get(entry, 0) + int(mask.sum())
        for name in TOKENS:
            read, asked = masks.inputs[f"tokens.{name}"].sum(1).tolist(), masks.targets[f"tokens.{name}"].sum(1)
            kinds["tokens"] |= {
                (name, (a == 16) + (a > 0), (b == 16) + (b > 0)) for a, b in zip(read, asked.tolist(), strict=True)
            }
        for name in PIXELS:
            kinds["pixels"] |= {(name, (a == 16) + (a > 0)) for a in masks.inputs[f"pixels.{name}"].sum(1).tolist()}
        shown, told = masks.inputs["sequences.coords"].sum(1), masks.targets["sequences.coords"].sum(1)
        kinds["coords"] |= set(zip(shown.tolist(), told.tolist(), strict=True))
    assert all(sums.values())
    # All read, all predicted, both in part, neither.
    assert kinds["tokens"] >= {
        (name, *roles) for name in TOKENS for roles in ((2, 0), (0, 2), (1, 1), (0, 0), (1, 0), (0, 1))
    }
    assert kinds["pixels"] == {(name, share) for name in PIXELS for share in (0, 1, 2)}
    assert kinds["coords"] == {(0, 0), (3, 0), (0, 4), (1, 4)}


def test_places_are_drawn_evenly():
    plan = MaskPlan(("S2L2A",), ("LULC",), {}, (4, 4), 4)
    masks = draw(plan, batch=4000)
    for mask in (masks.inputs["pixels.S2L2A"], masks.targets["tokens.LULC"]):
        share = mask.float().mean(dim=0)
        assert (share - share.mean()).abs().max() < 0.06


def test_zero_is_never():
    plan = MaskPlan(PIXELS, TOKENS, {"coords": 3}, (8, 40), 60, {"tokens": 0, "sequences": 0}, {"tokens.LULC": 0})
    masks = draw(plan, batch=64)
    assert not masks.targets["tokens.LULC"].any()
    assert not any(masks.inputs[f"tokens.{name}"].any() for name in TOKENS)
    assert not masks.inputs["sequences.coords"][:, 1:].any()


def test_seed():
    plan = MaskPlan(PIXELS, TOKENS, {"coords": 3}, (8, 40), 60)
    first, again, other = (draw(plan, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(mask, again.inputs[name]) for name, mask in first.inputs.items())
    assert all(torch.equal(mask, again.targets[name]) for name, mask in first.targets.items())
    assert not all(torch.equal(mask, other.targets[name]) for name, mask in first.targets.items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": ()}, "tokens is empty"),
        ({"inputs": (3, 9)}, "at least 4"),
        ({"inputs": (9, 8)}, "a minimum and a maximum"),
        ({"targets": 4}, "must be above 4"),
        ({"input_alphas": {"tokens.LULK": 1.0}}, "did you mean 'tokens.LULC'|Did you mean 'tokens.LULC'"),
        ({"target_alphas": {"pixels": 1.0}}, "target_alphas names 'pixels'"),
        ({"input_alphas": {"tokens": -1.0}}, "must be 0 or more"),
        ({"target_alphas": {"tokens": 0.0}}, "at least one must be above 0"),
    ],
)
def test_plans_that_are_not_possible(changed, message):
    given = {"pixels": ("S2L2A",), "tokens": ("LULC",), "sequences": {"coords": 3}, "inputs": (8, 9), "targets": 9}
    with pytest.raises(ConfigError, match=message):
        MaskPlan(**{**given, **changed})
