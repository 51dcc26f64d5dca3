"""Configurations of pre-training: their files, values and stored tokens are checked."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import constants

from terramind_plugin.check.build import check_vocabulary
from terramind_plugin.check.run import check
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.pretrain.token_store import Recipe, StoredChip, write_tokens
from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.samples.layout import ChipFolder
from tests.check.spoiling import rewrite
from tests.hub import cached_file
from tests.runs.running import REPOSITORY

NANO = "terramind_sim_nano"
ENDINGS = {"S2L2A": "_S2L2AHand.tif", "S1GRD": "_S1Hand.tif", "DEM": "_DEMHand.tif"}
Look = Callable[..., list[Finding]]


@pytest.fixture
def look(chips: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Return a function that checks a configuration of configs/pretrain on twelve chips where it looks for them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "worlds").symlink_to(chips.root)

    def run(name: str, *, step: bool = False, **changes: Any) -> list[Finding]:
        config = yaml.safe_load((REPOSITORY / "configs" / "pretrain" / name).read_text())
        config["data"]["init_args"] |= {"batch_size": 4, **changes}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        return check(tmp_path / "config.yaml", [], step=step)

    return run


def wrong(found: list[Finding]) -> list[str]:
    return [str(finding) for finding in found if finding.verdict in ("error", "warning")]


def heights(chips: Any) -> list[Path]:
    return sorted((chips.root / "data" / "DEMHand").iterdir())


def test_a_sound_tokenizer_configuration(look: Look) -> None:
    found = look("tokenizer_dem.yaml", step=True)
    assert wrong(found) == []
    rows = {finding.check: finding for finding in found}
    assert rows["files"].seen == "10 files of 8 train, 2 val samples listed, headers read."
    assert rows["run: step"].verdict == "ok"


def feet(chips: Any) -> None:
    for path in heights(chips):
        rewrite(path, lambda values: values * np.float32(20 / 0.3048))


def remove(chips: Any) -> None:
    (chips.root / "data" / "DEMHand" / f"{chips.splits['train'][0]}_DEMHand.tif").unlink()


MISTAKES: dict[str, tuple[Callable[[Any], Any], dict[str, Any], str]] = {
    "file missing": (remove, {}, r"files: train split: 1 of 8 ids lack a file .*\(DEM\). Check folders and suffixes"),
    "suffix": (lambda chips: None, {"suffix": "_DEM.tif"}, "files: train split: 8 of 8 ids lack a file"),
    "folder": (lambda chips: None, {"folder": "nowhere"}, "files: folders: DEM: nowhere does not exist"),
    "crop": (lambda chips: None, {"crop": 128}, r"files: size: 10 of 10 files are smaller than 128 x 128 .*lower crop"),
    "no lists": (lambda chips: None, {"train_split": None, "val_split": None, "batch_size": 16},
                 "files: train split: 11 samples do not fill one batch of 16"),
    "bands": (lambda chips: rewrite(heights(chips)[0], lambda v: np.repeat(v, 2, axis=0)), {"train_split": None,
              "val_split": None}, "files: DEM bands: 1 of 12 files do not have 1 band.*Change the files: pre-training"),
    "feet": (feet, {}, "values: DEM heights: heights up to .* look like feet"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_tokenizer_data_is_named(mistake: str, look: Look, chips: Any) -> None:
    spoil, changes, text = MISTAKES[mistake]
    spoil(chips)
    found = wrong(look("tokenizer_dem.yaml", **changes))
    assert any(re.match(text, one) for one in found), found


@pytest.fixture
def store(chips: Any, look: Look) -> Callable[..., dict[str, Any]]:
    """Return a function that stores tokens of all chips and gives the arguments that read them."""

    def make(tokenizer: str = NANO) -> dict[str, Any]:
        folders = {name: f"nano/worlds/data/{name}Hand" for name in ENDINGS}
        for name, ending in ENDINGS.items():
            folder = ChipFolder(MODALITIES[name], Path(folders[name]), ending)
            stored = [StoredChip.describe(folder.path(chip), chip, 1, 1) for chip in folder.names()]
            recipe = Recipe(f"{tokenizer}_tokenizer_{name.lower()}", "0" * 64, 64, 1)
            write_tokens(Path("nano/tokens", f"{name}.safetensors"), np.zeros((12, 1, 8, 8), np.uint16), recipe, stored)
        return {"folders": folders, "suffixes": ENDINGS, "tokens": list(ENDINGS)}

    return make


def test_stored_tokens_of_sound_chips(look: Look, store: Callable[..., dict[str, Any]]) -> None:
    found = look("masked_nano.yaml", **store())
    assert wrong(found) == []
    rows = {finding.check: finding.seen for finding in found}
    assert rows["tokens"] == "S2L2A, S1GRD, DEM: 8 tiles for training."
    assert rows["files"] == "30 files of 8 train, 2 val samples listed, headers read."


def test_mistakes_in_stored_tokens_are_named(look: Look, store: Callable[..., dict[str, Any]], chips: Any) -> None:
    given = store()
    assert wrong(look("masked_nano.yaml", **given | {"batch_size": 9})) == [
        "tokens: tiles: 8 tiles for training do not fill one batch of 9: no training step. Lower batch_size."
    ]
    changed = chips.root / "data" / "DEMHand" / f"{chips.splits['valid'][0]}_DEMHand.tif"
    rewrite(changed, lambda values: values + 1)
    shutil.copy("nano/tokens/S1GRD.safetensors", "nano/tokens/S1RTC.safetensors")
    (error, other) = wrong(look("masked_nano.yaml", **given | {"tokens": ["S2L2A", "DEM", "S1RTC"]}))
    assert error.startswith("tokens: DEM: nano/tokens/DEM.safetensors is out of date: 1 file has changed")
    assert "was made with terramind_sim_nano_tokenizer_s1grd, not a tokenizer of terramind_sim_nano" in other
    Path("nano/tokens/DEM.safetensors").unlink()
    (error,) = wrong(look("masked_nano.yaml", **given))
    assert error.startswith("tokens: DEM: nano/tokens/DEM.safetensors is not there. Make it: terramind tokenize")


@pytest.mark.parametrize(("offline", "verdict"), [(True, "error"), (False, "note")])
def test_the_vocabulary_of_coordinates(
    offline: bool, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocabulary: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    masked = SimpleNamespace(has_coords=True, variant=VARIANTS["terramind_v1_tiny"])
    arguments = {"backbone": "terramind_v1_tiny", "backbone_pretrained": True, "backbone_modalities": ["S2L2A"]}

    def found(datamodule: object = None, **changes: object) -> list[str]:
        config = {"model": {"init_args": {"model_args": {**arguments, **changes}}}}
        return [f"{finding.verdict}: {finding.seen}" for finding in check_vocabulary(config, datamodule)]

    (said,) = found(masked)
    assert said.startswith(f"{verdict}: config.json of https://huggingface.co/ibm-esa-geospatial/")
    assert found(backbone_modalities=["S2L2A", "coords"]) == [said]
    assert found(backbone_modalities=["S2L2A", "coords"], backbone_pretrained=False) == []
    assert found() == found(SimpleNamespace(has_coords=True, variant=VARIANTS[NANO])) == []
    repository = "ibm-esa-geospatial/TerraMind-1.0-Tokenizer-Coords"
    shutil.copy(vocabulary, cached_file(tmp_path, repository, "config.json"))
    assert found(masked) == []
