"""Every token is decoded exactly once, with the step sizes and temperatures of the reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terramind_plugin.errors import ConfigError
from terramind_plugin.generation.schedules import Decoding, cosine_counts, linear_counts

steps, totals = st.integers(1, 60), st.integers(1, 800)


@settings(deadline=None)
@given(steps, totals, st.sampled_from(["linear", "cosine"]), st.sampled_from(["constant", "linear", "onex:0.1:0.5"]))
def test_counts_add_up(steps, total, counts, temperatures):
    plan = Decoding(steps=steps, counts=counts, temperatures=temperatures).plan(total)
    assert sum(step.count for step in plan) == total
    assert all(step.count > 0 and step.temperature > 0 for step in plan)
    assert len(plan) <= steps


@settings(deadline=None)
@given(steps, totals)
def test_linear_counts_are_the_references(steps, total):
    from terratorch.models.backbones.terramind.model.generate import linear_schedule

    assert linear_counts(steps, total) == linear_schedule(steps, total).tolist()


@settings(deadline=None)
@given(steps, totals)
def test_cosine_counts_are_the_references(steps, total):
    from terratorch.models.backbones.terramind.model.generate import cosine_schedule

    want = cosine_schedule(steps, total).tolist()
    if min(want) >= 0:  # the reference asks for a negative number of tokens where rounding up spent them all
        assert cosine_counts(steps, total) == want


@pytest.mark.parametrize("schedule", ["constant", "linear", "onex:0.1:0.5"])
def test_temperatures_are_the_references(schedule):
    from terratorch.models.backbones.terramind.model import generate

    counts = generate.linear_schedule(7, 196)
    if schedule == "constant":
        want = 2.0 * np.ones(7)
    elif schedule == "linear":
        want = generate.linear_temp_schedule(2.0, counts)
    else:
        want = generate.onex_temp_schedule(2.0, 0.1, counts, power=0.5)
    got = [step.temperature for step in Decoding(steps=7, temperature=2.0, temperatures=schedule).plan(196)]
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_temperature_zero_stays_zero():
    assert {step.temperature for step in Decoding(steps=3, temperature=0, temperatures="linear").plan(9)} == {0.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps must be a whole number"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"temperature": -1}, "temperature must be a number of at least 0"),
        ({"top_p": 1.5}, "top_p must be a number of at least 0 and at most 1"),
        ({"top_k": 5.0}, "top_k as a float is a share"),
        ({"top_k": True}, "top_k must be a number"),
        ({"scheme": "rora"}, "Did you mean 'roar'"),
        ({"counts": "cosin"}, "Did you mean 'cosine'"),
        ({"temperatures": "onex:a:b"}, "expected two numbers"),
        ({"temperatures": "warm"}, "Use constant, linear or onex"),
        ({"max_tokens": 0}, "max_tokens must be"),
    ],
)
def test_impossible_values(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Decoding(**arguments)
