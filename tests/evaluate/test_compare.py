"""`terramind compare` with real training runs in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from terramind_plugin.cli import main
from terramind_plugin.errors import ConfigError
from terramind_plugin.evaluate import compare as module
from terramind_plugin.evaluate.arms import DEFAULT_ARMS, choose, limit_labels, read_budgets
from terramind_plugin.evaluate.compare_report import draw, gain, spread, summarise, table
from terramind_plugin.evaluate.output import markdown
from terramind_plugin.system.process import locked

CHECKPOINT = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "best", "monitor": "val/loss"}}


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    """Return the path of a configuration of a tiny model."""
    from terramind_plugin.simulation.dataset import simulate
    from tests.runs.running import Runner, segmentation_config

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
    assert call(configuration, tmp_path, ",".join(DEFAULT_ARMS), 1) == 0
    assert len((tmp_path / "table.md").read_text().splitlines()) == 2 + len(DEFAULT_ARMS)


@pytest.fixture(scope="module")
def with_truth(configuration):
    """Return the path of a configuration of the small variant that says where true land cover is."""
    import torch

    from terramind_plugin.builders import build_image_tokenizer

    config = yaml.safe_load(configuration.read_text())
    weights = configuration.parent / "lulc.pt"
    torch.save(build_image_tokenizer("terramind_sim_nano_tokenizer_lulc").state_dict(), weights)
    data, arguments = config["data"]["init_args"], config["model"]["init_args"]["model_args"]
    data["data_root"]["LULC"] = str(Path(data["label_data_root"]).parent / "LULCHand")
    data["image_grep"]["LULC"] = "*_LULCHand.tif"
    data["train_transform"] = [{"class_path": "albumentations.D4"}, {"class_path": "ToTensorV2"}]
    arguments["backbone"] = "terramind_sim_nano_tim"
    arguments["backbone_out_indices"] = [0, 1, 3, 5]
    arguments["necks"] = [{"name": "terramind_pyramid", "patch_size": 8}]
    arguments["backbone_tim_tokenizer_ckpt_paths"] = {"LULC": str(weights)}
    path = configuration.parent / "with_truth.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow  # a further process; test_arms has what the arm changes
def test_an_oracle_with_few_labels(with_truth, tmp_path, capsys):
    """D4 turns land cover with the images, and the ids stay class ids: the tokenizer refuses others."""
    assert call(with_truth, tmp_path, "oracle", 1, "--labels", "2") == 0
    assert "1/1 oracle, 2 labels, seed 0\n" in capsys.readouterr().out
    run = tmp_path / "runs" / "oracle_2labels_seed0"
    made = yaml.safe_load((run / "config.yaml").read_text())
    assert made["data"]["init_args"]["modalities"] == ["S2L1C", "S1GRD", "LULC"]
    assert len((run / "train.txt").read_text().split()) == 2
    result = json.loads((run / "result.json").read_text())
    assert result["labels"] == 2
    assert 0 <= result["metrics"]["test/mIoU"] <= 1
    assert result["trained_parameters"] < 3e6
    assert call(with_truth, tmp_path, "oracle", 1, "--labels", "2") == 0
    assert "seed 0 (done before)" in capsys.readouterr().out


def test_samples_are_the_first_of_a_shuffle(configuration, tmp_path):
    config = yaml.safe_load(configuration.read_text())
    few, more = choose(config, 2, 0), choose(config, 4, 0)
    assert more[:2] == few
    assert len(set(more)) == 4
    assert {tuple(choose(config, 2, seed)) for seed in range(8)} != {tuple(few)}
    limit_labels(config, few, tmp_path / "train.txt")
    data = config["data"]["init_args"]
    assert (data["train_split"], data["train_repeats"]) == (str(tmp_path / "train.txt"), 2)
    with pytest.raises(ConfigError, match="5 labels are requested, but the training split has 4"):
        choose(yaml.safe_load(configuration.read_text()), 5, 0)
    config["data"]["class_path"] = "terratorch.datamodules.GenericMultiModalDataModule"
    with pytest.raises(ConfigError, match=r"needs data\.class_path: terramind_plugin\.TerraMindDataModule"):
        choose(config, 2, 0)


def test_numbers_of_labels():
    assert read_budgets("32, all,8,8") == [8, 32, None]
    for text in ("", "0", "-1", "few", "8.5"):
        with pytest.raises(ConfigError, match=r"labels|number"):
            read_budgets(text)


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
    with pytest.raises(ConfigError, match="is not the folder of a comparison"):
        module.compare(module.Comparison(configuration, ["plain"], 1, tmp_path))
    assert stranger.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "There is no configuration"), ("a: [", "is not valid YAML"), ("- a", "holds no configuration")],
)
def test_configurations_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        module.compare(module.Comparison(path, ["plain"], 1, tmp_path))


def result(arm, seed, value, labels=None):
    return {
        "arm": arm,
        "labels": labels,
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
    assert rows[1] == ["tim", "0.600 ± 0.141", "-", "10.5 ± 0.7", "4.00 ± 0.00", "1024 ± 0", "1.50", "2.0"]
    assert rows[2][:3] == ["plain", "0.400", "-0.100"]
    assert markdown(rows).splitlines()[1].count("---") == len(rows[0])
    with pytest.raises(ConfigError, match="no metric 'test/IoU'"):
        summarise(results, "test/IoU")
    assert spread([], 1) == "-"


def test_table_and_figure_by_number_of_labels():
    values = {"plain": (0.5, 0.6), "tim": (0.6, 0.9)}
    results = [
        result(arm, seed, value + (0.2 if labels is None else 0), labels)
        for labels in (8, None)
        for arm, pair in values.items()
        for seed, value in enumerate(pair)
    ]
    summaries = summarise(results, "test/mIoU")
    rows = table(summaries, "test/mIoU")
    assert [row[:3] for row in rows[:3]] == [
        ["labels", "arm", "test/mIoU"],
        ["8", "plain", "0.550 ± 0.071"],
        ["8", "tim", "0.750 ± 0.212"],
    ]
    assert [row[0] for row in rows[1:]] == ["8", "8", "all", "all"]
    # Differences 0.1 and 0.3: mean 0.2, standard error 0.1, and t is 12.706 with one degree of freedom.
    assert gain(summaries[1], summaries[0]) == rows[2][3] == "+0.200 ± 1.271"
    axis = draw(summaries, "test/mIoU", "title").axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["8", "all"]
    assert len(draw(summaries[:2], "test/mIoU", "title").axes) == 2


def test_a_folder_that_another_comparison_works_on(configuration, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("terramind_plugin.evaluate.compare.PATIENCE", 0.1)
    folder = tmp_path / "runs" / "frozen_seed0"
    folder.mkdir(parents=True)
    with locked(folder / "lock", "busy"):
        assert call(configuration, tmp_path) == 2
    assert capsys.readouterr().err == (
        f"terramind: Another comparison is working on {folder}. Wait for it, or choose another --out.\n"
    )
    assert [path.name for path in folder.iterdir()] == ["lock"]
