"""One scene from file to file: `python -m bench.scene_runs WHO SIDE FOLDER` prints the peak of its memory.

A module of its own, so that a process that runs one side imports what that side needs and no more.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.transform import Affine
from rasterio.windows import Window
from torch import Tensor, nn

from terramind_plugin.inference.options import Options
from terramind_plugin.inference.planning import plan_jobs
from terramind_plugin.inference.runner import run_jobs
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.reader import Expected
from terramind_plugin.raster.writer import Layer
from terramind_plugin.simulation.chip import simulate_chip
from terramind_plugin.system.process import read_status

BANDS, CLASSES = 12, 10
CROP, STRIDE, BATCH = 224, 176, 8
CHIP = 512
OURS, REFERENCE = "ours", "TerraTorch"


class StandIn(nn.Module):
    """A model of next to no cost, so that the time is that of reading, blending and writing a scene."""

    channels = CLASSES
    layers = (
        Layer(
            "classes", "uint8", ("class",), "class id", 255,
            {number: (25 * number, 0, 255 - 25 * number, 255) for number in range(CLASSES)},
        ),
    )  # fmt: skip

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = network or nn.Conv2d(BANDS, CLASSES, 3, padding=1)
        self.blended: list[Tensor] | None = None

    def predict(self, image: Tensor) -> Tensor:
        """Return [B, classes, h, w] of images in their units."""
        return self.network(image / 3000)

    def forward(self, images: Mapping[str, Tensor], corners: Sequence[tuple[int, int]]) -> Tensor:
        """Return the same of a scene's windows."""
        return self.predict(images["S2L2A"])

    def finish(self, blended: Tensor) -> list[Tensor]:
        """Return classes [1, rows, W]."""
        if self.blended is not None:
            self.blended.append(blended.clone())
        return [blended.max(dim=0, keepdim=True).indices.to(torch.uint8)]


def write_scene(path: Path, side: int) -> Path:
    """Write a square scene of simulated surface reflectance, the same chip again and again.

    Args:
        path: File to write; an existing one stays.
        side: Height and width in pixels.
    """
    if path.exists():
        return path
    chip = _chip()
    profile = {
        "driver": "GTiff", "count": BANDS, "height": side, "width": side, "dtype": "uint16", "crs": "EPSG:32632",
        "transform": Affine(10, 0, 500_000, 0, -10, 5_000_000), "tiled": True, "blockxsize": CHIP, "blockysize": CHIP,
        "compress": "deflate", "zlevel": 1, "predictor": 2, "num_threads": os.cpu_count(), "bigtiff": "if_safer",
    }  # fmt: skip
    temporary = path.with_suffix(".tmp")
    with rasterio.open(temporary, "w", **profile) as file:
        for top in range(0, side, CHIP):
            for left in range(0, side, CHIP):
                rows, columns = min(CHIP, side - top), min(CHIP, side - left)
                file.write(chip[:, :rows, :columns], window=Window(left, top, columns, rows))
        file.descriptions = MODALITIES["S2L2A"].band_names
    temporary.rename(path)
    return path


@cache
def _chip() -> NDArray[np.uint16]:
    return simulate_chip(0, 0, CHIP).images["S2L2A"]


def run_ours(scene: Path, folder: Path, model: StandIn) -> None:
    """Write the classes of a scene as `terramind map` does: with overviews and a picture."""
    options = Options(folder, crop=CROP, stride=STRIDE, margin=0, batch_size=BATCH, accelerator="cpu", restart=True)
    (job,) = plan_jobs([{"S2L2A": scene}], {"S2L2A": Expected.of(MODALITIES["S2L2A"])}, options, 1)
    job.decide("map", model.layers, {"model": "stand-in", "weights": "random"}, options)
    run_jobs(model, [job], options)


def run_reference(scene: Path, folder: Path, model: StandIn) -> Tensor:
    """Write the classes of a scene by tiled inference, with the options of TerraTorch's writer; return the scores."""
    from terratorch.tasks.tiled_inference import tiled_inference

    with rasterio.open(scene) as file:
        profile = file.profile
        image = torch.from_numpy(file.read(out_dtype="float32"))[None]
    scores = tiled_inference(model.predict, image, crop=CROP, stride=STRIDE, delta=0, padding=False, batch_size=BATCH)
    profile.update(count=1, dtype="uint8", nodata=255, compress="lzw", predictor=1)
    with rasterio.open(folder / f"{scene.stem}_pred.tif", "w", **profile) as file:
        file.write(scores[0].argmax(dim=0).numpy().astype(np.uint8), 1)
    return scores


RUNS: Mapping[str, Any] = {OURS: run_ours, REFERENCE: run_reference}


def main(who: str, side: str, folder: str) -> None:
    """Do the work once and print the peak of this process's memory in bytes."""
    scene = write_scene(Path(folder, f"{side}.tif"), int(side))
    with tempfile.TemporaryDirectory(dir=folder) as out, torch.no_grad():
        RUNS[who](scene, Path(out), StandIn())
    print(json.dumps(read_status("VmHWM")))


if __name__ == "__main__":
    main(*sys.argv[1:])
