"""Windows in which a model of one image size generates larger images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from terramind_plugin.generation.token_generator import TokenGenerator
from terramind_plugin.generation.windows import PatchWindows
from terramind_plugin.model.planning import plan_inputs
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.tokenizers.noise import Noise

NANO = VARIANTS["terramind_sim_nano"]


@pytest.mark.parametrize("grid", [(8, 8), (9, 20), (3, 16), (28, 28), (1, 9)])
def test_windows_cover_all_patches(grid):
    windows = PatchWindows(grid, 8, 8)
    rows, columns = windows.size
    assert max(rows, columns) <= 8
    ids = torch.arange(2 * grid[0] * grid[1]).reshape(2, *grid)
    cut = windows.cut({"ids": ids, "words": torch.tensor([[1, 2], [3, 4]]), "there": torch.tensor([True, False])})
    count = len(windows.corners)
    assert cut["ids"].shape == (2 * count, rows, columns)
    assert torch.equal(windows.join(cut["ids"]), ids)
    assert torch.equal(windows.join(cut["words"]), torch.tensor([[1, 2], [3, 4]]))
    assert cut["there"].tolist() == [True] * count + [False] * count


def test_images_are_cut_by_pixels_and_sequences_come_from_the_middle():
    windows = PatchWindows((24, 24), 8, 4)
    image = torch.arange(96.0 * 96).reshape(1, 1, 96, 96)
    cut = windows.cut({"image": image})["image"]
    assert cut.shape == (9, 1, 32, 32)
    assert torch.equal(cut[5, 0], image[0, 0, 32:64, 64:])
    assert windows.join(torch.arange(9)[:, None]).tolist() == [[4]]


@pytest.fixture(scope="module")
def models():
    """Return a small model of one size, and the same model of all sizes."""
    inputs = plan_inputs(["S1GRD"])
    small = replace(NANO, depth=1, decoder_depth=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = TokenGenerator(small, inputs, ["LULC", "coords"], img_size=(64, 64))
    for parameter in own.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    other = TokenGenerator(replace(small, one_size=False), inputs, ["LULC", "coords"], img_size=(64, 64))
    other.load_state_dict(own.state_dict())
    return own, other


def test_larger_images_are_generated_in_windows(models):
    own, other = models
    images = torch.randn(2, 2, 128, 192, generator=torch.Generator().manual_seed(1))
    got = own({"S1GRD": images}, seed=[3, 4])
    assert got["LULC"].shape == (2, 16, 24)
    assert not torch.equal(got["LULC"], other({"S1GRD": images}, seed=[3, 4])["LULC"])
    # A sample draws for one window after the other, as a batch of windows with one generator would.
    window = images[1:, :, 64:, 128:]
    noise = Noise([torch.Generator().manual_seed(4)] * 6)
    tiles = PatchWindows((16, 24), 8, 8).cut({"S1GRD": images[1:]})
    alone = other(tiles, noise=noise)
    assert torch.equal(tiles["S1GRD"][5:], window)
    assert torch.equal(got["LULC"][1, 8:, 16:], alone["LULC"][5])
    assert torch.equal(own({"S1GRD": images[1:]}, seed=[4])["LULC"][0], got["LULC"][1])
    there = {"S1GRD": torch.tensor([True, True])}
    assert torch.equal(own({"S1GRD": images}, seed=[3, 4], present=there)["LULC"], got["LULC"])
    assert torch.equal(got["coords"][1], alone["coords"][PatchWindows((16, 24), 8, 8)._middle()])


def test_images_of_the_own_size_are_seen_as_a_whole(models):
    own, other = models
    images = torch.randn(1, 2, 64, 56, generator=torch.Generator().manual_seed(2))
    assert torch.equal(own({"S1GRD": images})["LULC"], other({"S1GRD": images})["LULC"])
