"""Adapters in a backbone: what trains, what is kept, what is refused."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import pytest
import torch

from terramind_plugin.backbones.lora import TARGETS, LoraSettings, add_lora, hash_base, merge_lora, read_settings
from terramind_plugin.backbones.tim import TerraMindTiM
from terramind_plugin.builders import build_backbone, build_tim
from terramind_plugin.errors import ConfigError, WeightsError
from terramind_plugin.model.variants import VARIANTS

PAIR = ("S2L2A", "S1GRD")


@pytest.fixture
def adapted(tiny):
    """Return a backbone of few blocks with adapters that are not zero."""

    def make(modalities=PAIR, *, seed=0, lora=None, changed=True, **kwargs):
        model = tiny(modalities, seed=seed, **{"depth": 3, **kwargs})
        torch.manual_seed(5)
        add_lora(model, LoraSettings(**{"rank": 4, **(lora or {})}))
        if changed:
            generator = torch.Generator().manual_seed(7)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.data.normal_(std=0.05, generator=generator)
        return model

    return make


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("target", "per_block"),
    [("attention", (192 + 576) + (192 + 192)), ("mlp", 2 * (192 + 768)), ("all", 768 + 384 + 2 * 960)],
)
def test_trained_parameters(adapted, target, per_block):
    model = adapted(lora={"rank": 5, "target": target})
    assert sum(p.numel() for p in trained(model).values()) == 3 * 5 * per_block
    assert all("lora_" in name for name in trained(model))


def test_gated_blocks():
    with torch.device("meta"):
        model = build_backbone("terramind_v1_base", ["S2L2A"], lora={"rank": 2, "target": "all"})
    hidden = int(2 * 4 * 768 / 3)
    assert sum(p.numel() for p in trained(model).values()) == 12 * 2 * (4 * 768 + 2 * 768 + 3 * (768 + hidden))


def test_it_starts_as_the_plain_backbone(tiny, adapted, images):
    x = images(PAIR)
    assert torch.equal(tiny(PAIR, depth=3)(x)[-1], adapted(changed=False)(x)[-1])


def test_blocks_that_do_not_run_get_none(adapted, images):
    """So that each trained parameter has a gradient, which DistributedDataParallel asks for."""
    model = adapted(out_indices=[0, 1]).train()
    assert not any(name.startswith("encoder.2.") for name in trained(model))
    sum(layer.sum() for layer in model(images(PAIR))).backward()
    assert all(parameter.grad is not None for parameter in trained(model).values())


def test_what_is_new_trains_in_full(adapted):
    model = adapted(
        ["S2L2A", {"THERMAL": 1}], bands={"S2L2A": ["RED", "HAZE"]}, new_bands=["HAZE"],
        merge_method="concat", num_register_tokens=2,
    )  # fmt: skip
    assert {name for name in trained(model) if "lora_" not in name} == {
        "encoder_embeddings.THERMAL.proj.weight", "encoder_embeddings.THERMAL.mod_emb",
        "encoder_embeddings.untok_sen2l2a@224.proj.weight", "register_tokens", "missing_mod_token",
    }  # fmt: skip
    assert set(model.state_dict()) == {*trained(model), "base_sha256"}


def test_known_bands_stay(adapted):
    assert all("lora_" in name for name in trained(adapted(["S2L2A"], bands={"S2L2A": ["RED", "NIR_NARROW"]})))


def test_state_dict_holds_what_trains_and_comes_back(adapted, images):
    model, other = adapted(), adapted(changed=False)
    state = model.state_dict()
    assert set(state) == {*trained(model), "base_sha256"}
    assert not torch.equal(other(images(PAIR))[-1], model(images(PAIR))[-1])
    other.load_state_dict(state)
    assert torch.equal(other(images(PAIR))[-1], model(images(PAIR))[-1])
    wrapped = torch.nn.Sequential(copy.deepcopy(model))
    assert set(wrapped.state_dict()) == {f"0.{name}" for name in state}
    wrapped.load_state_dict(wrapped.state_dict())


def test_loading_is_strict(adapted):
    model = adapted()
    state = model.state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**state, "encoder.9.attn.qkv.lora_A.default.weight": torch.zeros(1)})
    state.pop("encoder.1.attn.qkv.lora_A.default.weight")
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)


def test_another_base_is_refused(adapted, tiny):
    model, other = adapted(), adapted(seed=1)
    assert model.base == hash_base(tiny(PAIR, depth=3).state_dict())
    with pytest.raises(WeightsError, match="adapters to other weights") as caught:
        other.load_state_dict(model.state_dict())
    assert model.base in str(caught.value)
    assert other.base in str(caught.value)


def test_plain_and_adapted_do_not_mix(adapted, tiny):
    plain, model = tiny(PAIR, depth=3), adapted()
    with pytest.raises(WeightsError, match="leave backbone_lora out"):
        model.load_state_dict(plain.state_dict())
    with pytest.raises(WeightsError, match="terramind merge"):
        plain.load_state_dict(model.state_dict())


def test_the_hash_sees_every_weight(tiny):
    model = tiny(PAIR, depth=1)
    before = hash_base(model.state_dict())
    for name, parameter in model.named_parameters():
        parameter.data.view(-1)[-1].add_(1e-3)
        assert hash_base(model.state_dict()) != before, name
        parameter.data.view(-1)[-1].sub_(1e-3)
        before = hash_base(model.state_dict())


def test_the_base_keeps_its_name_in_another_precision(adapted):
    """Trainers may convert a model; what was loaded counts."""
    assert torch.equal(adapted().bfloat16().state_dict()["base_sha256"], adapted().state_dict()["base_sha256"])


@pytest.mark.parametrize("target", list(TARGETS))
def test_merged_is_equal(adapted, tiny, images, target):
    model, plain = adapted(lora={"target": target}), tiny(PAIR, depth=3)
    x = images(PAIR)
    want = model(x)[-1]
    assert merge_lora(model) == 3 * (4 if target == "all" else 2)
    assert set(model.state_dict()) == set(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    assert torch.allclose(plain(x)[-1], want, atol=1e-5)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_freezing_is_about_the_base(adapted):
    model = adapted()
    names = set(trained(model))
    model.freeze()
    assert set(trained(model)) == names
    assert model.encoder[0].training
    model.unfreeze()
    assert set(trained(model)) == names


def test_recomputation_and_half_precision(adapted, images):
    grads = []
    for recompute in (False, True):
        model = adapted(activation_checkpointing=recompute).train()
        model(images(PAIR))[-1].square().sum().backward()
        grads.append([parameter.grad for parameter in trained(model).values()])
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    model, x = adapted(), images(PAIR)
    want = model(x)[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = model(x)[-1]
    assert torch.nn.functional.cosine_similarity(got.float(), want, dim=-1).min() > 0.999


def test_dropout_of_adapters(adapted, images):
    model, x = adapted(lora={"dropout": 0.5}), images(PAIR)
    assert torch.equal(model(x)[-1], model(x)[-1])
    model.train()
    assert not torch.equal(model(x)[-1], model(x)[-1])


def test_graph_is_whole(adapted, images):
    seen = []

    def look(graph, _):
        seen.append(graph)
        return graph.forward

    model, x = adapted(), images(PAIR)
    compiled = torch.compile(model, backend=look, fullgraph=True)
    assert torch.allclose(compiled(x)[-1], model(x)[-1], atol=1e-6)
    assert len(seen) == 1


def test_the_generator_gets_none(images):
    variant = replace(VARIANTS["terramind_v1_tiny"], depth=2, decoder_depth=1)
    model = TerraMindTiM(variant, ["S2L2A"]).train()
    other = copy.deepcopy(model)
    add_lora(model, LoraSettings(rank=2))
    names = set(trained(model))
    assert len(names) == 2 * 2 * 2
    assert not any(name.startswith("sampler.") for name in names)
    model(images(["S2L2A"]))[-1].sum().backward()
    assert all(parameter.grad is not None for parameter in trained(model).values())
    state = model.state_dict()
    assert set(state) == {*names, "base_sha256", "tim_step"}
    model.unfreeze()
    assert set(trained(model)) == names
    model.load_state_dict(state)
    next(other.sampler.parameters()).data.add_(1)  # another generator is another base
    add_lora(other, LoraSettings(rank=2))
    with pytest.raises(WeightsError, match="adapters to other weights"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rnk": 4}, "no key 'rnk'. Did you mean 'rank'"),
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"rank": 1.5}, "rank must be"),
        ({"rank": True}, "rank must be"),
        ({"alpha": 0}, "alpha must be a number greater than 0"),
        ({"alpha": "much"}, "alpha must be"),
        ({"dropout": 1}, "dropout must be at least 0 and less than 1, got 1"),
        ({"dropout": -0.1}, "dropout must be"),
        ({"target": "attn"}, "unknown target 'attn'"),
        ({"target": "atention"}, "Did you mean 'attention'"),
        ("attention", "lora must hold rank, alpha, dropout, target"),
        (16, "Write backbone_lora: {rank: 16"),
    ],
)
def test_wrong_settings(given, message):
    with pytest.raises(ConfigError) as caught:
        build_backbone("terramind_v1_tiny", ["S2L2A"], lora=given)
    assert message in str(caught.value)


def test_forms_of_the_setting():
    assert read_settings(None) is None
    assert read_settings(False) is None
    assert read_settings(True) == LoraSettings()
    assert LoraSettings(rank=4).scaled_by == 8
    texts = {"rank": "8", "alpha": "4.0", "dropout": "0.1", "target": "mlp"}
    assert read_settings(texts) == LoraSettings(rank=8, alpha=4.0, dropout=0.1, target="mlp")


def test_misspelt_argument():
    for build in (build_backbone, build_tim):
        with pytest.raises(ConfigError, match="Did you mean 'lora'"):
            build("terramind_v1_tiny", ["S2L2A"], loar={"rank": 4})


def test_without_peft(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'terramind-plugin\[lora\]'"):
        add_lora(tiny(PAIR, depth=1), LoraSettings())
