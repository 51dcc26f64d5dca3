"""Published weights and local files."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from terramind_plugin.builders import build_backbone
from terramind_plugin.errors import ConfigError, WeightsError, WeightsNotFoundError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.model.weights import fetch_published, load_backbone, read_checkpoint

TINY = "terramind_v1_tiny"
NANO = "terramind_sim_nano"
PAIR = ["S2L2A", "S1GRD"]
S2_KEY = "encoder_embeddings.untok_sen2l2a@224.proj.weight"


@pytest.fixture(scope="module")
def published(backbones):
    """Return what a published file holds: an encoder with all modalities, and a decoder."""
    torch.manual_seed(5)
    pixels = [m.name for m in MODALITIES.values() if m.patch_key]
    tensors = dict(backbones.build(f"terratorch_{TINY}", modalities=pixels).state_dict())
    tensors["decoder.0.norm1.weight"] = torch.ones(192)
    tensors["decoder_embeddings.tok_dem@224.mod_emb"] = torch.zeros(1, 1, 192)
    tensors["encoder_embeddings.tok_lulc@224.token_emb.weight"] = torch.zeros(4375, 192)
    tensors["mask_token"] = torch.zeros(1, 1, 192)
    return tensors


@pytest.fixture(scope="module")
def hub(published, tmp_path_factory):
    """Return a hub cache with the published file of the tiny model."""
    cache = tmp_path_factory.mktemp("hub")
    folder = cache / "models--ibm-esa-geospatial--TerraMind-1.0-tiny"
    snapshot = folder / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(snapshot.name)
    torch.save(published, snapshot / "TerraMind_v1_tiny.pt")
    return cache


@pytest.fixture
def use_cache(monkeypatch):
    return lambda folder: monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))


@pytest.fixture
def file(published, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(published, path)
    return path


def assert_loaded(model, tensors):
    state = model.state_dict()
    assert state
    for name, value in state.items():
        assert torch.equal(value, tensors[name]), name


def test_pretrained(hub, use_cache, published):
    use_cache(hub)
    assert_loaded(build_backbone(TINY, PAIR, pretrained=True), published)


def test_pretrained_by_environment(hub):
    code = (
        "from terramind_plugin.builders import build_backbone as b\n"
        "print(b('terramind_v1_tiny', ['DEM'], pretrained=True).encoder_norm.weight.sum().item())"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert float(result.stdout) == 192, result.stderr


@pytest.mark.parametrize("variant", [v for v in VARIANTS.values() if v.hub_repo], ids=lambda v: v.name)
def test_offline_and_not_cached(use_cache, tmp_path, variant):
    use_cache(tmp_path)
    with pytest.raises(WeightsNotFoundError) as error:
        fetch_published(variant)
    message = str(error.value)
    for part in (variant.hub_repo, variant.hub_file, str(tmp_path), "backbone_ckpt_path", "backbone_pretrained: false"):
        assert part in message


def test_pretrained_and_not_cached(use_cache, tmp_path):
    use_cache(tmp_path)
    with pytest.raises(WeightsNotFoundError, match=f"weights of {TINY} are not on this machine"):
        build_backbone(TINY, PAIR, pretrained=True)


def test_file_goes_before_the_hub(use_cache, tmp_path, file, published):
    use_cache(tmp_path / "empty")
    assert_loaded(build_backbone(TINY, PAIR, pretrained=True, ckpt_path=file), published)


def test_neither(published):
    model = build_backbone(TINY, PAIR, pretrained=False)
    assert not torch.equal(model.encoder[0].mlp.fc1.weight, published["encoder.0.mlp.fc1.weight"])


@pytest.mark.parametrize("legacy", [False, True])
def test_pt(tmp_path, published, legacy):
    path = tmp_path / "model.pt"
    torch.save(published, path, _use_new_zipfile_serialization=not legacy)
    assert_loaded(build_backbone(TINY, PAIR, ckpt_path=str(path)), published)


def test_safetensors(tmp_path, published):
    path = tmp_path / "model.safetensors"
    save_file({name: value.clone() for name, value in published.items()}, path)
    assert_loaded(build_backbone(TINY, PAIR, ckpt_path=path), published)


@pytest.mark.parametrize("key", ["state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "model.encoder.", "module._orig_mod.model.encoder.encoder."])
def test_wrapped(tmp_path, published, key, prefix):
    path = tmp_path / "model.ckpt"
    wrapped = {prefix + name: value for name, value in published.items()}
    torch.save({key: {**wrapped, "model.head.weight": torch.zeros(1)}, "epoch": 3}, path)
    assert_loaded(build_backbone(TINY, PAIR, ckpt_path=path), published)


def test_the_generator_of_a_tim_model_is_not_taken(tmp_path, published):
    path = tmp_path / "model.ckpt"
    inner = {f"model.encoder.sampler.model.{name}": value + 1 for name, value in published.items()}
    outer = {f"model.encoder.{name}": value for name, value in published.items()}
    torch.save({"state_dict": {**inner, **outer}}, path)
    assert_loaded(build_backbone(TINY, PAIR, ckpt_path=path), published)


def test_half_precision(tmp_path, published):
    path = tmp_path / "model.pt"
    torch.save({name: value.bfloat16() for name, value in published.items()}, path)
    model = build_backbone(TINY, PAIR, ckpt_path=path)
    assert model.encoder[0].mlp.fc1.weight.dtype == torch.float32
    assert torch.allclose(model.encoder[0].mlp.fc1.weight, published["encoder.0.mlp.fc1.weight"], atol=1e-2)


def test_the_model_does_not_hold_the_file(tmp_path, published):
    path = tmp_path / "model.pt"
    torch.save(published, path)
    model = build_backbone(TINY, PAIR, ckpt_path=path)
    with torch.no_grad():
        model.encoder_norm.weight.add_(1)
    assert torch.equal(torch.load(path)["encoder_norm.weight"], published["encoder_norm.weight"])


def columns(weights, count):
    return weights.unflatten(1, (256, count))


@pytest.mark.parametrize("bands", [["RED", "B02", "GREEN"], ["B12"], list(reversed(MODALITIES["S2L2A"].band_names))])
def test_bands(file, published, bands):
    model = build_backbone(TINY, PAIR, ckpt_path=file, bands={"S2L2A": bands})
    got, full = columns(model.state_dict()[S2_KEY], len(bands)), columns(published[S2_KEY], 12)
    for channel, band in enumerate(bands):
        assert torch.equal(got[..., channel], full[..., MODALITIES["S2L2A"].band_index(band)])


def test_new_bands(file, published):
    bands = ["RED", "SLOPE", "BLUE"]
    torch.manual_seed(1)
    fresh = build_backbone(TINY, PAIR, bands={"S2L2A": bands}, new_bands=["SLOPE"]).state_dict()[S2_KEY]
    torch.manual_seed(1)
    model = build_backbone(TINY, PAIR, ckpt_path=file, bands={"S2L2A": bands}, new_bands=["SLOPE"])
    got, full = columns(model.state_dict()[S2_KEY], 3), columns(published[S2_KEY], 12)
    assert torch.equal(got[..., [0, 2]], full[..., [3, 1]])
    assert torch.equal(got[..., 1], columns(fresh, 3)[..., 1])


def test_new_modality(file):
    model = build_backbone(TINY, ["S2L2A", {"THERMAL": 2}])
    report = load_backbone(model, read_checkpoint(file))
    assert sorted(name.split(".")[-1] for name in report.fresh) == ["mod_emb", "pos_emb", "weight"]
    assert not report.missing


def test_register_and_missing_tokens_start_fresh(file):
    model = build_backbone(TINY, PAIR, merge_method="concat", num_register_tokens=2)
    report = load_backbone(model, read_checkpoint(file))
    assert set(report.fresh) == {"register_tokens", "missing_mod_token"}


@pytest.mark.parametrize(("value", "fresh"), [(0.5, False), (float("nan"), True), (float("inf"), True)])
def test_missing_token_of_a_checkpoint(tmp_path, published, value, fresh):
    path = tmp_path / "model.pt"
    torch.save({**published, "missing_mod_token": torch.full((192,), value)}, path)
    model = build_backbone(TINY, PAIR, merge_method="concat", ckpt_path=path)
    assert model.missing_mod_token.isfinite().all()
    assert bool((model.missing_mod_token == 0.5).all()) is not fresh


@pytest.mark.parametrize("size", [256, (224, 448), (112, 448)])
def test_positions_are_made_for_the_image_size(file, size):
    """A grid of 7 x 28 has as many positions as the stored one of 14 x 14."""
    model, fresh = build_backbone(TINY, PAIR, img_size=size, ckpt_path=file), build_backbone(TINY, PAIR, img_size=size)
    name = "encoder_embeddings.untok_sen1grd@224.pos_emb"
    assert torch.equal(model.state_dict()[name], fresh.state_dict()[name])


def test_missing_file(tmp_path):
    with pytest.raises(WeightsNotFoundError, match=r"Checkpoint not found: .*nowhere\.pt"):
        build_backbone(TINY, PAIR, ckpt_path=tmp_path / "nowhere.pt")


def test_missing_weights(tmp_path, published):
    path = tmp_path / "model.pt"
    torch.save({name: v for name, v in published.items() if not name.startswith("encoder.7.")}, path)
    with pytest.raises(WeightsError, match=r"missing \(10\): encoder\.7\.norm1\.weight.*and 2 more"):
        build_backbone(TINY, PAIR, ckpt_path=path)


def test_missing_modality(tmp_path, published):
    path = tmp_path / "model.pt"
    torch.save({name: v for name, v in published.items() if "sen1grd" not in name}, path)
    with pytest.raises(WeightsError, match=r"missing \(2\): encoder_embeddings.untok_sen1grd@224"):
        build_backbone(TINY, PAIR, ckpt_path=path)


def test_weights_of_another_size(file):
    with pytest.raises(WeightsError, match=r"\[192\] instead of \[384\](.|\n)*check the size of the backbone"):
        build_backbone("terramind_v1_small", PAIR, ckpt_path=file)


def test_nothing_is_loaded_on_error(tmp_path, published):
    path = tmp_path / "model.pt"
    torch.save({name: v for name, v in published.items() if not name.startswith("encoder.7.")}, path)
    model = build_backbone(TINY, PAIR)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError):
        load_backbone(model, read_checkpoint(path))
    assert_loaded(model, before)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.pt", b""),
        ("text.pt", b"<html>not found</html>"),
        ("zip.ckpt", b"PK\x03\x04 and then nothing"),
        ("empty.safetensors", b""),
        ("text.safetensors", b"<html>not found</html>"),
    ],
)
def test_corrupted(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{name} cannot be read as a checkpoint"):
        build_backbone(TINY, PAIR, ckpt_path=path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated(tmp_path, published, suffix):
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save(published, path)
    else:
        save_file({name: value.clone() for name, value in published.items()}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint"):
        build_backbone(TINY, PAIR, ckpt_path=path)


class Code:
    """Something that is neither a tensor nor a plain value."""


def test_code_is_not_run(tmp_path, published):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": published, "hyper_parameters": {"callback": Code()}}, path)
    with pytest.raises(WeightsError, match=r"Unsupported .*Code.*tensors and plain values only"):
        build_backbone(TINY, PAIR, ckpt_path=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, expected a mapping"),
        ({"state_dict": [1]}, "its state_dict is a list"),
        ({}, "holds no TerraMind encoder"),
        ({"layer.weight": torch.zeros(1), "x": torch.zeros(1)}, "none of its 2 names contains 'encoder_embeddings.'"),
        ({"layer.weight": torch.zeros(1), 3: torch.zeros(1)}, "a tensor is called 3, expected a text"),
    ],
)
def test_other_content(tmp_path, content, message):
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=message):
        build_backbone(TINY, PAIR, ckpt_path=path)


def test_pretrained_is_true_or_false():
    with pytest.raises(ConfigError, match=r"pretrained must be true or false, got 'model\.pt'"):
        build_backbone(TINY, PAIR, pretrained="model.pt")


def test_report(file, published, caplog):
    with caplog.at_level("INFO", logger="terramind_plugin"):
        model = build_backbone(TINY, PAIR, ckpt_path=file)
    loaded = len(model.state_dict())
    text = caplog.messages[-1]
    assert text == f"Weights from {file}: {loaded} loaded, {len(published) - loaded} of other parts not used"


def test_report_names_what_the_model_lacks(tmp_path, published):
    path = tmp_path / "model.pt"
    torch.save({**published, "encoder.0.attn.extra": torch.zeros(1)}, path)
    report = load_backbone(build_backbone(TINY, PAIR), read_checkpoint(path))
    assert report.unexpected == ["encoder.0.attn.extra"]
    assert "unexpected (1): encoder.0.attn.extra" in str(report)


QUICK = ["hyper_parameters: list", "hyper_parameters: text", "model_args: text", "backbone_bands: number"]
QUICK += ["state_dict: none", "state_dict: by module", "entry: none", "name: number", "matrix: sparse", "matrix: meta"]
QUICK += ["matrix: quantised", "matrix: complex", "matrix: int64", "matrix: boolean", "norm: one NaN", "norm: one -inf"]
QUICK += ["norm: float16 overflow", "matrix: no elements", "norm: no dimension", "bytes: pickle that pops nothing.ckpt"]
QUICK += ["bits turned: 1", "archive: short members", "archive: compressed", "header: unknown type", "cut: 90 %"]
QUICK += ["path: folder", "path: pipe", "path: link to itself", "path: name too long", "names: a million letters long"]


@pytest.mark.parametrize("kind", QUICK)
def test_malformed(kind, tmp_path):
    """The whole family at every entry: tests/attacks."""
    from tests.attacks.malformed import KINDS

    state = {f"model.{name}": value for name, value in build_backbone(NANO, ["S2L2A"]).state_dict().items()}
    path = KINDS[kind]({"state_dict": state, "hyper_parameters": {}}, tmp_path)
    with pytest.raises(WeightsError) as error:
        build_backbone(NANO, ["S2L2A"], ckpt_path=path)
    assert path.name[:100] in str(error.value)
    assert len(str(error.value)) < 3000


def test_where_weights_are_not_finite(tmp_path):
    weights = build_backbone(NANO, ["S2L2A"]).state_dict()
    weights["encoder.2.norm1.weight"] = weights["encoder.2.norm1.weight"].half()
    weights["encoder.2.norm1.weight"][3:6] = float("inf")
    weights["encoder.4.attn.qkv.weight"][5, 7] = float("nan")
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(WeightsError) as error:
        build_backbone(NANO, ["S2L2A"], ckpt_path=tmp_path / "model.pt")
    message = str(error.value)
    assert f"{tmp_path / 'model.pt'}: 3 of 128 values of encoder.2.norm1.weight are NaN or infinite" in message
    assert "and so are values of 1 further tensors" in message
    assert "use an earlier checkpoint" in message
