"""`terramind compare` with real training runs in processes of their own."""

from __future__ import annotations

import json

import pytest

from terramind_plugin.cli import main
from terramind_plugin.errors import ConfigError
from terramind_plugin.evaluate import compare as module
from terramind_plugin.evaluate.arms import ARMS
from terramind_plugin.evaluate.report import markdown, spread, summarise, table

CHECKPOINT = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "best", "monitor": "val/loss"}}


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    """Return the path of a configuration of a tiny model."""
    from running import Runner, segmentation_config

    from terramind_plugin.data.simulate import simulate

    folder = tmp_path_factory.mktemp("compare")
    config = segmentation_config(simulate(folder / "scenes", size=64, chips=6))
    return Runner(config, folder).write({"trainer.enable_checkpointing": True, "trainer.callbacks": [CHECKPOINT]})


def call(configuration, out, arms="frozen", seeds=1, *words):
    return main(["compare", "-c", str(configuration), "--arms", arms, "--seeds", str(seeds), "--out", str(out), *words])


def test_results_are_written_and_kept(configuration, tmp_path, capsys):
    assert call(configuration, tmp_path) == 0
    assert "frozen, seed 0\n" in capsys.readouterr().out
    result = json.loads((tmp_path / "runs" / "frozen_seed0" / "result.json").read_text())
    assert 0 <= result["metrics"]["test/mIoU"] <= 1
    assert len(result["epoch_seconds"]) == 1
    assert 0 < result["epoch_seconds"][0] < result["fit_seconds"]
    assert result["peak_bytes"] > result["checkpoint_bytes"] > 4 * result["trained_parameters"]
    assert "| frozen |" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert call(configuration, tmp_path) == 0
    assert "frozen, seed 0 (done before)" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs" / "frozen_seed0" / "result.json").read_text()) == result


@pytest.mark.slow
def test_all_arms(configuration, tmp_path):
    assert call(configuration, tmp_path, ",".join(ARMS), 1) == 0
    assert len((tmp_path / "table.md").read_text().splitlines()) == 2 + len(ARMS)


def test_a_run_that_fails(configuration, tmp_path, capsys):
    assert call(configuration, tmp_path, "plain", 1, "--data.init_args.train_split=nowhere.txt") == 2
    message = capsys.readouterr().err
    assert "plain, seed 0 failed" in message
    assert "nowhere.txt" in message
    assert not (tmp_path / "runs" / "plain_seed0" / "result.json").exists()


def test_other_folders_are_left_alone(configuration, tmp_path):
    stranger = tmp_path / "runs" / "plain_seed0" / "thesis.tex"
    stranger.parent.mkdir(parents=True)
    stranger.write_text("mine")
    with pytest.raises(ConfigError, match="not empty and not of a comparison"):
        module.compare(module.Comparison(configuration, ["plain"], 1, tmp_path))
    assert stranger.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "There is no configuration"), ("a: [", "is no YAML"), ("- a", "holds no configuration")],
)
def test_configurations_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        module.compare(module.Comparison(path, ["plain"], 1, tmp_path))


def result(arm, seed, value):
    return {
        "arm": arm,
        "seed": seed,
        "metrics": {"test/mIoU": value},
        "fit_seconds": 10.0 + seed,
        "epoch_seconds": [6.0, 4.0],
        "peak_bytes": 2**30,
        "trained_parameters": 1_500_000,
        "checkpoint_bytes": 2**21,
    }


def test_table():
    results = [result("tim", 0, 0.5), result("tim", 1, 0.7), result("plain", 0, 0.4)]
    rows = table(summarise(results, "test/mIoU"), "test/mIoU")
    assert rows[1] == ["tim", "0.600 ± 0.141", "10.5 ± 0.7", "4.00 ± 0.00", "1024 ± 0", "1.50", "2.0"]
    assert rows[2][:2] == ["plain", "0.400"]
    assert markdown(rows).splitlines()[1].count("---") == len(rows[0])
    with pytest.raises(ConfigError, match="no metric 'test/IoU'"):
        summarise(results, "test/IoU")
    assert spread([], 1) == "-"
