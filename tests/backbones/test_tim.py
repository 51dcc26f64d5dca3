"""Thinking-in-Modalities: what is frozen, what is stored, and on what a thought depends."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

from terramind_plugin.builders import build_backbone, build_tim
from terramind_plugin.errors import ConfigError, WeightsError

NAMES = ("S2L1C", "S1GRD")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_tim("terramind_v1_tiny", list(NAMES)).eval()


@pytest.fixture
def chips(images):
    return images(NAMES, 3)


def test_is_at_most_twice_the_plain_backbone_plus_decoder(model):
    plain = sum(p.numel() for p in build_backbone("terramind_v1_tiny", list(NAMES)).parameters())
    decoder = sum(p.numel() for p in model.sampler.model.decoder.parameters())
    total = sum(p.numel() for p in model.parameters())
    embeddings = sum(p.numel() for m in (model, model.sampler.model) for p in m.encoder_embeddings.parameters())
    heads = sum(p.numel() for p in model.sampler.model.decoder_embeddings.parameters())
    assert total < 20e6
    assert total <= 2 * plain + decoder + embeddings + heads + 1e5


def test_generator_shares_no_tensor_with_what_is_trained(model):
    theirs = {p.data_ptr() for p in model.sampler.parameters()}
    ours = {p.data_ptr() for name, p in model.named_parameters() if not name.startswith("sampler.")}
    assert not theirs & ours


def test_everything_but_the_generator_gets_a_gradient(chips, model):
    model = copy.deepcopy(model).train()
    sum(layer.square().sum() for layer in model(chips)).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("sampler."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_evaluation_gives_the_same_answer_in_any_batch(chips, model):
    with torch.no_grad():
        together = model(chips)[-1]
        again = model(dict(reversed(chips.items())))[-1]
        alone = model({name: x[1:2] for name, x in chips.items()})[-1]
    torch.testing.assert_close(again, together, rtol=0, atol=0)
    torch.testing.assert_close(alone, together[1:2], rtol=1e-5, atol=1e-5)


def test_global_random_state_is_left_alone(chips, model):
    before = torch.random.get_rng_state()
    model.generate_tokens(chips)
    assert torch.equal(before, torch.random.get_rng_state())


def test_training_thinks_anew_at_each_step_and_a_checkpoint_remembers_the_step(chips, model):
    first, second = copy.deepcopy(model).train(), copy.deepcopy(model).train()
    thoughts = [first.generate_tokens(chips)["LULC"] for _ in range(3)]
    assert not torch.equal(thoughts[0], thoughts[1])
    second.generate_tokens(chips)
    restored = copy.deepcopy(model)
    restored.load_state_dict(second.state_dict())
    assert torch.equal(restored.train().generate_tokens(chips)["LULC"], thoughts[1])


def test_another_seed_is_another_thought(chips, model):
    other = copy.deepcopy(model)
    other.tim_seed = 1
    assert not torch.equal(other.generate_tokens(chips)["LULC"], model.generate_tokens(chips)["LULC"])


def test_freezing_and_unfreezing_leave_the_generator_frozen(model):
    model = copy.deepcopy(model)
    model.freeze()
    assert not model.train().training
    model.unfreeze()
    assert model.training
    assert not model.sampler.training
    assert not any(p.requires_grad for p in model.sampler.parameters())
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("sampler."))


@pytest.mark.parametrize("method", ["mean", "max", "concat", "dict", "none"])
def test_merging_holds_the_thought(method, chips):
    model = build_tim("terramind_v1_tiny", list(NAMES), merge_method=method, out_indices=[11]).eval()
    (features,) = model(chips)
    if method == "dict":
        assert list(features) == [*NAMES, "LULC"]
    else:
        assert features.shape == (3, 48 if method == "none" else 16, 192 * 3 if method == "concat" else 192)


def test_a_sample_without_a_modality_thinks_and_answers_as_if_alone(chips, model):
    mask = {"S1GRD": torch.tensor([True, False, True])}
    with torch.no_grad():
        masked = model(chips, modality_mask=mask)[-1]
        alone = model({"S2L1C": chips["S2L1C"][1:2]})[-1]
    torch.testing.assert_close(masked[1:2], alone, rtol=1e-4, atol=1e-5)


def test_several_thoughts_and_a_place(chips):
    model = build_tim("terramind_v1_tiny", ["S2L1C", "DEM"], tim_modalities=["LULC", "DEM", "coords"]).eval()
    dem = chips["S1GRD"][:, :1]
    thoughts = model.generate_tokens({"S2L1C": chips["S2L1C"], "DEM": dem})
    assert list(thoughts) == ["LULC", "tim_DEM", "coords"]
    assert thoughts["tim_DEM"].shape == (3, 4, 4)
    features = model({"S2L1C": chips["S2L1C"], "DEM": dem})
    assert features[-1].shape == (3, 16, 192)
    assert features[-1].isfinite().all()


def test_selected_and_new_bands_and_new_modalities(image):
    model = build_tim(
        "terramind_v1_tiny",
        ["S2L2A", {"THERMAL": 1}],
        bands={"S2L2A": ["RED", "HAZE", "BLUE"]},
        new_bands=["HAZE"],
    ).eval()
    x, thermal = image("S2L2A", 2, channels=3), image("THERMAL", 2, channels=1)
    thought = model.generate_tokens({"S2L2A": x, "THERMAL": thermal})["LULC"]
    x[:, 1] += 100
    assert torch.equal(thought, model.generate_tokens({"S2L2A": x, "THERMAL": thermal})["LULC"])
    assert model({"S2L2A": x, "THERMAL": thermal})[-1].shape == (2, 16, 192)
    with pytest.raises(ConfigError, match="Thinking needs one of"):
        model({"THERMAL": thermal})


def test_images_need_not_be_square(image):
    model = build_tim("terramind_v1_tiny", ["S1GRD"]).eval()
    assert model.generate_tokens({"S1GRD": image("S1GRD", 1, 48, 96)})["LULC"].shape == (1, 3, 6)
    assert model({"S1GRD": image("S1GRD", 1, 48, 96)})[-1].shape == (1, 18, 192)


def test_checkpoint_without_the_generator_is_small_and_refuses_another_one(chips, model):
    state = model.state_dict()
    slim = build_tim("terramind_v1_tiny", list(NAMES), tim_store_generator=False).eval()
    slim.load_state_dict(state)
    stored = slim.state_dict()
    assert not any(name.startswith("sampler.") for name in stored)
    twin = copy.deepcopy(slim)
    torch.nn.init.zeros_(twin.encoder_norm.weight)
    twin.load_state_dict(stored)
    torch.testing.assert_close(twin(chips)[-1], slim(chips)[-1], rtol=0, atol=0)
    with pytest.raises(WeightsError, match="another generator"):
        build_tim("terramind_v1_tiny", list(NAMES), tim_store_generator=False).load_state_dict(stored)


def test_published_weights_fill_encoder_and_generator(tmp_path, model):
    weights = dict(model.sampler.model.state_dict())
    torch.save(weights, tmp_path / "published.pt")
    built = build_tim("terramind_v1_tiny", list(NAMES), ckpt_path=tmp_path / "published.pt")
    for name, value in weights.items():
        assert torch.equal(built.sampler.model.state_dict()[name], value)
        if name in built.state_dict():
            assert torch.equal(built.state_dict()[name], value)


def test_a_fine_tuned_backbone_cannot_fill_the_generator(tmp_path):
    plain = build_backbone("terramind_v1_tiny", list(NAMES))
    path = tmp_path / "plain.pt"
    torch.save({**plain.state_dict(), **{
        f"encoder_embeddings.tok_lulc@224.{name}": torch.zeros(shape)
        for name, shape in (("mod_emb", (1, 1, 192)), ("pos_emb", (1, 196, 192)), ("token_emb.weight", (4375, 192)))
    }}, path)  # fmt: skip
    with pytest.raises(WeightsError, match="no TerraMind decoder"):
        build_tim("terramind_v1_tiny", list(NAMES), ckpt_path=path)


def test_unknown_argument_is_named(images):
    with pytest.raises(ConfigError, match="Did you mean 'tim_modalities'"):
        build_tim("terramind_v1_tiny", list(NAMES), tim_modality=["LULC"])


def test_equal_chips_in_a_batch_get_different_thoughts_in_training_alone(chips, model):
    model = copy.deepcopy(model)
    same = {name: x[:1].expand(3, *x.shape[1:]) for name, x in chips.items()}
    alike = model.generate_tokens(same)["LULC"]
    assert torch.equal(alike[0], alike[1])
    assert torch.equal(alike[1], alike[2])
    one, two, three = model.train().generate_tokens(same)["LULC"]
    assert not torch.equal(one, two)
    assert not torch.equal(two, three)
    assert not torch.equal(one, three)


RANKS = """
import sys, torch
import torch.distributed as dist
from terramind_plugin.builders import build_tim
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
model = build_tim("terramind_v1_tiny", ["S1GRD"]).train()
x = torch.randn(2, 2, 64, 64, generator=torch.Generator().manual_seed(1))
drawn = [one.generate_tokens({"S1GRD": x})["LULC"] for one in map(model.train, (True, False))]
torch.save(drawn, f"{out}{rank}.pt")
"""


@pytest.mark.slow
def test_processes_think_differently_in_training_alone(tmp_path):
    words = [sys.executable, "-c", RANKS]
    runs = [subprocess.Popen([*words, str(rank), str(tmp_path / "store"), str(tmp_path / "rank")]) for rank in (0, 1)]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
