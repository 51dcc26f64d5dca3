"""Samples that lack a modality."""

import pytest
import torch

from terramind_plugin.errors import ConfigError

PAIR = ("S2L2A", "S1GRD")
METHODS = ["mean", "max", "concat", "dict", "none"]
MASK = {"S2L2A": torch.tensor([True, True, False]), "S1GRD": torch.tensor([True, False, True])}


def flat(layer):
    return torch.cat(list(layer.values()), dim=1) if isinstance(layer, dict) else layer


def alone(x, sample, mask=MASK):
    """Return the modalities that one sample has."""
    return {name: image[sample : sample + 1] for name, image in x.items() if mask[name][sample]}


def close(one, other):
    return torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("method", ["mean", "max", "concat"])
@pytest.mark.parametrize("registers", [0, 3])
def test_like_the_sample_alone(tiny, images, method, registers):
    model = tiny(PAIR, merge_method=method, num_register_tokens=registers)
    x = images(PAIR, 3)
    layers = model(x, modality_mask=MASK)
    for sample in range(3):
        for got, want in zip(layers, model(alone(x, sample)), strict=True):
            assert close(got[sample], want[0])


@pytest.mark.parametrize("registers", [0, 3])
def test_like_the_sample_alone_by_modality(tiny, images, registers):
    model = tiny(PAIR, merge_method="dict", num_register_tokens=registers)
    x = images(PAIR, 3)
    layer = model(x, modality_mask=MASK)[-1]
    assert ("register_tokens" in layer) == bool(registers)
    for sample in range(3):
        want = model(alone(x, sample))[-1]
        for name, tokens in layer.items():
            assert close(tokens[sample], want[name][0] if name in want else torch.zeros(()))


@pytest.mark.parametrize("registers", [0, 3])
def test_like_the_sample_alone_unmerged(tiny, images, registers):
    model = tiny(PAIR, merge_method=None, num_register_tokens=registers)
    x = images(PAIR, 3)
    got = model(x, modality_mask=MASK)[-1][1]
    want = model(alone(x, 1))[-1][0]
    assert got.shape == (registers + 32, 192)
    assert close(got[: registers + 16], want)
    assert not got[registers + 16 :].any()


def test_modality_of_the_whole_batch(tiny, images):
    model = tiny(PAIR)
    x = images(PAIR, 3)
    mask = {"S1GRD": torch.zeros(3, dtype=torch.bool)}
    assert close(model(x, modality_mask=mask)[-1], model(x["S2L2A"])[-1])


@pytest.mark.parametrize("method", METHODS)
def test_full_mask_changes_nothing(tiny, images, method):
    model = tiny(PAIR, depth=3, merge_method=method)
    x = images(PAIR, 3)
    mask = {name: torch.ones(3, dtype=torch.bool) for name in PAIR}
    assert close(flat(model(x, modality_mask=mask)[-1]), flat(model(x)[-1]))


@pytest.mark.parametrize("method", METHODS)
def test_nan_marks(tiny, images, method):
    model = tiny(PAIR, depth=3, merge_method=method)
    x = images(PAIR, 3)
    want = flat(model(x, modality_mask=MASK)[-1])
    marked = {
        name: torch.where(MASK[name][:, None, None, None], image, torch.nan)
        for name, image in x.items()
    }  # fmt: skip
    assert close(flat(model(marked, modality_mask=MASK)[-1]), want)
    # The mark alone is enough where some mask is given.
    everything = {"S1GRD": torch.ones(3, dtype=torch.bool)}
    assert close(flat(model(marked, modality_mask=everything)[-1]), want)


def test_nan_marks_give_no_nan_gradients(tiny, images):
    model = tiny(PAIR, depth=3)
    x = images(PAIR, 3)
    x["S1GRD"][1] = torch.nan
    model(x, modality_mask={"S1GRD": MASK["S1GRD"]})[-1].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_nan_without_a_mask_is_seen(tiny, images):
    x = images(PAIR)
    x["S1GRD"][1] = torch.nan
    assert tiny(PAIR, depth=2)(x)[-1][1].isnan().all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("marked", [False, True])
def test_sample_with_nothing_is_finite(tiny, images, method, marked):
    model = tiny(PAIR, depth=3, merge_method=method).requires_grad_()
    x = images(PAIR)
    if marked:
        for image in x.values():
            image[1] = torch.nan
    mask = {name: torch.tensor([True, False]) for name in PAIR}
    layer = flat(model(x, modality_mask=mask)[-1])
    assert layer.isfinite().all()
    layer.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert close(layer[0], flat(model({name: image[:1] for name, image in x.items()})[-1])[0])


def test_mask_by_other_spellings(tiny, images):
    model, x = tiny(PAIR, depth=2), images(PAIR, 3)
    got = model(x, modality_mask={"s1_grd": MASK["S1GRD"]})[-1]
    assert torch.equal(got, model(x, modality_mask={"S1GRD": MASK["S1GRD"]})[-1])


@pytest.mark.parametrize("values", [torch.tensor([1, 0, 1]), torch.tensor([1.0, 0.0, 1.0]), [True, False, True]])
def test_mask_of_other_types(tiny, images, values):
    model, x = tiny(PAIR, depth=2), images(PAIR, 3)
    got = model(x, modality_mask={"S1GRD": values})[-1]
    assert torch.equal(got, model(x, modality_mask={"S1GRD": MASK["S1GRD"]})[-1])


def test_empty_mask_is_none(tiny, images):
    model, x = tiny(PAIR, depth=2), images(PAIR)
    assert torch.equal(model(x, modality_mask={})[-1], model(x)[-1])


def test_mask_of_a_modality_that_is_not_given(tiny, images):
    model, x = tiny(PAIR, depth=2), images(["S2L2A"], 3)
    assert close(model(x, modality_mask={"S1GRD": MASK["S1GRD"]})[-1], model(x)[-1])


def test_mask_of_an_unknown_modality(tiny, images):
    with pytest.raises(ConfigError, match="'DEM'"):
        tiny(PAIR, depth=2)(images(PAIR, 3), modality_mask={"DEM": MASK["S1GRD"]})


def test_mask_of_another_length(tiny, images):
    with pytest.raises(ConfigError, match="modality_mask of S1GRD has 3 values for a batch of 4"):
        tiny(PAIR, depth=2)(images(PAIR, 4), modality_mask={"S1GRD": MASK["S1GRD"]})


def test_concat_keeps_places(tiny, images):
    model = tiny(["S2L2A", "S1GRD", "DEM"], depth=3, merge_method="concat")
    x = images(["S1GRD", "DEM"])
    first, second, third = model(x)[-1].split(192, dim=-1)
    assert torch.equal(first, model.missing_mod_token.expand_as(first))
    alone = tiny(["S1GRD", "DEM"], depth=3, merge_method="dict")
    alone.load_state_dict(model.state_dict(), strict=False)
    want = alone(x)[-1]
    assert torch.equal(second, want["S1GRD"])
    assert torch.equal(third, want["DEM"])


def test_missing_token_learns(tiny, images):
    model = tiny(PAIR, depth=2, merge_method="concat")
    assert model.missing_mod_token.isfinite().all()
    assert 0 < model.missing_mod_token.abs().max() < 1
    model(images(["S1GRD"]))[-1].square().sum().backward()
    assert model.missing_mod_token.grad.abs().min() > 0


def test_missing_token_learns_from_single_samples(tiny, images):
    model = tiny(PAIR, depth=2, merge_method="concat")
    model(images(PAIR, 3), modality_mask=MASK)[-1].square().sum().backward()
    assert model.missing_mod_token.grad.abs().min() > 0
