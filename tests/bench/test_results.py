"""The results page on a few simulated chips, with random weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from bench import small_model, small_model_page
from bench.results import write_results
from bench.small_model import judge_land_cover, majority_land_cover, mean_class_iou, peak_signal_to_noise, read_world
from terramind_plugin.errors import DataError
from terramind_plugin.evaluate import few_shot
from terramind_plugin.evaluate.scores import score_chips
from terramind_plugin.simulation.dataset import simulate

NANO = "terramind_sim_nano"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("results") / "floods", chips=8, size=72).root


@pytest.fixture(scope="module")
def world(root):
    return read_world(root, NANO)


def test_page(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(small_model, "STEPS", 1)
    monkeypatch.setattr(small_model_page, "CHIPS", 2)
    for module in (small_model, small_model_page):
        monkeypatch.setattr(module, "TASKS", (few_shot.Task(3, 1, 1, 20), few_shot.Task(3, 1, 1, 30)))
    write_results(root, tmp_path, pretrained=False)
    assert capsys.readouterr().out == f"{tmp_path / 'RESULTS.md'}\n"
    page = (tmp_path / "RESULTS.md").read_text()
    for name in ("land_cover.png", "reconstructions.png", "places.png"):
        assert f"(results/{name})" in page
        assert (tmp_path / "results" / name).stat().st_size > 5000
    made = json.loads((tmp_path / "results" / "results.json").read_text())
    assert made["chips"] == 8
    assert made["data"] == "terramind simulate --world floods --chips 8 --size 72 --seed 0"
    assert set(made["tokenizers"]) == {"S2L2A", "S1GRD", "S1RTC", "DEM", "LULC", "NDVI"}
    for one in made["tokenizers"].values():
        assert 1 <= one["perplexity"] <= one["used"] <= one["vocabulary"]
    # The model is random, too, and from the same seed.
    assert made["land_cover"]["model"] == made["land_cover"]["random weights"]
    assert made["few_shot"]["model"] == made["few_shot"]["random weights"]
    assert f"{made['land_cover']['model'][2]['water_iou']['value']:.3f}" in page


def test_chips(root, world):
    assert world.stack("S2L2A").shape == (8, 12, 64, 64)
    assert set(world.biomes) == {name.split("_")[0] for name in world.names}
    assert len(set(world.biomes)) == 4
    assert (world.water & world.labelled).any()
    path = root / "data" / "LabelHand" / f"{world.names[3]}_LabelHand.tif"
    with rasterio.open(path) as file:
        label = file.read(1, window=Window(4, 4, 64, 64))
    assert (np.where(world.labelled[3], world.water[3], -1) == label).all()


def test_true_land_cover_is_right_and_the_majority_is_not(world):
    true = world.stack("LULC")[:, 0].astype(int)
    right = judge_land_cover(world, ("true",), true)
    assert right.agreement.value == 1
    assert right.water.value > 0.5  # the label knows water under trees and clouds, too
    most = majority_land_cover(world)
    values, counts = np.unique(true[true > 0], return_counts=True)
    assert (most.maps == values[counts.argmax()]).all()
    assert most.agreement.value == pytest.approx(counts.max() / counts.sum() / len(values))


def test_peak_signal_to_noise():
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 1, (4, 2, 50, 50)) * np.array([1, 1000])[:, None, None]
    valid = np.ones((4, 50, 50), bool)
    valid[:, :10] = False
    made = true + 0.01 * np.array([1, 1000])[:, None, None]
    made[:, :, :10] = 1e9  # does not count
    quality, baseline = peak_signal_to_noise(made, true, valid)
    assert quality == pytest.approx(40, abs=0.1)
    assert baseline == pytest.approx(10 * np.log10(12), abs=0.2)


def test_chips_that_are_too_small(tmp_path):
    with pytest.raises(DataError, match="has 32 x 32 pixels"):
        read_world(simulate(tmp_path / "floods", chips=3, size=32).root, NANO)


def test_data_that_are_not_simulated(tmp_path):
    with pytest.raises(DataError, match="is not a folder of terramind simulate"):
        write_results(tmp_path, tmp_path / "out", pretrained=False)


def test_too_few_chips_are_found_first(world):
    with pytest.raises(DataError, match="5 ways need 5 classes"):
        small_model.measure(world, NANO, small_model.RANDOM, on_step=pytest.fail)


def test_a_class_that_no_label_holds_does_not_count():
    confusion = np.array([[3, 1], [0, 0]])
    made = score_chips(np.stack([confusion] * 4), lambda chips: mean_class_iou(chips.sum(axis=0)))
    assert made.value == made.interval[0] == made.interval[1] == 0.75


def test_mean_iou_is_that_of_sets_of_pixels(world):
    rng = np.random.default_rng(0)
    true = world.stack("LULC")[:, 0].astype(int)
    maps = np.where(rng.random(true.shape) < 0.7, true, rng.integers(0, 10, true.shape))
    ious = []
    for number in range(1, 10):
        found, sought = (maps == number) & (true > 0), true == number
        if sought.any():
            ious.append((found & sought).sum() / (found | sought).sum())
    assert judge_land_cover(world, ("mixed",), maps).agreement.value == pytest.approx(np.mean(ious))
