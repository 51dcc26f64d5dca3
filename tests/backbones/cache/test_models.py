"""Backbones with a cache: the same results, computed once."""

from __future__ import annotations

import copy

import pytest
import torch

from terramind_plugin.backbones.cache.cache import Cache, LookUps
from terramind_plugin.builders import build_backbone, build_tim
from terramind_plugin.data.cache_log import EPOCHS, CacheLog
from terramind_plugin.errors import ConfigError

NAMES = ["S2L1C", "S1GRD"]
SIZE = "terramind_v1_tiny"


@pytest.fixture
def tim(tmp_path):
    """Build a thinking model; with equal arguments it has equal weights."""

    def make(*, seed=0, cache=tmp_path / "cache", **kwargs):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return build_tim(SIZE, NAMES, tim_cache=cache, out_indices=[11], **kwargs).eval()

    return make


@pytest.fixture
def frozen(tmp_path):
    """Build a frozen plain model."""

    def make(*, seed=0, cache=tmp_path / "cache", dtype="float32", **kwargs):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build_backbone(SIZE, NAMES, feature_cache=cache, feature_cache_dtype=dtype, **kwargs)
        model.freeze()
        return model

    return make


@pytest.fixture
def chips(images):
    """Return samples that can be cut and joined."""

    def make(*numbers, size=64):
        parts = [images(NAMES, 1, size, size, seed=number) for number in numbers]
        return {name: torch.cat([part[name] for part in parts]) for name in NAMES}

    return make


def count_calls(model, monkeypatch):
    """Return a list that grows by the batch size whenever the generator runs."""
    sizes, original = [], model.sampler.forward

    def counted(inputs, **kwargs):
        sizes.append(len(next(iter(inputs.values()))))
        return original(inputs, **kwargs)

    monkeypatch.setattr(model.sampler, "forward", counted)
    return sizes


def test_a_thought_is_generated_once(tim, chips, monkeypatch):
    model = tim()
    sizes = count_calls(model, monkeypatch)
    first = model.generate_tokens(chips(0, 1, 2))["LULC"]
    assert torch.equal(model.generate_tokens(chips(2, 0))["LULC"], first[[2, 0]])
    again = model.generate_tokens(chips(1, 3, 1))["LULC"]
    assert torch.equal(again[0], first[1])
    assert torch.equal(again[2], first[1])
    assert sizes == [3, 1]
    assert not torch.equal(first[0], first[1])
    model.train()
    assert torch.equal(model.generate_tokens(chips(0))["LULC"][0], first[0])  # a function of the chip, in training, too
    assert sizes == [3, 1]


def test_thoughts_survive_the_process(tim, chips, monkeypatch):
    first = tim().generate_tokens(chips(0, 1))["LULC"]
    for model in (tim(), copy.deepcopy(tim())):
        sizes = count_calls(model, monkeypatch)
        assert torch.equal(model.generate_tokens(chips(1, 0))["LULC"], first[[1, 0]])
        assert sizes == []


def test_features_do_not_depend_on_the_cache(tim, chips):
    model, x = tim(), chips(0, 1)
    cold = model(x)[0]
    warm = model(x)[0]
    assert torch.equal(cold, warm)
    assert list(x) == NAMES
    seeded = tim(cache=None)
    seeded.generate_tokens = lambda *_: {"LULC": model.generated_tokens["LULC"]}
    assert torch.equal(seeded(x)[0], warm)


CHANGES = [
    {"seed": 1},
    {"tim_seed": 1},
    {"tim_top_p": 0.5},
    {"tim_temps": 0.5},
    {"tim_modalities": ["NDVI"]},
    {"tim_modalities": ["NDVI", "LULC"]},
    {"bands": {"S1GRD": ["VH", "VV"]}},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: next(iter(changes)))
def test_another_generator_or_setting_has_thoughts_of_its_own(tim, chips, changes, monkeypatch):
    tim().generate_tokens(chips(0))
    model = tim(**changes)
    sizes = count_calls(model, monkeypatch)
    model.generate_tokens(chips(0))
    assert sizes == [1]


def test_weights_that_are_loaded_later_count(tim, chips, monkeypatch):
    model, other = tim(), tim(seed=1)
    first = model.generate_tokens(chips(0))["LULC"]
    expected = other.generate_tokens(chips(0))["LULC"]
    model.load_state_dict(other.state_dict())
    sizes = count_calls(model, monkeypatch)
    assert torch.equal(model.generate_tokens(chips(0))["LULC"], expected)
    assert sizes == []  # those of the other model
    with torch.no_grad():
        next(model.sampler.parameters()).add_(1.0)
    model.generate_tokens(chips(0))
    assert sizes == [1]
    assert not torch.equal(first, expected)


@pytest.mark.parametrize("change", ["pixel", "mask", "size", "missing", "autocast"])
def test_another_input_has_a_thought_of_its_own(tim, chips, change, monkeypatch):
    model = tim()
    present = {"S2L1C": torch.tensor([True]), "S1GRD": torch.tensor([True])}
    model.generate_tokens(chips(0), present)
    sizes = count_calls(model, monkeypatch)
    x = chips(0, size=80 if change == "size" else 64)
    if change == "pixel":
        x["S1GRD"][0, 1, 3, 5] += 1e-6
    elif change == "mask":
        present["S1GRD"] = torch.tensor([False])
    elif change == "missing":
        del x["S1GRD"], present["S1GRD"]
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        model.generate_tokens(x, present)
    assert sizes == [1]


def test_places_of_different_lengths(tim, chips):
    model = tim(tim_modalities=["coords"])
    alone = [model.generate_tokens(chips(number))["coords"][0] for number in range(4)]
    together = model.generate_tokens(chips(0, 1, 2, 3))["coords"]
    for one, row in zip(alone, together, strict=True):
        assert torch.equal(row[: len(one)], one)
        assert not row[len(one) :].any()


def count_forwards(model):
    sizes = []
    model.encoder[0].register_forward_hook(lambda block, arguments, tokens: sizes.append(len(tokens)))
    return sizes


@pytest.mark.parametrize("merge_method", ["mean", "max", "concat", "dict", "none"])
@pytest.mark.parametrize("masked", [False, True])
def test_features_are_computed_once(frozen, chips, merge_method, masked, monkeypatch):
    model = frozen(merge_method=merge_method, num_register_tokens=2)
    plain = frozen(cache=None, merge_method=merge_method, num_register_tokens=2)
    sizes = count_forwards(model)
    masks = [
        {"modality_mask": {"S1GRD": torch.tensor(rows)}} if masked else {} for rows in ([True, False], [False, True])
    ]
    first, again = model(chips(0, 1), **masks[0]), model(chips(1, 0), **masks[1])
    assert sizes == [2]
    expected = plain(chips(1, 0), **masks[1])
    assert type(again) is type(expected)
    for layer, swapped, reference in zip(first, again, expected, strict=True):
        if merge_method == "dict":
            assert list(swapped) == list(reference)
            layer, swapped, reference = (torch.cat(list(x.values()), dim=1) for x in (layer, swapped, reference))
        assert torch.equal(swapped, layer.flip(0))
        torch.testing.assert_close(swapped, reference, rtol=0, atol=1e-5 * max(1, reference.abs().max()))


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 2**-8), ("float16", 2**-11), ("float32", 0.0)])
def test_rounding_is_as_stated(frozen, chips, dtype, error):
    exact = frozen(cache=None, out_indices=[2, 11])(chips(0))
    model = frozen(dtype=dtype, out_indices=[2, 11])
    cold, warm = model(chips(0)), model(chips(0))
    assert cold[11].dtype == torch.float32
    for layer in range(2):
        reference, first, second = (list(x)[layer] for x in (exact, cold, warm))
        assert torch.equal(first, second)
        assert ((first - reference).abs() <= error * reference.abs() + 2**-24).all()


def test_a_frozen_thinking_model_remembers_both(tim, chips, monkeypatch, tmp_path):
    model = tim(feature_cache=tmp_path / "cache", feature_cache_dtype="float32")
    model.freeze()
    sizes = count_calls(model, monkeypatch)
    first = model(chips(0, 1))[0]
    assert torch.equal(model(chips(1, 0))[0], first.flip(0))
    assert sizes == [2]


@pytest.mark.parametrize("change", ["weights", "layers", "merge", "pixel"])
def test_other_features_are_not_mixed_up(frozen, chips, change, monkeypatch):
    frozen()(chips(0))
    model = frozen(
        seed=int(change == "weights"),
        out_indices=[11] if change == "layers" else None,
        merge_method="max" if change == "merge" else "mean",
    )
    sizes = count_forwards(model)
    x = chips(0)
    if change == "pixel":
        x["S2L1C"][0, 0, 0, 0] += 1
    model(x)
    assert sizes == [1]


def test_refused_where_something_trains(frozen, chips):
    model = frozen(drop_rate=0.1, modality_drop_rate=0.5)
    model(chips(0))  # nothing drops in a frozen model
    model.train()
    model(chips(0))
    model.encoder[0].norm1.weight.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"1 of its parameters train, e.g. encoder.0.norm1.weight.*freeze_backbone"):
        model(chips(0))
    model.unfreeze()
    with pytest.raises(ConfigError, match="freeze_backbone: true"):
        model.eval()(chips(0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cache": 3}, "path of a folder, or true"),
        ({"dtype": "int8"}, "one of bfloat16, float16, float32"),
        ({"feature_cache_gib": 0}, "number of GiB above 0"),
    ],
)
def test_impossible_settings(frozen, arguments, message):
    with pytest.raises(ConfigError, match=message):
        frozen(**arguments)


def test_larger_than_float16(frozen, chips):
    model = frozen(dtype="float16")
    with torch.no_grad():
        model.encoder_norm.weight.fill_(1e6)
    with pytest.raises(ConfigError, match=r"larger than 65504.*bfloat16"):
        model(chips(0))


def test_names_and_sizes_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = build_tim(SIZE, NAMES, tim_cache="true", tim_cache_gib="0.5", feature_cache="somewhere")
    assert model.tim_cache.path.as_posix() == "cache/tim.sqlite3"
    assert model.tim_cache.store.limit == 2**29
    assert model.feature_cache.path.as_posix() == "somewhere/features.sqlite3"


def test_a_cache_that_costs_more_than_it_saves_rests(caplog):
    slow, quick = Cache("somewhere", "slow", 1), Cache("somewhere", "quick", 1)
    epoch = {
        "slow": LookUps(looked_up=40, hits=20, look_up_seconds=0.4, seconds_spared=0.1),
        "quick": LookUps(looked_up=40, hits=20, look_up_seconds=0.1, seconds_spared=0.4),
    }
    log = CacheLog()
    for _ in range(EPOCHS):
        for cache in (slow, quick):
            log._judge(cache, epoch[cache.name])
    assert (slow.paused, quick.paused) == (True, False)
    assert "looking a sample up takes 10.0 ms, computing it 5.0 ms" in caplog.text


def test_features_of_a_resting_cache_are_computed_alone(frozen, chips, monkeypatch):
    model, x = frozen(), chips(0, 1)
    want = model(x)
    model.feature_cache.paused = True
    monkeypatch.setattr(type(model.feature_cache), "recall", None)  # neither keys nor files
    assert all(torch.equal(one, other) for one, other in zip(model(x), want, strict=True))


def test_a_generator_in_bfloat16(tim, chips):
    model = tim(tim_generator_dtype="bfloat16", cache=None)
    assert {p.dtype for p in model.sampler.parameters()} == {torch.bfloat16}
    assert {p.dtype for name, p in model.named_parameters() if not name.startswith("sampler.")} == {torch.float32}
    model(chips(0, 1))
    ids = model.generated_tokens["LULC"]
    assert torch.equal(model.generate_tokens(chips(1))["LULC"][0], ids[1])
    other = tim(cache=None)
    other.load_state_dict(model.state_dict())
    assert model.describe() != other.describe()
    with pytest.raises(ConfigError, match="tim_generator_dtype must be one of float32, bfloat16, got 'half'"):
        tim(tim_generator_dtype="half", cache=None)
