"""The small variant: numbers that fit each other, a vocabulary that ships, models that build."""

from __future__ import annotations

import math

import numpy as np
import pytest
import rasterio
import torch

from terramind_plugin.builders import (
    build_backbone,
    build_coords_tokenizer,
    build_generator,
    build_image_tokenizer,
    build_tim,
)
from terramind_plugin.cli import main
from terramind_plugin.errors import ConfigError, WeightsNotFoundError
from terramind_plugin.model.download import SHIPPED
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.simulation.dataset import WORLDS, chip_files, simulate, simulate_chip
from terramind_plugin.tokenizers.coordinates import build_coords_vocabulary
from terramind_plugin.tokenizers.variants import tokenizers_of

NANO = "terramind_sim_nano"


def test_codebooks():
    tokenizers = tokenizers_of(NANO)
    assert set(tokenizers) == {"S2L2A", "S1GRD", "S1RTC", "DEM", "LULC", "NDVI"}
    for name, variant in tokenizers.items():
        assert math.prod(variant.levels) == VARIANTS[NANO].vocab_sizes[name] <= 1024
        assert variant.patch_size == VARIANTS[NANO].patch_size


def test_vocabulary_that_ships_is_the_one_that_is_built():
    built = build_coords_vocabulary(degrees=5, sentinels=12)
    assert built.to_str(pretty=True) == (SHIPPED / f"{NANO}_coords.json").read_text()
    count = built.get_vocab_size()
    assert count == VARIANTS[NANO].vocab_sizes["coords"]
    coords = build_coords_tokenizer(family=NANO)
    ids = coords.encode([[11.5, 48.2], [-180.0, -90.0]]).ids
    assert ids.max() < count
    assert coords.decode(ids).tolist() == [[10.0, 50.0], [-180.0, -90.0]]


@pytest.mark.parametrize(("degrees", "sentinels"), [(7, 12), (0, 12), (-5, 12), (5, 2)])
def test_vocabularies_that_are_not_possible(degrees, sentinels):
    with pytest.raises(ConfigError, match="must divide 90"):
        build_coords_vocabulary(degrees, sentinels)


def test_models():
    image = torch.randn(2, 12, 64, 64)
    features = build_backbone(NANO, ["S2L2A"])(image)
    assert [tuple(x.shape) for x in features] == [(2, 64, 128)] * 6
    thinking = build_tim(NANO, ["S2L2A"], tim_modalities=["LULC", "coords"]).eval()
    assert thinking(image)[-1].shape[0] == 2
    assert thinking.generated_tokens["LULC"].max() < 256
    generator = build_generator(NANO, ["S2L2A"], ["S1GRD", "LULC", "coords"], timesteps=2)
    made = generator({"S2L2A": image})
    assert made["S1GRD"].shape == (2, 2, 64, 64)
    assert made["LULC"].shape == (2, 10, 64, 64)
    assert made["coords"].shape == (2, 2)


def test_weights_that_are_not_there_yet(monkeypatch, tmp_path):
    monkeypatch.setattr("terramind_plugin.model.download.SHIPPED", tmp_path)
    with pytest.raises(WeightsNotFoundError, match="make nano"):
        build_backbone(NANO, ["S2L2A"], pretrained=True)


def test_tokenizers_that_ship_give_images_back():
    names = tokenizers_of(NANO)
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 16e6
    chips = [simulate_chip(77, index, 64, WORLDS["globe"]) for index in range(6)]
    for modality, variant in names.items():
        tokenizer = build_image_tokenizer(variant.name, pretrained=True)
        images = torch.tensor(np.stack([chip.images[modality] for chip in chips]).astype(np.float32))
        if modality == "LULC":
            ids = images[:, 0].long()
            right = (tokenizer(ids).argmax(dim=1) == ids).double().mean()
            assert right > 1.5 * ids.flatten().bincount().max() / ids.numel()
            continue
        mean, std = (torch.tensor(x)[:, None, None] for x in (MODALITIES[modality].mean, MODALITIES[modality].std))
        images = ((images - mean) / std).nan_to_num()
        error = (tokenizer(images, timesteps=5) - images).square().mean()
        assert error < 0.8 * images.var(dim=(0, 2, 3)).mean(), modality


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Return the files of optical bands and land cover of one more chip, larger than a window of the model."""
    data = simulate(tmp_path_factory.mktemp("scene"), chips=3, size=96, seed=5)
    return [chip_files(data.root, data.chip_ids[0])[name] for name in ("S2L2A", "LULC")]


def read(path):
    with rasterio.open(path) as file:
        return file.read(), file.tags()


def test_commands_of_the_small_model(scene, tmp_path):
    image, land_cover = scene
    words = [str(image), "--modality", "S2L2A", "--model", "terramind_sim_nano", "--out", str(tmp_path)]
    assert main(["generate", *words, "--to", "LULC"]) == 0
    made, tags = read(tmp_path / f"{image.stem}_LULC.tif")
    assert tags["model"] == f"{NANO}_generate"
    assert tags["weights"].startswith("shipped")
    assert tags["windows"].startswith("crop 64")
    water, made = read(land_cover)[0] == 1, made == 1
    overlap = (water & made).sum() / (water | made).sum()
    assert overlap > 1.5 * water.mean(), (overlap, water.mean())  # what a map of water alone would get
    assert main(["reconstruct", *words]) == 0
    again, tags = read(tmp_path / f"{image.stem}_S2L2A_reconstructed.tif")
    assert tags["model"] == f"{NANO}_tokenizer_s2l2a"
    given = read(image)[0]
    error, spread = np.abs(again - given).mean(), np.abs(given - given.mean(axis=(1, 2), keepdims=True)).mean()
    assert error < spread, (error, spread)
