"""Real Sen1Floods11 chips, cut to the sizes that tests can afford."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import rasterio
from rasterio.windows import Window

from tests.runs.running import REPOSITORY

CHIPS = REPOSITORY.parent / "shared" / "data" / "sen1floods11"
ENDINGS = {"S2L1CHand": "S2Hand", "S1GRDHand": "S1Hand", "LabelHand": "LabelHand"}

needs_chips = pytest.mark.skipif(not CHIPS.is_dir(), reason=f"the real chips are not at {CHIPS}")


def cut(source: Path, target: Path, window: Window) -> None:
    """Write a part of a raster with the place it has."""
    with rasterio.open(source) as raster:
        profile = raster.profile | {"width": window.width, "height": window.height}
        profile |= {"transform": raster.window_transform(window), "tiled": False}
        for key in ("blockxsize", "blockysize"):
            profile.pop(key, None)
        values = raster.read(window=window)
    target.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(target, "w", **profile) as raster:
        raster.write(values)


def changes_to(root: Path, splits: dict[str, list[str]], modalities: list[str]) -> dict[str, Any]:
    """Return what to change in a configuration so that it uses cut chips.

    Args:
        root: Folder with them, in the layout of Sen1Floods11.
        splits: Names of chips.
        modalities: To use.
    """
    for split, names in splits.items():
        (root / f"{split}.txt").write_text("\n".join(names))
    folders = {"S2L1C": "S2L1CHand", "S1GRD": "S1GRDHand"}
    return {
        "data.modalities": modalities,
        "data.data_root": {name: str(root / folders[name]) for name in modalities},
        "data.image_grep": {name: f"*_{ENDINGS[folders[name]]}.tif" for name in modalities},
        "data.label_data_root": str(root / "LabelHand"),
        **{f"data.{split}_split": str(root / f"{split}.txt") for split in splits},
        "data.train_transform": [{"class_path": "albumentations.D4"}, {"class_path": "ToTensorV2"}],
        "model_args.backbone_modalities": modalities,
        "model.loss": "dice",
    }


def cut_spain(root: Path) -> dict[str, Any]:
    """Return changes to sixteen tiles of 128 pixels of the chip that has both sensors."""
    names = []
    for i in range(16):
        names.append(f"Spain_7370579_{i:02d}")
        window = Window(128 * (i % 4), 128 * (i // 4), 128, 128)
        for folder, ending in ENDINGS.items():
            cut(CHIPS / folder / f"Spain_7370579_{ending}.tif", root / folder / f"{names[-1]}_{ending}.tif", window)
    splits = {"train": names[:10], "val": names[10:13], "test": names[13:], "predict": names[13:]}
    return changes_to(root, splits, ["S2L1C", "S1GRD"])
