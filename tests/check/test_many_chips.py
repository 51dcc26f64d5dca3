"""Ten thousand chips are checked in memory that does not grow with them; the seconds are printed."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from rasterio.transform import from_origin

from terramind_plugin.simulation.dataset import SimulatedDataset
from tests.runs.running import change, segmentation_config

SIDE, PIXEL = 16, 10.0
PLACE = (300000.5, 5000000.5)
MIB = 2**20


def write_chips(root: Path, count: int) -> dict[str, Any]:
    """Write chips side by side and return the changes to a configuration that reads them."""
    rng = np.random.default_rng(0)
    contents = {"S1GRD": rng.normal(-14, 3, (2, SIDE, SIDE)).astype(np.float32) - np.array([0, 6])[:, None, None]}
    contents = {"S1GRD": contents["S1GRD"].astype(np.float32), "Label": rng.integers(0, 2, (1, SIDE, SIDE), np.int16)}
    names = [f"chip_{index:05}" for index in range(count)]
    for kind, values in contents.items():
        (root / kind).mkdir(parents=True)
        template = root / "template.tif"
        profile = {"count": len(values), "height": SIDE, "width": SIDE, "dtype": values.dtype.name}
        where = from_origin(*PLACE, PIXEL, PIXEL)
        with rasterio.open(template, "w", driver="GTiff", crs="EPSG:32633", transform=where, **profile) as raster:
            raster.write(values)
        content, place = template.read_bytes(), struct.pack("<2d", *PLACE)
        assert content.count(place) == 1
        for index, name in enumerate(names):
            row, column = divmod(index, 100)
            moved = struct.pack("<2d", PLACE[0] + column * SIDE * PIXEL, PLACE[1] + row * SIDE * PIXEL)
            (root / kind / f"{name}.tif").write_bytes(content.replace(place, moved))
    parts = {"train": names[: count * 7 // 10], "val": names[count * 7 // 10 : count * 85 // 100]}
    parts["test"] = names[count * 85 // 100 :]
    for part, ids in parts.items():
        (root / f"{part}.txt").write_text("\n".join(ids))
    return {
        "data.modalities": ["S1GRD"],
        "data.data_root": {"S1GRD": str(root / "S1GRD")},
        "data.label_data_root": str(root / "Label"),
        "data.image_grep": {"S1GRD": "*.tif"},
        "data.label_grep": "*.tif",
        **{f"data.{part}_split": str(root / f"{part}.txt") for part in parts},
        "data.predict_split": ...,
        "model_args.backbone_modalities": ["S1GRD"],
    }


def check(root: Path, count: int, sound: SimulatedDataset) -> tuple[float, int]:
    """Return seconds and peak memory in bytes of terramind check on this many chips."""
    config = root / f"{count}.yaml"
    config.write_text(yaml.safe_dump(change(segmentation_config(sound), write_chips(root / str(count), count))))
    words = [sys.executable, "-m", "terramind_plugin.cli", "check", "-c", str(config)]
    with (root / f"{count}.log").open("w") as log:
        start = time.perf_counter()
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    text = (root / f"{count}.log").read_text()
    assert process.returncode == 0, text
    assert "0 errors, 0 warnings" in text
    assert "training and validation steps work" in text
    assert f"{2 * count} files of" in " ".join(text.split())
    return seconds, usage.ru_maxrss * 1024


@pytest.mark.slow
def test_ten_thousand_chips(sound: SimulatedDataset, tmp_path: Path) -> None:
    few_seconds, few_bytes = check(tmp_path, 200, sound)
    seconds, most_bytes = check(tmp_path, 10_000, sound)
    for count, needed, peak in ((200, few_seconds, few_bytes), (10_000, seconds, most_bytes)):
        print(f"{count} chips: {needed:.1f} s, {peak / MIB:.0f} MiB")
    assert most_bytes - few_bytes < 150 * MIB
