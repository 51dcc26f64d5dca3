"""Names of classes go from the data into the checkpoint and from there into maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rasterio

from terramind_plugin.simulation.dataset import chip_files
from tests.runs.running import REPOSITORY, Fitted, fit_once

UNNAMED = {"model.class_names": ...}
NOWHERE = {**UNNAMED, "data.class_names": ...}
SWAPPED = ["Water", "Land"]


@pytest.fixture(scope="module")
def named_by_data(segmentation: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """Return a run whose data alone has names."""
    return fit_once(segmentation, tmp_path_factory.mktemp("named"), UNNAMED)


def _tags(path: Path) -> list[str | None]:
    with rasterio.open(path) as raster:
        return [raster.tags().get(f"class_{number}") for number in range(2)]


@pytest.mark.parametrize("changes", [UNNAMED, NOWHERE])
def test_predictions_have_the_names_of_the_training(
    changes: dict[str, Any], runner: Any, named_by_data: Fitted, tmp_path: Path
) -> None:
    words = ["--ckpt_path", named_by_data.checkpoint, "--predict_output_dir", tmp_path / "out"]
    assert runner.terramind("predict", changes, *words) == 0
    (path,) = (tmp_path / "out").glob("*.tif")
    assert _tags(path) == ["Land", "Water"]
    other = tmp_path / "other"
    runner.terratorch("predict", changes, *words[:-1], other, cwd=REPOSITORY)
    assert _tags(other / path.name) == ["Land", "Water"]


def test_maps_have_them_too(runner: Any, named_by_data: Fitted, scenes: Any, tmp_path: Path) -> None:
    from terramind_plugin.cli import main

    files = chip_files(scenes.root, scenes.splits["test"][0])
    inputs = [word for name in ("S2L1C", "S1GRD") for word in ("--scene", f"{name}={files[name]}")]
    words = ["--ckpt_path", named_by_data.checkpoint, *inputs, "--out", tmp_path / "maps", "--crop", "64"]
    assert main(["map", "-c", str(runner.write(NOWHERE)), *map(str, words)]) == 0
    (path,) = (tmp_path / "maps").glob("*_pred.tif")
    assert _tags(path) == ["Land", "Water"]
    swapped = runner.write({"model.class_names": SWAPPED, "data.class_names": SWAPPED})
    assert main(["map", "-c", str(swapped), *map(str, words)]) == 2


@pytest.mark.parametrize("changes", [
    {"model.class_names": SWAPPED, "data.class_names": SWAPPED}, {**UNNAMED, "data.class_names": SWAPPED},
])  # fmt: skip
@pytest.mark.parametrize("command", ["test", "predict"])
def test_another_order_is_refused(
    command: str, changes: dict[str, Any], runner: Any, named_by_data: Fitted, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["--ckpt_path", named_by_data.checkpoint]
    words += ["--predict_output_dir", tmp_path / "out"] if command == "predict" else []
    assert runner.terramind(command, changes, *words) == 2
    message = capfd.readouterr().err.rpartition("terramind: ")[2]
    assert message.startswith("class_names are ['Water', 'Land'] in")
    assert not (tmp_path / "out").exists()


def test_terratorchs_own_command_refuses_it(runner: Any, named_by_data: Fitted) -> None:
    with pytest.raises(ValueError, match="class_names are"):
        runner.terratorch("test", {**UNNAMED, "data.class_names": SWAPPED}, "--ckpt_path", named_by_data.checkpoint)


def test_data_and_model_must_agree(runner: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert runner.terramind("fit", {"data.class_names": SWAPPED}) == 2
    assert "['Water', 'Land'] in data.init_args, but ['Land', 'Water'] in model.init_args" in capfd.readouterr().err
