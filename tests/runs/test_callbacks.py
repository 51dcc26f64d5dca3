"""FiniteLoss and SegmentationImages in real runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.integration.callbacks import BackboneUnfreeze, SegmentationImages


def test_a_loss_that_is_not_finite_stops_the_run(runner: Any, scenes: Any) -> None:
    watch = [{"class_path": "terramind_plugin.FiniteLoss"}]
    changes = {"model.lr": 1e30, "trainer.callbacks": watch, "trainer.max_epochs": 4}
    with pytest.raises(DataError, match=r"The loss is (nan|inf) in epoch") as caught:
        runner.terratorch("fit", changes)
    assert any(f"{name}_S2Hand.tif" in str(caught.value) for name in scenes.splits["train"])


def test_a_finite_loss_goes_on(runner: Any) -> None:
    cli = runner.terratorch("fit", {"trainer.callbacks": [{"class_path": "terramind_plugin.FiniteLoss"}]})
    assert cli.trainer.global_step == 2


def test_unfreezing_from_the_start_makes_no_sense() -> None:
    with pytest.raises(ConfigError, match="epoch must be at least 1, got 0"):
        BackboneUnfreeze(0)


def _pictures(folder: Path) -> dict[str, int]:
    """Return the number of pictures of each tag in TensorBoard's files."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return {tag: len(events.Images(tag)) for tag in events.Tags()["images"]}


@pytest.mark.parametrize("missing", [False, True])
def test_one_tag_a_sample(runner: Any, scenes: Any, tmp_path: Path, missing: bool) -> None:
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(tmp_path), "name": "log", "version": 0}}
    images = {"class_path": "terramind_plugin.SegmentationImages", "init_args": {"samples": 3, "every_n_epochs": 2}}
    runner.terratorch(
        "fit",
        {
            "trainer.logger": logger,
            "trainer.callbacks": [images],
            "trainer.max_epochs": 3,
            "trainer.num_sanity_val_steps": 0,
            "data.val_split": str(scenes.root / "splits" / "flood_train_data.txt"),
            "data.allow_missing_modalities": missing,
        },
    )
    names = sorted(scenes.splits["train"])[:3]
    # Epochs 0 and 2.
    assert _pictures(tmp_path / "log" / "version_0") == {f"validation/{name}_S2Hand": 2 for name in names}


def test_pictures_without_a_logger_are_left_out(runner: Any) -> None:
    runner.terratorch("fit", {"trainer.callbacks": [{"class_path": "terramind_plugin.SegmentationImages"}]})


def test_equal_names_in_two_folders_have_tags_of_their_own() -> None:
    images = SegmentationImages()
    files = [Path("a/chip.tif"), Path("b/chip.tif"), Path("a/chip.tif")]
    assert [images._tag(file) for file in files] == ["chip", "b/chip", "chip"]
