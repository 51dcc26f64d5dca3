"""`terramind zero-shot` on simulated floods, with random weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio

from terramind_plugin.cli import main
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.evaluate.testset import LabelledChip, LabelledSet, Labels, read_experiment
from terramind_plugin.evaluate.zero_shot import choose_inputs, read_target
from terramind_plugin.evaluate.zero_shot_report import is_sen1floods11, pick_panels

NANO = {"model_args.backbone": "terramind_sim_nano", "model_args.backbone_pretrained": False}
BOTH = "S2L1C+S1GRD"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    from terramind_plugin.simulation.dataset import simulate

    return simulate(tmp_path_factory.mktemp("zero_shot") / "scenes", chips=5, size=72)


@pytest.fixture(scope="module")
def runner(scenes):
    from tests.runs.running import Runner, change, segmentation_config

    everything = str(scenes.root / "splits" / "flood_train_data.txt")  # more chips to test on
    return Runner(change(segmentation_config(scenes), {**NANO, "data.test_split": everything}), scenes.root)


@pytest.fixture(scope="module")
def made(runner, tmp_path_factory):
    """Return the folder that the command wrote to."""
    out = tmp_path_factory.mktemp("made")
    assert call(runner.write(), out, "--target", "water,Flooded Vegetation") == 0
    return out


def call(config, out, *words):
    return main(["zero-shot", "-c", str(config), "--out", str(out), *words])


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


def test_numbers_are_those_of_the_maps(scenes, made):
    record = json.loads((made / "zero_shot.json").read_text())
    assert record["target"] == "water, flooded vegetation"
    assert [row["inputs"] for row in record["rows"]] == [["S2L1C"], ["S1GRD"], ["S2L1C", "S1GRD"]]
    for row in record["rows"]:
        folder = made / "+".join(row["inputs"])
        hits = union = found = wanted = 0
        assert set(row["chips"]) == set(scenes.splits["train"])
        for name in row["chips"]:
            cover = read(next(folder.glob(f"{name}_*_LULC.tif")))
            label = read(scenes.root / "data" / "LabelHand" / f"{name}_LabelHand.tif")
            target = read(next(folder.glob(f"{name}_*_target.tif")))
            known = (label != -1) & (target != 255)
            water, true = np.isin(cover, (1, 3)) & known, (label == 1) & known
            assert (((target == 1) & known) == water).all()
            hits, union = hits + (water & true).sum(), union + (water | true).sum()
            found, wanted = found + water.sum(), wanted + true.sum()
        assert row["iou"]["value"] == pytest.approx(hits / union, abs=1e-6)
        assert row["precision"]["value"] == pytest.approx(hits / found, abs=1e-6)
        assert row["recall"]["value"] == pytest.approx(hits / wanted, abs=1e-6)
        assert row["iou"]["low"] < row["iou"]["value"] < row["iou"]["high"]
    assert (made / "zero_shot.png").stat().st_size > 20_000


def test_maps_are_georeferenced(scenes, made):
    name = scenes.splits["train"][0]
    with rasterio.open(made / BOTH / f"{name}_S2Hand_LULC.tif") as file:
        own = file.crs, file.transform, file.shape, file.nodata
        assert file.tags()["target"] == "water, flooded vegetation"
        assert file.tags()["weights"] == "random"
        assert file.colormap(1)[1] == (0x41, 0x9B, 0xDF, 255)
    with rasterio.open(scenes.root / "data" / "S2L1CHand" / f"{name}_S2Hand.tif") as file:
        assert own == (file.crs, file.transform, file.shape, 0)


def test_a_second_call_keeps_what_is_there(runner, made, capsys):
    before = {path: path.stat().st_mtime_ns for path in (made / "S1GRD").iterdir()}
    numbers = json.loads((made / "zero_shot.json").read_text())["rows"][1]
    words = ("--target", "water,flooded vegetation", "--inputs", "s1grd")
    assert call(runner.write(), made, *words) == 0
    assert {path: path.stat().st_mtime_ns for path in (made / "S1GRD").iterdir()} == before
    assert json.loads((made / "zero_shot.json").read_text())["rows"] == [numbers]
    printed = capsys.readouterr()
    assert "the paper" not in printed.out  # these are simulated floods
    assert "the weights are random" in printed.err


def test_windows_are_those_of_generate(runner, scenes, tmp_path):
    words = ("--target", "water", "--inputs", "S1GRD", "--crop", "48", "--margin", "4", "--batch_size", "3", "--cog")
    assert call(runner.write(), tmp_path / "out", *words) == 0
    path = next((tmp_path / "out" / "S1GRD").glob("*_LULC.tif"))
    with rasterio.open(path) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.tags()["windows"] == "crop 48, stride 32, margin 4, batch_size 3, precision 32-true"
    source = scenes.root / "data" / "S1GRDHand" / f"{path.stem.removesuffix('_LULC')}.tif"
    generate = ["generate", str(source), "--modality", "S1GRD", "--to", "LULC", "--out", str(tmp_path / "same")]
    model = ["--model", "terramind_sim_nano", "--pretrained", "false"]
    assert main([*generate, *model, *words[4:]]) == 0
    same = next((tmp_path / "same").rglob("*_LULC.tif"))
    assert read(same).shape == read(path).shape


def test_a_chip_that_lacks_a_modality(scenes, runner, tmp_path):
    files = tmp_path / "S1GRDHand"
    files.mkdir()
    for path in list((scenes.root / "data" / "S1GRDHand").iterdir()):
        if scenes.splits["train"][0] not in path.name:
            (files / path.name).symlink_to(path)
    root = {"S2L1C": str(scenes.root / "data" / "S2L1CHand"), "S1GRD": str(files)}
    config = runner.write({"data.data_root": root})
    with pytest.raises(DataError, match=f"{scenes.splits['train'][0]} of .* has no file of S1GRD"):
        read_experiment(config)
    test = read_experiment(runner.write({"data.data_root": root, "data.allow_missing_modalities": True})).test
    assert len(test.having(["S2L1C"])) == len(test.having(["S1GRD"])) + 1 == len(scenes.splits["train"])
    assert test.having(["S1GRD", "S2L1C"]) == test.having(["S1GRD"])


def test_units_of_files(runner):
    shifted = {"data.offsets": {"S2L1C": -1000}, "data.constant_scale": {"S1GRD": 0.5}}
    test = read_experiment(runner.write(shifted)).test
    assert test.scales == {"S2L1C": (-1000, 1), "S1GRD": (0, 0.5)}
    assert test.expected["S2L1C"].fill[0] == pytest.approx(2357.089 + 1000)
    assert test.expected["S1GRD"].fill[0] == pytest.approx(-12.599 / 0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target", "lava"), "'lava' is not a land cover class. Classes: water, trees"),
        (("--target", "watter"), "Did you mean 'water'?"),
        (("--target", ","), "names no class"),
        (("--target", "water", "--positive", "wet"), "--positive takes class ids"),
        (("--target", "water", "--inputs", "DEM"), "'DEM', the configuration has S2L1C, S1GRD"),
        (("--target", "water", "--inputs", ","), "--inputs names nothing"),
        (("--target", "water", "--batch_size", "0"), "batch_size must be at least 1"),
        (("--target", "water", "--devices", "4", "--accelerator", "cuda"), "this machine has no such device"),
        (("--target", "water", "--temperature", "-1"), "temperature must be a number of at least 0"),
        (("--target", "water", "--tokenizer_ckpt_path", "LULC"), "takes NAME=FILE"),
        (("--target", "water", "--model", "terramind_sim_nan"), "Did you mean 'terramind_sim_nano'?"),
    ],
)
def test_words_that_are_not_possible(runner, tmp_path, capsys, words, message):
    assert call(runner.write(), tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_configurations_that_are_not_possible(runner, scenes):
    with pytest.raises(ConfigError, match=r"backbone must be one of terramind_v1_tiny.*got 'resnet'"):
        read_experiment(runner.write({"model_args.backbone": "resnet"}))
    with pytest.raises(DataError, match=r"there is no test set.*nowhere.txt does not exist"):
        read_experiment(runner.write({"data.test_split": "nowhere.txt"}))
    scalar = {"data.task": "regression", "data.num_classes": ...}
    with pytest.raises(ConfigError, match="task: segmentation"):
        read_experiment(runner.write(scalar))


def test_sets_of_inputs():
    assert choose_inputs(["S2L1C", "DEM"], []) == [("S2L1C",), ("DEM",), ("S2L1C", "DEM")]
    assert len(set(choose_inputs(["S2L1C", "S1GRD", "DEM", "NDVI"], []))) == 15
    assert choose_inputs(["S2L1C", "S1GRD"], []) == [("S2L1C",), ("S1GRD",), ("S2L1C", "S1GRD")]
    assert choose_inputs(["S2L1C", "S1GRD"], [["S1GRD", "sen2l1c"], ["S2L1C", "S1GRD"]]) == [("S2L1C", "S1GRD")]
    assert read_target("Snow/Ice, water", "1,3").classes == (7, 1)


@pytest.mark.parametrize(
    ("labels", "nodata", "ids", "known"),
    [
        (Labels(-1, False, 2), None, [-1, 0, 1, 2], [0, 1, 1, 1]),
        (Labels(None, False, 2), None, [-1, 0, 1, 2], [1, 1, 1, 1]),
        (Labels(-1, False, 2), 2, [-1, 0, 1, 0], [0, 1, 1, 0]),
        (Labels(-1, False, 3), 2, [-1, 0, 1, 2], [0, 1, 1, 1]),  # nodata that is a class
        (Labels(-1, True, 2), None, [-2, -1, 0, 1], [0, 0, 1, 1]),
    ],
)
def test_labels(tmp_path, labels, nodata, ids, known):
    path = tmp_path / "label.tif"
    profile = {"driver": "GTiff", "dtype": "int16", "count": 1, "height": 1, "width": 4, "nodata": nodata}
    with rasterio.open(path, "w", crs="EPSG:32632", transform=rasterio.Affine(10, 0, 0, 0, -10, 0), **profile) as file:
        file.write(np.array([[[-1, 0, 1, 2]]], np.int16))
    found, counted = labels.read(path)
    assert found[0].tolist() == ids
    assert counted[0].tolist() == [bool(number) for number in known]


@pytest.mark.parametrize(
    ("names", "target", "told"),
    [
        (["Spain_7370579", "Sri-Lanka_101973"], "water", True),
        (["Spain_7370579", "Basin_0008"], "water", False),
        (["Spain_7370579"], "water,trees", False),
    ],
)
def test_the_paper_is_quoted_beside_its_own_data_alone(names, target, told):
    test = LabelledSet([LabelledChip(name, {}, None) for name in names], {}, {}, Labels(-1, False, 2))
    assert is_sen1floods11(test, read_target(target, "1")) == told


def test_chips_from_the_best_to_the_worst():
    row = make_row([(5, 5, 0), (0, 3, 4), (9, 1, 0), (0, 0, 0), (1, 9, 0), (2, 8, 0)])
    assert pick_panels(row) == [2, 0, 4, 1]
    assert pick_panels(make_row([(0, 0, 0)])) == [0]


def make_row(overlaps):
    from terramind_plugin.evaluate.overlap import Overlap
    from terramind_plugin.evaluate.scores import score_overlaps
    from terramind_plugin.evaluate.zero_shot import SetScore

    counts = [Overlap(*one) for one in overlaps]
    score = score_overlaps(counts)
    return SetScore(("S1GRD",), [str(number) for number in range(len(counts))], counts, score, score, score)
