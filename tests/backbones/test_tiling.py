"""Masks survive TerraTorch's tiled inference."""

import pytest
import torch
import torch.nn.functional as F

from terramind_plugin.errors import ConfigError

PAIR = ("S2L2A", "S1GRD")
MASK = {"S2L2A": torch.tensor([True, True, False]), "S1GRD": torch.tensor([True, False, True])}
TILES = {"crop": 64, "stride": 48, "delta": 8}


@pytest.fixture(scope="module")
def tile(backbones):
    from terratorch.tasks.tiled_inference import tiled_inference

    return tiled_inference


@pytest.fixture(scope="module")
def maps(tiny):
    """Return a model that gives maps [B, 192, H, W]."""
    backbone = tiny(PAIR, depth=3)

    def forward(x, **kwargs):
        tokens = backbone(x, **kwargs)[-1]
        grid = tokens.transpose(1, 2).unflatten(2, (4, 4))
        return F.interpolate(grid, scale_factor=16)

    return forward


@pytest.fixture(scope="module")
def want(tile, maps, images):
    """Return the maps of each sample alone, of the modalities it has."""
    x = images(PAIR, 3, 128, 96)
    single = [
        tile(maps, {name: image[i : i + 1] for name, image in x.items() if MASK[name][i]}, **TILES) for i in range(3)
    ]
    return torch.cat(single)


def marked(x):
    return {name: torch.where(MASK[name][:, None, None, None], image, torch.nan) for name, image in x.items()}


@pytest.mark.parametrize("batch_size", [3, 6, 9, 300])
def test_whole_groups_of_samples(tile, maps, images, want, batch_size):
    got = tile(maps, images(PAIR, 3, 128, 96), batch_size=batch_size, modality_mask=MASK, **TILES)
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 7, 16])
def test_marked_samples_in_any_batch(tile, maps, images, want, batch_size):
    got = tile(maps, marked(images(PAIR, 3, 128, 96)), batch_size=batch_size, modality_mask=MASK, **TILES)
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("batch_size", [4, 5, 7])
def test_a_mask_that_would_be_lost_is_refused(tile, maps, images, batch_size):
    with pytest.raises(
        ConfigError, match="fill the missing images with NaN, or choose a batch_size that is a multiple"
    ):
        tile(maps, images(PAIR, 3, 128, 96), batch_size=batch_size, modality_mask=MASK, **TILES)


def test_image_of_one_tile(tile, maps, images):
    x = images(PAIR, 3)
    got = tile(maps, x, batch_size=2, modality_mask=MASK, **TILES)
    assert torch.equal(got, maps(x, modality_mask=MASK))
