"""Registered names, weights from the hub and from files."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

from terramind_plugin.builders import build_image_tokenizer
from terramind_plugin.errors import ConfigError, WeightsError, WeightsNotFoundError
from terramind_plugin.tokenizers.image import ImageTokenizer
from terramind_plugin.tokenizers.variants import TOKENIZERS
from terramind_plugin.tokenizers.weights import load_tokenizer

DEM = "terramind_v1_tokenizer_dem"


@pytest.fixture
def fresh(variant):
    """Return a small tokenizer with other weights than those in the files."""
    return partial(lambda modality, **parts: ImageTokenizer(variant(modality), **parts))


def assert_loaded(model, tensors):
    for name, value in model.state_dict().items():
        assert torch.equal(value, tensors[name]), name


@pytest.mark.parametrize("modality", ["DEM", "LULC"])
@pytest.mark.parametrize("parts", [{}, {"decoder": False}, {"encoder": False}], ids=["whole", "encoder", "decoder"])
def test_parts_of_a_file(small, fresh, tmp_path, modality, parts):
    tensors = small(modality).state_dict()
    torch.save(tensors, tmp_path / "model.pt")
    model = fresh(modality, **parts)
    report = load_tokenizer(model, tmp_path / "model.pt")
    assert_loaded(model, tensors)
    assert report.unused == len(tensors) - len(model.state_dict())
    assert not report.unexpected


@pytest.mark.parametrize("prefix", ["", "model.", "generator.tokenizer.tok_dem@224."])
def test_wrapped(small, fresh, tmp_path, prefix):
    tensors = small("DEM").state_dict()
    wrapped = {prefix + name: value for name, value in tensors.items()} | {"other.quant": torch.zeros(1)}
    torch.save({"state_dict": wrapped}, tmp_path / "model.ckpt")
    model = fresh("DEM")
    load_tokenizer(model, tmp_path / "model.ckpt")
    assert_loaded(model, tensors)


def test_one_of_several(small, fresh, tmp_path):
    tensors = {}
    for modality in ("S1GRD", "DEM"):
        prefix = f"tokenizer.{TOKENIZERS[f'terramind_v1_tokenizer_{modality.lower()}'].modality.token_key}."
        tensors |= {prefix + name: value for name, value in small(modality).state_dict().items()}
    torch.save(tensors, tmp_path / "model.pt")
    model = fresh("DEM")
    load_tokenizer(model, tmp_path / "model.pt")
    assert_loaded(model, small("DEM").state_dict())
    with pytest.raises(WeightsError, match="several tokenizers and none is called tok_ndvi@224"):
        load_tokenizer(fresh("NDVI"), tmp_path / "model.pt")


def test_decoder_beside_the_encoder_of_another(small, fresh, tmp_path):
    tensors = {f"tokenizer.tok_sen1grd@224.{k}": v for k, v in small("S1GRD", decoder=False).state_dict().items()}
    dem = small("DEM", encoder=False).state_dict()
    torch.save(tensors | {f"tokenizer.tok_dem@224.{k}": v for k, v in dem.items()}, tmp_path / "model.pt")
    model = fresh("DEM", encoder=False)
    load_tokenizer(model, tmp_path / "model.pt")
    assert_loaded(model, dem)


def test_safetensors(small, fresh, tmp_path):
    tensors = small("DEM").state_dict()
    save_file(tensors, tmp_path / "model.safetensors")
    model = fresh("DEM")
    load_tokenizer(model, tmp_path / "model.safetensors")
    assert_loaded(model, tensors)


def test_another_modality(small, fresh, tmp_path):
    torch.save(small("S1GRD").state_dict(), tmp_path / "model.pt")
    with pytest.raises(WeightsError) as error:
        load_tokenizer(fresh("DEM"), tmp_path / "model.pt")
    assert "[48, 2, 16, 16] instead of [48, 1, 16, 16]" in str(error.value)
    assert "another modality" in str(error.value)


def test_missing_weight(small, fresh, tmp_path):
    tensors = small("DEM").state_dict()
    del tensors["decoder.out.2.weight"]
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"missing \(1\): decoder.out.2.weight"):
        load_tokenizer(fresh("DEM"), tmp_path / "model.pt")


def test_unexpected_weight(small, fresh, tmp_path):
    tensors = small("DEM").state_dict() | {"encoder.cls_emb": torch.zeros(3)}
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"unexpected \(1\): encoder.cls_emb"):
        load_tokenizer(fresh("DEM"), tmp_path / "model.pt")


def test_no_tokenizer_in_the_file(fresh, tmp_path):
    torch.save({"encoder.0.weight": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="holds no image tokenizer"):
        load_tokenizer(fresh("DEM"), tmp_path / "model.pt")


def test_no_file(fresh, tmp_path):
    with pytest.raises(WeightsNotFoundError, match="Check ckpt_path"):
        load_tokenizer(fresh("DEM"), tmp_path / "model.pt")


def test_weights_are_not_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsNotFoundError) as error:
        build_image_tokenizer(DEM, pretrained=True)
    repo = "ibm-esa-geospatial/TerraMind-1.0-Tokenizer-DEM"
    for part in ("TerraMind_Tokenizer_DEM.pt", repo, str(tmp_path), "ckpt_path", "pretrained: false"):
        assert part in str(error.value)


@pytest.mark.parametrize("name", [name for name, variant in TOKENIZERS.items() if variant.hub_repo])
def test_registered(models, name):
    assert models.find_class(name).__module__ == "terramind_plugin.integration.registry"
    assert models.find_class(f"terratorch_{name}").__module__.startswith("terratorch")


def test_what_we_do_not_have_is_terratorchs(models):
    name = "terramind_v01_tokenizer_dem"
    assert models.find_class(name).__module__.startswith("terratorch")


def test_encoder_from_the_registry(models, tmp_path):
    model = models.build(DEM, decoder=False)
    assert not model.training
    assert model.decoder is None
    assert sum(parameter.numel() for parameter in model.parameters()) < 90e6
    assert model.image_size == 256
    torch.save(model.state_dict(), tmp_path / "encoder.pt")
    again = models.build(DEM, decoder=False, ckpt_path=str(tmp_path / "encoder.pt"))
    assert_loaded(again, model.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": "model.pt"}, "true or false, got 'model.pt'"),
        ({"decoder": 1}, "decoder of .* must be true or false"),
    ],
)
def test_wrong_argument(arguments, message):
    with pytest.raises(ConfigError, match=message):
        build_image_tokenizer(DEM, **arguments)


def test_arguments_from_a_command_line():
    model = build_image_tokenizer(DEM, pretrained="false", decoder="false")
    assert model.decoder is None


def test_unknown_name():
    with pytest.raises(ConfigError, match="Did you mean 'terramind_v1_tokenizer_lulc'"):
        build_image_tokenizer("terramind_v1_tokenizer_luc")


def test_diffusers_waits_until_it_is_needed():
    code = (
        "import sys, torch\n"
        "from terramind_plugin.builders import build_image_tokenizer\n"
        "model = build_image_tokenizer('terramind_v1_tokenizer_dem', decoder=False)\n"
        "model.tokenize(torch.zeros(1, 1, 32, 32))\n"
        "print([name for name in ('diffusers', 'tokenizers', 'terratorch', 'lightning') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
