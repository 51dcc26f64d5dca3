"""`terramind few-shot`, and its episodes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terramind_plugin.cli import main
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.evaluate import few_shot
from terramind_plugin.evaluate.few_shot import Task
from terramind_plugin.simulation.dataset import simulate

MODEL = ("--modality", "S2L2A", "--model", "terramind_sim_nano", "--pretrained", "false")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_episodes(data):
    counts = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=6))
    labels = data.draw(
        st.permutations([name for name, count in zip("abcdef", counts, strict=False) for _ in range(count)])
    )
    task = Task(
        ways=data.draw(st.integers(2, 4)),
        shots=data.draw(st.integers(1, 3)),
        queries=data.draw(st.integers(1, 3)),
        episodes=data.draw(st.integers(2, 130)),
        seed=data.draw(st.integers(0, 9)),
    )
    large = [name for name, count in zip("abcdef", counts, strict=False) if count >= task.shots + task.queries]
    if len(large) < task.ways:
        with pytest.raises(DataError, match="ways need"):
            few_shot.draw_episodes(labels, task)
        return
    episodes = few_shot.draw_episodes(labels, task)
    assert episodes.support.shape == (task.episodes, task.ways, task.shots)
    assert episodes.query.shape == (task.episodes, task.ways, task.queries)
    for support, query in zip(episodes.support, episodes.query, strict=True):
        patches = np.concatenate([support, query], axis=1)
        assert len(set(patches.ravel())) == patches.size
        classes = [{labels[patch] for patch in row} for row in patches]
        assert all(len(one) == 1 for one in classes)
        assert len(set.union(*classes)) == task.ways
    again = few_shot.draw_episodes(labels, task)
    assert (again.support == episodes.support).all()
    assert (again.query == episodes.query).all()


def test_all_classes_and_patches_come():
    labels = ["a"] * 5 + ["b"] * 7 + ["c"] * 4
    episodes = few_shot.draw_episodes(labels, Task(2, 1, 1, 3000))
    share = np.bincount(episodes.support.ravel(), minlength=16) / 6000
    assert share == pytest.approx([1 / 15] * 5 + [1 / 21] * 7 + [1 / 12] * 4, abs=0.012)


def test_accuracy_is_that_of_a_plain_loop():
    rng = np.random.default_rng(1)
    labels = [name for name in "abcde" for _ in range(8)]
    features = rng.normal(size=(40, 6)) + np.repeat(rng.normal(size=(5, 6)), 8, axis=0)
    episodes = few_shot.draw_episodes(labels, Task(3, 2, 4, 120))
    expected = []
    for support, query in zip(episodes.support, episodes.query, strict=True):
        right = 0
        for number, patches in enumerate(query):
            for patch in patches:
                distances = [np.linalg.norm(features[patch] - features[shown].mean(axis=0)) for shown in support]
                right += distances.index(min(distances)) == number
        expected.append(right / query.size)
    assert few_shot.nearest_mean_accuracy(features, episodes) == pytest.approx(expected)
    told = few_shot.evaluate(features, episodes)
    half = 1.96 * np.std(expected, ddof=1) / np.sqrt(120)
    assert told.interval == pytest.approx((np.mean(expected) - half, np.mean(expected) + half))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Chips of three flood regions, in a folder for each."""
    root = tmp_path_factory.mktemp("patches")
    scenes = simulate(root / "scenes", chips=12, size=32)
    for path in (scenes.root / "data" / "S2L2AHand").iterdir():
        folder = root / "classes" / path.name.split("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).symlink_to(path)
    return root / "classes"


def test_command(folders, tmp_path, capsys):
    words = ["few-shot", str(folders), *MODEL, "--ways", "3", "--queries", "2", "--episodes", "50", "--out"]
    assert main([*words, str(tmp_path / "a")]) == 0
    printed = capsys.readouterr()
    assert "random" in printed.err
    assert "the paper" not in printed.out  # these are not the classes of EuroSAT
    made = json.loads((tmp_path / "a" / "few_shot.json").read_text())
    assert len(made["classes"]) == 4
    assert made["patches"] == 12
    assert set(made["accuracy"]) == {"terramind_sim_nano, random weights", "band means"}
    assert all(0 <= one["low"] <= one["value"] <= one["high"] <= 1 for one in made["accuracy"].values())
    rows = [f"{path},{path.parent.name}" for path in sorted(folders.glob("*/*.tif"))]
    table = tmp_path / "patches.csv"
    table.write_text("\n".join(["path,label", *rows]))
    words[1] = str(table)
    assert main([*words, str(tmp_path / "b")]) == 0
    assert json.loads((tmp_path / "b" / "few_shot.json").read_text())["accuracy"] == made["accuracy"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch_size", "0"), "batch_size must be at least 1"),
        (("--accelerator", "mps"), "this machine has no such device"),
        (("--resize", "12"), "resize must be a multiple of 8"),
    ],
)
def test_words_that_are_not_possible(folders, tmp_path, capsys, words, message):
    count = ("--ways", "3", "--queries", "2")
    assert main(["few-shot", str(folders), *MODEL, *count, "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_features_are_the_mean_of_the_last_layer(folders):
    import torch

    from terramind_plugin.model.modalities import resolve
    from terramind_plugin.raster.chips import read_chip

    modality = resolve("S2L2A")
    chips = [read_chip(path, modality, side=64, multiple=8) for path in sorted(folders.glob("*/*.tif"))[:3]]
    model = few_shot.build_encoder("terramind_sim_nano", "S2L2A", pretrained=False)
    features = few_shot.measure_features({"model": model}, modality, chips, batch_size=2)
    made = features["model"]
    for chip, feature in zip(chips, made, strict=True):
        image = (torch.from_numpy(chip.values) - torch.tensor(modality.mean)[:, None, None]) / torch.tensor(
            modality.std
        )[:, None, None]
        with torch.no_grad():
            expected = model({"S2L2A": image[None]})[5][0].mean(dim=0)
        np.testing.assert_allclose(feature, expected, atol=1e-5)
    again = few_shot.build_encoder("terramind_sim_nano", "S2L2A", pretrained=False)
    same = few_shot.measure_features({"again": again}, modality, chips, batch_size=2)
    np.testing.assert_array_equal(same["again"], made)
    bands = features[few_shot.BAND_MEANS]
    expected = (chips[1].values.reshape(12, -1).mean(axis=1) - np.array(modality.mean)) / np.array(modality.std)
    np.testing.assert_allclose(bands[1], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("chip,label\na,b\n", "columns path and label, got chip, label"),
        ("", "got nothing"),
        ("path,label\nnowhere.tif,b\n", "nowhere.tif does not exist"),
    ],
)
def test_tables_that_are_none(tmp_path, content, message):
    path = tmp_path / "patches.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        few_shot.list_patches(path)


def test_folders_that_hold_nothing(tmp_path):
    with pytest.raises(DataError, match="no folders of rasters"):
        few_shot.list_patches(tmp_path)
    with pytest.raises(DataError, match="neither a folder nor a CSV"):
        few_shot.list_patches(tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "value"), [("ways", 1), ("shots", 0), ("queries", 0), ("episodes", 1)])
def test_numbers_that_are_not_possible(name, value):
    with pytest.raises(ConfigError, match=f"{name} must be at least"):
        few_shot.draw_episodes(["a", "b"] * 20, Task(**{"ways": 2, name: value}))
