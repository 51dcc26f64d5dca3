"""What the check prints can stand alone: whole paths, causes with their place, numbers that agree with their nouns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from terramind_plugin.cli import main
from terramind_plugin.samples.checks.files import PatchGrid
from tests.check.spoiling import every, files
from tests.runs.running import change, segmentation_config


def said(dataset: Any, folder: Path, changes: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the table with its cells in one line each."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(change(segmentation_config(dataset), changes)))
    main(["check", "-c", str(path), "--samples", "2", "--no_step"])
    rows = capsys.readouterr().out.split("├")
    cells = [[line.split("│")[1:-1] for line in row.splitlines() if line.startswith("│")] for row in rows]
    return "\n".join(
        "".join(part.strip(" ") or " " for part in column) for row in cells for column in zip(*row, strict=True)
    )


ALONE: dict[str, tuple[dict[str, Any], str]] = {
    "a key that a library misses": (
        {"model_args.peft_config": {"peft_config_kwargs": {}}},
        "there is no 'method' (KeyError in terratorch.models.peft_utils",
    ),
    "an index that is too high": (
        {"model_args.backbone": "terratorch_terramind_v1_tiny",
         "model_args.necks": [{"name": "SelectIndices", "indices": [2, 99]}]},
        "(IndexError in terratorch.models.necks.SelectIndices",
    ),
    "a value of another type": ({"trainer.logger": 5}, "trainer.logger: expected a list or true or false or"),
    "a number that is none": ({"data.batch_size": "many"}, "expected a whole number. Got value: many"),
    "weights of another kind": ({"model_args.backbone_pretrained": [[1]]}, "must be true or false, got [[1]]"),
    "a depth that four does not divide": (
        {"model_args.backbone": "terramind_sim_nano", "model_args.backbone_out_indices": [0, 9]},
        "E.g. [0, 2, 3, 5].",
    ),
    "bands of files that are not named": (
        {"data.output_bands": {"S2L1C": ["RED"]}},
        "output_bands names bands of S2L1C, but dataset_bands does not",
    ),
    "validation after the epoch": ({"trainer.val_check_interval": 99}, "an epoch has 4 batches: fit would stop"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", ALONE)
def test_messages_stand_alone(mistake: str, sound: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, text = ALONE[mistake]
    out = "".join(said(sound, tmp_path, changes, capsys).split())
    assert "".join(text.split()) in out
    assert "Expecteda<class" not in out


def test_paths_are_whole(sound: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "/nowhere/" + "x" * 150
    out = said(sound, tmp_path, {"data.label_data_root": long}, capsys)
    assert "…" not in out
    assert long in "".join(out.split())


@pytest.mark.parametrize(
    ("patch", "side", "padding", "verdict"),
    [
        (8, 40, "reflect", "note"),
        (8, 48, "reflect", None),
        (16, 48, "reflect", "note"),
        (16, 8, "reflect", "error"),
        (16, 8, "constant", "note"),
        (16, 48, None, None),
        (16, 40, None, "error"),
        (8, 40, None, None),
    ],
)
def test_sizes_follow_the_model_and_its_padding(
    patch: int, side: int, padding: str | None, verdict: str | None, chips: Any
) -> None:
    from terramind_plugin.samples.checks.run import check_data
    from tests.check.spoiling import plan

    for kind in ("S2L1C", "S1GRD", "Label"):
        every(kind, lambda values: values[:, :side, :side])(chips)
    assert files(chips, "Label")
    found = check_data(plan(chips), samples=1, grid=PatchGrid(patch, padding))
    sizes = [finding.verdict for finding in found if finding.check == "files: train sizes"]
    assert sizes == ([] if verdict is None else [verdict])
