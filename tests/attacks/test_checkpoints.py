"""Malformed checkpoints at every entry: refused with a message that names the file, never loaded as something else."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file

from terramind_plugin.builders import build_backbone, build_generator, build_image_tokenizer, build_tim
from terramind_plugin.errors import ConfigError, WeightsError
from terramind_plugin.export.merge import merge_checkpoint
from terramind_plugin.export.weights import export_weights
from tests.attacks.malformed import KINDS, WHOLE
from tests.conftest import one_thread

NANO = "terramind_sim_nano"
LULC = f"{NANO}_tokenizer_lulc"
RANDOM = "its tokenizer has random weights"
"""What a generator says of a file without tokenizers."""


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def sound():
    """Return a sound checkpoint of a task with a generator, its tokenizer, and nothing else."""
    torch.manual_seed(0)
    model = build_generator(NANO, ["S2L2A", "LULC"], ["LULC"])
    state = {f"model.{name}": value + 0.01 * torch.rand(()) for name, value in model.state_dict().items()}
    return {"state_dict": state, "hyper_parameters": {"model_args": {}}, "pytorch-lightning_version": "2.6.0"}


@pytest.fixture(scope="module")
def adapted(sound, tmp_path_factory):
    """Return a sound checkpoint of adapters."""
    base = tmp_path_factory.mktemp("base") / "base.pt"
    torch.save(sound["state_dict"], base)
    settings = {"lora": {"rank": 2}, "ckpt_path": str(base), "modalities": ["S2L2A"]}
    model = build_backbone(NANO, **settings)
    state = {f"model.encoder.{name}": value.clone() for name, value in model.state_dict().items()}
    for name in [name for name in state if "lora_B" in name]:
        state[name] += 0.5
    arguments = {"backbone": NANO, **{f"backbone_{name}": value for name, value in settings.items()}}
    return {"state_dict": state, "hyper_parameters": {"model_args": arguments}, "pytorch-lightning_version": "2.6.0"}


def backbone(path, folder):
    return build_backbone(NANO, ["S2L2A"], ckpt_path=path).state_dict()


def tim(path, folder):
    return build_tim(NANO, ["S2L2A"], tim_modalities=["LULC"], ckpt_path=path).state_dict()


def given_tim(path, folder):
    made = build_tim(NANO, ["S2L2A"], tim_modalities=["LULC"], tim_observed=["LULC"], ckpt_path=path)
    return made.state_dict()


def generator(path, folder):
    return build_generator(NANO, ["S2L2A", "LULC"], ["LULC"], ckpt_path=path).state_dict()


def tokenizer(path, folder):
    return build_image_tokenizer(LULC, ckpt_path=path).state_dict()


def tokenizer_of_a_generator(path, folder):
    made = build_generator(NANO, ["S2L2A", "LULC"], ["LULC"], tokenizer_ckpt_paths={"LULC": path})
    return {f"tokenizer.{key}": x for key, x in made.tokenizer.state_dict().items()}


def export(path, folder):
    out = folder / "out.safetensors"
    try:
        export_weights(path, out)
    except (ConfigError, WeightsError):
        assert not out.exists()
        raise
    return load_file(out)


def merge(path, folder):
    out = folder / "merged.ckpt"
    try:
        merge_checkpoint(path, out)
    except (ConfigError, WeightsError):
        assert not out.exists()
        raise
    return torch.load(out, weights_only=True)["state_dict"]


ENTRIES = [backbone, tim, given_tim, generator, tokenizer, tokenizer_of_a_generator, export, merge]


@pytest.fixture(scope="module")
def wanted(sound, adapted, tmp_path_factory):
    """Return by entry what it makes of the sound checkpoint."""
    made = {}
    for entry in ENTRIES:
        folder = tmp_path_factory.mktemp(entry.__name__)
        torch.save(adapted if entry is merge else sound, folder / "sound.ckpt")
        torch.manual_seed(1)
        made[entry] = entry(folder / "sound.ckpt", folder)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_a_malformed_checkpoint(entry, kind, sound, adapted, wanted, tmp_path, caplog):
    path = KINDS[kind](adapted if entry is merge else sound, tmp_path)
    torch.manual_seed(2)
    try:
        with caplog.at_level(logging.WARNING):
            made = entry(path, tmp_path)
    except (ConfigError, WeightsError) as error:
        message = str(error)
        assert kind not in WHOLE or "give the" in message, message  # merge cannot do without settings
        assert len(message) < 4000
        assert "x" * 300 not in message.replace(str(path), "")
        assert path.name in message or kind == "path: name too long", message
        return
    if entry is not export:  # which knows no model, and writes the names that it finds
        assert not set(wanted[entry]) - set(made)
    for name in set(made) & set(wanted[entry]):
        value, want = made[name], wanted[entry][name]
        same = value.shape == want.shape and torch.allclose(value.double(), want.double(), rtol=1e-6, atol=0)
        assert same or (entry is export and value.shape != want.shape) or RANDOM in caplog.text, name
