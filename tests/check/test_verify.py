"""`terramind verify`: published weights through TerraTorch's loader and through ours."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from terramind_plugin.check.verify import Agreement
from terramind_plugin.cli import main
from terramind_plugin.model.variants import VARIANTS
from tests.hub import cached_file, save_published_names

TINY = VARIANTS["terramind_v1_tiny"]
CHIPS = Path(__file__).parents[3] / "shared" / "data" / "terramesh"


def use_cache(monkeypatch, folder):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Return a hub cache with random weights under the published names: the tiny model, two tokenizers."""
    cache = tmp_path_factory.mktemp("hub")
    save_published_names(cache)
    yield cache
    shutil.rmtree(cache)


WORDS = ["verify", "--model", TINY.name, "--tokenizers", "LULC,coords"]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["random", "chip"])
def test_both_loaders_agree(hub, monkeypatch, capsys, data):
    use_cache(monkeypatch, hub)
    if data == "chip" and not CHIPS.is_dir():
        pytest.skip(f"the real chips are not at {CHIPS}")
    random = torch.random.get_rng_state()
    assert main([*WORDS, *(["--data", str(CHIPS)] if data == "chip" else [])]) == 0
    assert torch.equal(random, torch.random.get_rng_state())
    out = capsys.readouterr().out
    assert out.count("same") == 5
    assert out.count("38D_378R_2_3.tif" if data == "chip" else "random") == 4
    for what in (TINY.name, f"{TINY.name}_generate", "terramind_v1_tokenizer_lulc", "terramind_v1_coords_tokenizer"):
        assert what in out


@pytest.mark.slow
def test_a_file_that_terratorch_fills_with_random_weights(hub, monkeypatch, tmp_path, capsys):
    """Its loader warns of a weight that is missing; here it is an error."""
    cache = tmp_path / "hub"
    weights = torch.load(next(hub.rglob(TINY.hub_file)))
    del weights["encoder.3.attn.qkv.weight"]
    torch.save(weights, cached_file(cache, TINY.hub_repo, TINY.hub_file))
    use_cache(monkeypatch, cache)
    assert main(["verify", "--model", TINY.name, "--tokenizers", ""]) == 2
    assert "missing (1): encoder.3.attn.qkv.weight" in capsys.readouterr().err


def test_weights_that_are_not_there(monkeypatch, tmp_path, capsys):
    use_cache(monkeypatch, tmp_path)
    assert main(["verify", "--model", TINY.name]) == 2
    error = capsys.readouterr().err
    assert f"hf download {TINY.hub_repo} {TINY.hub_file}" in error
    assert str(tmp_path) in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "terramind_v1_tinny"], "is not a published model. Did you mean 'terramind_v1_tiny'?"),
        (["--model", "terramind_sim_nano"], "is not a published model"),
        (["--tokenizers", "S2L1C"], "'S2L1C' has no tokenizer"),
        (["--data", "nowhere"], "There is no folder nowhere"),
    ],
)
def test_wrong_words(words, message, capsys):
    assert main(["verify", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_chips(tmp_path, capsys):
    (tmp_path / "S2L2A").mkdir()
    assert main(["verify", "--data", str(tmp_path)]) == 2
    assert "holds no chip: expected a folder for each modality" in capsys.readouterr().err


@pytest.mark.parametrize(("difference", "same"), [(0.0, True), (1e-4, True), (2e-4, False), (float("nan"), False)])
def test_what_counts_as_the_same(difference, same):
    assert Agreement("", "", "", difference, 1e-4).same is same


@pytest.mark.network
@pytest.mark.parametrize("size", ["tiny", "base"])
def test_published_files(size, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    data = ["--data", str(CHIPS)] if CHIPS.is_dir() else []
    tokenizers = [] if size == "tiny" else ["--tokenizers", "LULC"]  # both sizes use the same tokenizers
    assert main(["verify", "--model", f"terramind_v1_{size}", *tokenizers, *data]) == 0, capsys.readouterr().out
