"""What --model takes: a registry name, a file, a repository on the hub."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from terramind_plugin.builders import build_backbone
from terramind_plugin.errors import ConfigError, WeightsError, WeightsNotFoundError
from terramind_plugin.model.download import SHIPPED
from terramind_plugin.model.lookup import look_up_model
from terramind_plugin.model.variants import VARIANTS

TINY = VARIANTS["terramind_v1_tiny"]
NANO = VARIANTS["terramind_sim_nano"]
COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def weights():
    return build_backbone(TINY.name, modalities=["S1GRD"], pretrained=False).state_dict()


@pytest.fixture
def hub(monkeypatch, tmp_path, weights):
    """Return a function that puts a repository with some files of weights into the hub's cache."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def add(repo, *names):
        folder = cache / f"models--{repo.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(COMMIT)
        for name in names:
            path = folder / "snapshots" / COMMIT / name
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(weights, path) if path.suffix == ".pt" else save_file(weights, path)
        return folder / "snapshots" / COMMIT

    return add


def test_a_registry_name():
    assert look_up_model(TINY.name) == (TINY, None)
    assert look_up_model(NANO.name, Path("a.pt")) == (NANO, Path("a.pt"))


@pytest.mark.parametrize("name", ["terramind_v1_bas", "terramind_v1_base_generate", "base"])
def test_an_unknown_name(name):
    with pytest.raises(ConfigError, match=r"There is no model '.*--model takes one of .*ORG/NAME") as caught:
        look_up_model(name)
    assert "Did you mean 'terramind_v1_base'?" in str(caught.value)


def test_a_file_of_weights_tells_its_size(weights, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": {f"model.encoder.{name}": value for name, value in weights.items()}}, path)
    assert look_up_model(str(path)) == (TINY, path)
    shipped = SHIPPED / NANO.hub_file
    assert look_up_model(str(shipped)) == (NANO, shipped)
    with pytest.raises(ConfigError, match=r"Both --model .* and --ckpt_path other\.pt name weights"):
        look_up_model(str(path), Path("other.pt"))


def test_the_settings_of_a_lightning_checkpoint_name_the_model(weights, tmp_path):
    path = tmp_path / "fitted.ckpt"
    settings = {"model_args": {"backbone": "terratorch_terramind_v1_small_tim"}}
    torch.save({"state_dict": weights, "hyper_parameters": settings}, path)
    assert look_up_model(str(path))[0].name == "terramind_v1_small"


def test_files_that_are_no_model(weights, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({name: value for name, value in weights.items() if not name.startswith("encoder.11.")}, path)
    with pytest.raises(WeightsError, match="holds an encoder of 11 blocks and width 192, which is not a known size"):
        look_up_model(str(path))
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match="holds no TerraMind encoder"):
        look_up_model(str(path))
    with pytest.raises(WeightsNotFoundError, match="Checkpoint not found"):
        look_up_model(str(tmp_path / "none.ckpt"))


def test_a_repository_on_the_hub_without_network(hub):
    folder = hub("somebody/terramind-floods", "floods.safetensors")
    assert look_up_model("hub:somebody/terramind-floods") == (TINY, folder / "floods.safetensors")
    published = hub(TINY.hub_repo, "other.pt", TINY.hub_file)
    assert look_up_model(f"hub:{TINY.hub_repo}") == (TINY, published / TINY.hub_file)
    hub("somebody/two", "a.pt", "b.pt")
    with pytest.raises(ConfigError, match=r"holds 2 files of weights: a\.pt, b\.pt"):
        look_up_model("hub:somebody/two")
    hub("somebody/both", "a.pt", "a.safetensors")
    assert look_up_model("hub:somebody/both")[1].name == "a.safetensors"
    with pytest.raises(WeightsNotFoundError, match="somebody/nothing is not on this machine and could not be listed"):
        look_up_model("hub:somebody/nothing")
    for name in ("hub:somebody", "hub:/x", "hub:a/b/c"):
        with pytest.raises(ConfigError, match="names no repository: write hub:ORG/NAME"):
            look_up_model(name)
