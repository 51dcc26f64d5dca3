"""Checkpoints that earlier versions wrote: names, digests and settings are restated here."""

import hashlib

import pytest
import torch

from terramind_plugin.builders import build_backbone, build_tim
from terramind_plugin.export.merge import merge_checkpoint

NANO, NAMES = "terramind_sim_nano", ["S2L2A", "S1GRD"]
LORA = {"rank": 2, "target": "attention"}


def digest_of(tensors, *, typed):
    """Return SHA-256 as it is stored in checkpoints: with shapes and types for LoRA, without for a generator."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach()
        digest.update((f"{name} {list(value.shape)} {value.dtype} " if typed else name).encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.digest()


def stored(digest):
    return torch.tensor(list(digest), dtype=torch.uint8)


@pytest.fixture
def chips(images):
    return images(NAMES, 2, 32, 32)


def block(index):
    yield from (f"encoder.{index}.{norm}.{part}" for norm in ("norm1", "norm2") for part in ("weight", "bias"))
    yield from (f"encoder.{index}.attn.{part}.weight" for part in ("qkv", "proj"))
    yield from (f"encoder.{index}.mlp.{part}.weight" for part in ("fc1", "fc2", "fc3"))


def test_names_of_a_backbone():
    model = build_backbone(NANO, NAMES, merge_method="concat", num_register_tokens=1)
    embeddings = [
        f"encoder_embeddings.{key}.{part}"
        for key in ("untok_sen2l2a@224", "untok_sen1grd@224")
        for part in ("pos_emb", "mod_emb", "proj.weight")
    ]
    others = ["encoder_norm.weight", "encoder_norm.bias", "register_tokens", "missing_mod_token"]
    assert set(model.state_dict()) == {*embeddings, *others, *(name for index in range(6) for name in block(index))}


def test_names_of_a_thinking_model():
    model = build_tim(NANO, NAMES, tim_modalities=["NDVI", "LULC"], tim_observed=["LULC"])
    first = {name.split(".")[0] for name in model.state_dict()}
    assert first == {"encoder", "encoder_embeddings", "encoder_norm", "sampler", "given_tokens"}
    names = {
        "sampler.model.mask_token",
        "sampler.model.decoder.0.cross_attn.kv.weight",
        "sampler.model.decoder_embeddings.tok_ndvi@224.to_logits.weight",
        "sampler.model.encoder_embeddings.tok_lulc@224.token_emb.weight",
        "given_tokens.tok_lulc@224.quant_proj.weight",
        "encoder_embeddings.tok_ndvi@224.token_emb.weight",
    }
    assert names <= set(model.state_dict())


def test_adapters(chips, tmp_path):
    """They load, and settings with former names do not keep them from being merged."""
    torch.manual_seed(1)
    base = build_backbone(NANO, NAMES)
    torch.save(base.state_dict(), tmp_path / "base.pt")
    weights = {name: x for name, x in base.state_dict().items() if not name.endswith("pos_emb")}
    trained = build_backbone(NANO, NAMES, ckpt_path=tmp_path / "base.pt", lora=LORA)
    adapters = {name: 0.1 * torch.randn_like(x) for name, x in trained.named_parameters() if ".lora_" in name}
    assert set(adapters) == {
        f"encoder.{index}.attn.{layer}.lora_{part}.default.weight"
        for index in range(6)
        for layer in ("qkv", "proj")
        for part in "AB"
    }
    former = {**adapters, "base_sha256": stored(digest_of(weights, typed=True))}
    trained.load_state_dict(former)
    settings = {
        "backbone": NANO,
        "backbone_modalities": NAMES,
        "backbone_lora": LORA,
        "backbone_ckpt_path": str(tmp_path / "base.pt"),
        "backbone_feature_memo": None,
        "backbone_feature_memo_gib": 3.0,
    }
    content = {
        "state_dict": {f"model.encoder.{name}": x for name, x in former.items()},
        "hyper_parameters": {"model_args": settings},
    }
    torch.save(content, tmp_path / "adapters.ckpt")
    assert merge_checkpoint(tmp_path / "adapters.ckpt", tmp_path / "merged.ckpt") == 12
    merged = build_backbone(NANO, NAMES, ckpt_path=tmp_path / "merged.ckpt").eval()
    torch.testing.assert_close(merged(chips)[-1], trained.eval()(chips)[-1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("observed", [[], ["LULC"]])
def test_a_thinking_model_without_its_generator(chips, observed):
    arguments = {"tim_modalities": ["NDVI", "LULC"], "tim_observed": observed, "tim_store_generator": False}
    first, second = (build_tim(NANO, NAMES, **arguments).eval() for _ in range(2))
    parts = [first.sampler, *([first.given_tokens] if observed else [])]
    second.sampler.load_state_dict(first.sampler.state_dict())
    if observed:
        second.given_tokens.load_state_dict(first.given_tokens.state_dict())
        chips = {**chips, "LULC": torch.ones(2, 1, 32, 32, dtype=torch.long)}
    digests = [digest_of(part.state_dict(), typed=False) for part in parts]
    fingerprint = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
    frozen = ("sampler.", "given_tokens.")
    former = {name: x for name, x in first.state_dict().items() if not name.startswith(frozen)}
    former |= {"generator_sha256": stored(fingerprint), "tim_step": torch.tensor(7)}
    second.load_state_dict(former)
    assert second.step == 7
    assert torch.equal(second(chips)[-1], first(chips)[-1])
