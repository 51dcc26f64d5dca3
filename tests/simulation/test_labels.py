"""Labels of simulated chips beyond water."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from terramind_plugin.cli import main
from terramind_plugin.errors import ConfigError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.simulation.chip import simulate_chip
from terramind_plugin.simulation.dataset import chip_files, simulate
from terramind_plugin.simulation.labels import LABEL_TASKS
from terramind_plugin.simulation.materials import CROPS, TREES, WATER

NAMES = LABEL_TASKS["flooded_cover"].class_names


@pytest.fixture(scope="module")
def pairs():
    """Return chips with water as their label, and the same chips with what the water covers."""
    return [(simulate_chip(0, i, 48), simulate_chip(0, i, 48, task="flooded_cover")) for i in range(12)]


def test_only_the_label_depends_on_the_task(pairs) -> None:
    for water, cover in pairs:
        assert water.images.keys() == cover.images.keys()
        for name, image in water.images.items():
            np.testing.assert_array_equal(image, cover.images[name])
        assert np.array_equal(cover.label > 0, water.label == 1)
        assert np.array_equal(cover.label < 0, water.label < 0)


def test_all_classes_occur_and_land_cover_tells_them_apart(pairs) -> None:
    label = np.concatenate([cover.label.ravel() for _, cover in pairs])
    before = np.concatenate([cover.images["LULC"].ravel() for _, cover in pairs])
    assert set(np.unique(label)) - {-1} == set(range(len(NAMES)))
    for number, name in ((WATER, "permanent water"), (CROPS, "flooded open land"), (TREES, "flooded woods")):
        found = label == NAMES.index(name)
        most = np.bincount(before[found & np.isin(before, (WATER, CROPS, TREES))]).argmax()
        assert most == number, name


def test_a_data_set(tmp_path: Path) -> None:
    out = tmp_path / "cover"
    assert main(["simulate", "--out", str(out), "--chips", "3", "--size", "32", "--task", "flooded_cover"]) == 0
    with rasterio.open(chip_files(out, "Delta_0001")["label"]) as file:
        assert file.descriptions == ("flooded cover",)
        assert file.tags()["class_names"] == (
            "-1 = unknown, 0 = dry land, 1 = permanent water, 2 = flooded open land, 3 = flooded woods"
        )
        assert np.array_equal(file.read(1), simulate_chip(0, 0, 32, task="flooded_cover").label)
    with pytest.raises(ConfigError, match="'task': 'flooded_cover'"):
        simulate(out, 3, 32)
    assert MODALITIES["LULC"].class_names[CROPS].lower().startswith("crop")


def test_tasks_that_are_not_possible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"no task 'flooded'. Did you mean 'flooded_cover'\? Known: water, flooded"):
        simulate(tmp_path / "a", 3, 32, task="flooded")
    words = ["simulate", "--out", str(tmp_path / "b"), "--world", "stac", "--task", "flooded_cover"]
    assert main(words) == 2
    assert "--task is for chips" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
