"""The picture at the end of the demo, and its scores."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from terramind_plugin.cli import main
from terramind_plugin.evaluate.figure import PredictedChip, class_ious, compare_predictions, pick_chips, table
from terramind_plugin.raster.writer import write_geotiff
from terramind_plugin.simulation.dataset import simulate
from terramind_plugin.system.files import is_whole_picture


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a simulated data set and predictions of it: the label, with half of the land as false alarms in one."""
    import rasterio

    root = tmp_path_factory.mktemp("figure")
    simulate(root / "floods", chips=4, size=32)
    for number, path in enumerate(sorted((root / "floods/data/LabelHand").glob("*.tif"))):
        with rasterio.open(path) as file:
            label, place = file.read(), {"crs": file.crs, "transform": file.transform}
        found = np.where(label < 0, 0, label).astype(np.uint8)
        if number == 2:
            found[:, :16] = 1
        name = path.name.replace("_LabelHand.tif", "_S2Hand_pred.tif")
        (root / "predictions").mkdir(exist_ok=True)
        write_geotiff(root / "predictions" / name, found, **place)
    return root


def test_scores_stand_beside_a_map_of_one_class(made, tmp_path, capsys):
    words = ["--data", f"{made}/floods/data", "--predictions", f"{made}/predictions", "--out", str(tmp_path / "a.png")]
    assert main(["figure", *words]) == 0
    *lines, path = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in re.split("[┃│]", line)[1:-1]] for line in lines]
    head, model, constant = (row for row in rows if row)
    assert head == ["", "mIoU", "IoU Land", "IoU Water", "pixels right"]
    assert (model[0], constant[0]) == ("the model", "a map of Land alone")
    assert constant[3] == "0.00"  # no water
    assert float(model[1]) > float(constant[1])
    assert is_whole_picture(Path(path))


def test_numbers_of_the_table_are_those_of_the_pixels(made):
    chips = compare_predictions(made / "floods" / "data", made / "predictions", 2)
    confusion = np.sum([chip.confusion for chip in chips], axis=0)
    land, water = confusion
    assert class_ious(confusion)[1] == water[1] / (water[1] + water[0] + land[1])
    rows = table(chips, ["Land", "Water"])
    assert rows[1][3] == f"{class_ious(confusion)[1]:.2f}"
    assert rows[2][1] == f"{land.sum() / confusion.sum() / 2:.2f}"


def chip(name: str, hits: int, false: int) -> PredictedChip:
    return PredictedChip(name, Path(name), np.array([[10, false], [0, hits]]))


def test_chips_of_several_regions_the_best_and_the_worst():
    chips = [chip(f"A_{n}", 10, n) for n in range(1, 6)] + [chip("B_1", 10, 3), chip("C_1", 10, 4), chip("D_1", 0, 0)]
    chosen = pick_chips(chips, 4)
    assert [one.name for one in chosen] == ["A_1", "B_1", "C_1", "A_5"]  # D_1 has no water to be found
    assert pick_chips(chips[:1], 4) == chips[:1]
    assert [one.name for one in pick_chips(chips, 1)] == ["A_1"]
