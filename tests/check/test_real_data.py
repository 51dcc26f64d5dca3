"""Real chips: what is wrong with some of them is named, and nothing else."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from running import REPOSITORY, segmentation_config

DATA = REPOSITORY.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the real chips are not at {DATA}")


def radar(folder: Path, names: list[str]) -> dict[str, Any]:
    (folder / "list.txt").write_text("\n".join(names))
    root = DATA / "sen1floods11"
    return {
        "data.modalities": ["S1GRD"],
        "data.data_root": {"S1GRD": str(root / "S1GRDHand")},
        "data.image_grep": {"S1GRD": "*_S1Hand.tif"},
        "data.label_data_root": str(root / "LabelHand"),
        **{f"data.{split}_split": str(folder / "list.txt") for split in ("train", "val", "test")},
        "model_args.backbone_modalities": ["S1GRD"],
    }


def test_empty_chips_are_named(sound: Any, check: Any, tmp_path: Path) -> None:
    names = sorted(path.name.removesuffix("_S1Hand.tif") for path in (DATA / "sen1floods11" / "S1GRDHand").iterdir())
    found = [f for f in check(sound, radar(tmp_path, names)) if not f.check.startswith("files")]
    assert [f.check for f in found] == ["values: S1GRD gaps", "labels: empty"]
    assert "Paraguay_34417" in found[0].seen
    assert "Ghana_83483" in found[1].seen


def test_sound_chips_are_quiet(sound: Any, check: Any, tmp_path: Path) -> None:
    names = ["Mekong_333434", "Nigeria_812045", "Pakistan_849790", "Somalia_699062", "Spain_7370579"]
    found = [f for f in check(sound, radar(tmp_path, names)) if not f.check.startswith("files: splits")]
    assert found == []


def test_terramesh_has_mixed_offsets(make_terramesh: Any) -> None:
    found = [finding for finding in make_terramesh() if finding.verdict != "ok"]
    assert [finding.check for finding in found] == ["values: S2L1C offset", "values: S2L2A offset"]
    assert all("1 of 3 files have the offset of +1000: 433D_629L_3_1.tif" in finding.seen for finding in found)


@pytest.fixture
def make_terramesh() -> Any:
    from terramind_plugin.contract.plan import describe
    from terramind_plugin.contract.run import check_data
    from terramind_plugin.data.datamodule import TerraMindDataModule

    names = ["S2L1C", "S2L2A", "S1RTC", "DEM", "LULC", "NDVI"]

    def make() -> Any:
        module = TerraMindDataModule(
            batch_size=1, modalities=names, data_root={name: str(DATA / "terramesh" / name) for name in names},
            image_grep=dict.fromkeys(names, "*.tif"),
        )  # fmt: skip
        module.test_root = module.val_root = None
        plan = describe(module)
        assert plan is not None
        return check_data(plan)

    return make


def test_fit_logs_what_is_odd_unless_told_not_to(sound: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from terramind_plugin.data.datamodule import TerraMindDataModule

    names = ["Paraguay_34417", "Spain_7370579"]
    changes = radar(tmp_path, names)
    arguments = {
        **segmentation_config(sound)["data"]["init_args"],
        **{key.removeprefix("data."): value for key, value in changes.items() if key.startswith("data.")},
    }
    arguments = {key: value for key, value in arguments.items() if value is not ...}
    with caplog.at_level(logging.WARNING, "terramind_plugin"):
        TerraMindDataModule(**arguments, check_values=False).setup("fit")
        assert "Paraguay_34417" not in caplog.text
        TerraMindDataModule(**arguments).setup("fit")
        assert "all NaN or nodata: Paraguay_34417" in caplog.text
