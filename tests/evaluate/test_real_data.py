"""Real chips through the commands, with random weights: that they run, not how well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import rasterio

from terramind_plugin.cli import main

DATA = Path(__file__).parents[3] / "shared" / "data"
MODEL = ("--model", "terramind_v1_tiny", "--pretrained", "false")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no real chips in {DATA}"),
]


def test_zero_shot(tmp_path):
    from tests.runs.running import Runner, change, segmentation_config

    floods = DATA / "sen1floods11"
    names = sorted(path.name.removesuffix("_S1Hand.tif") for path in (floods / "S1GRDHand").glob("*.tif"))
    split = tmp_path / "test.txt"
    split.write_text("\n".join(name for name in names if name.split("_")[0] in ("Spain", "Paraguay", "Ghana")))
    changes = {
        "data.data_root": {"S2L1C": str(floods / "S2L1CHand"), "S1GRD": str(floods / "S1GRDHand")},
        "data.label_data_root": str(floods / "LabelHand"),
        "data.image_grep": {"S2L1C": "*_S2Hand.tif", "S1GRD": "*_S1Hand.tif"},
        "data.label_grep": "*_LabelHand.tif",
        "data.allow_missing_modalities": True,
        **{f"data.{name}_split": str(split) for name in ("train", "val", "test")},
        "data.predict_split": ...,
    }

    class Scenes:
        root = tmp_path

    config = Runner(change(segmentation_config(Scenes), changes), tmp_path).write()
    out = tmp_path / "out"
    assert main(["zero-shot", "-c", str(config), "--target", "water", "--out", str(out), "--inputs", "S1GRD"]) == 0
    assert main(["zero-shot", "-c", str(config), "--target", "water", "--out", str(out), "--inputs", "S2L1C"]) == 0
    rows = json.loads((out / "zero_shot.json").read_text())["rows"]
    assert list(rows[0]["chips"]) == ["Spain_7370579"]
    with rasterio.open(out / "S1GRD" / "Paraguay_34417_S1Hand_target.tif") as file:
        assert (file.read(1) == 255).all()  # its radar is all NaN
    with (
        rasterio.open(out / "S2L1C" / "Spain_7370579_S2Hand_LULC.tif") as file,
        rasterio.open(floods / "S2L1CHand" / "Spain_7370579_S2Hand.tif") as source,
    ):
        assert (file.crs, file.transform, file.shape) == (source.crs, source.transform, (512, 512))


def test_few_shot_of_terramesh(tmp_path):
    files = sorted((DATA / "terramesh" / "S2L2A").iterdir())
    table = tmp_path / "patches.csv"
    table.write_text("path,label\n" + "".join(f"{path},{number % 2}\n" for path in files for number in range(2)))
    words = ["--modality", "S2L2A", *MODEL, "--ways", "2", "--queries", "2", "--out", str(tmp_path)]
    assert main(["few-shot", str(table), *words]) == 0
    accuracy = json.loads((tmp_path / "few_shot.json").read_text())["accuracy"]
    # Each class holds the same patches: the support may even be the query of the other class.
    assert all(one["value"] < 0.9 for one in accuracy.values())


def test_places_of_terramesh(tmp_path):
    files = sorted((DATA / "terramesh" / "S2L2A").iterdir())
    words = ["--modality", "S2L2A", "--model", "terramind_sim_nano", "--pretrained", "false"]
    assert main(["localise", *map(str, files), *words, "--out", str(tmp_path), "--labelled"]) == 0
    assert len((tmp_path / "places.csv").read_text().splitlines()) == 1 + len(files)
