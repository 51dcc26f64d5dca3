"""`terramind embed` beside the bare backbone on the same windows: `python -m bench.embedding`.

CPU time of one thread, in interleaved rounds; the aim is a ratio of 0.9. Then the peak of the memory of a process that
embeds a scene, for two scenes of one width: what it needs beyond the model must not grow with the height.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.windows import Window
from torch import Tensor

from bench.scene_runs import write_scene
from terramind_plugin.inference.embedder import build_embedder
from terramind_plugin.inference.embedding import Storage, embed
from terramind_plugin.inference.options import EmbeddingOptions
from terramind_plugin.inference.settings import Settings
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.system.process import read_status

CROP, BATCH = 224, 8
AIM = 0.9
"""Smallest ratio of the bare model's time and that of the command."""


def run_embed(scene: Path, folder: Path, size: str, format: str) -> None:
    """Embed a scene as the command does."""
    options = EmbeddingOptions(folder, batch_size=BATCH, accelerator="cpu", restart=True)
    settings = Settings(pretrained=False)
    embed([{"S2L2A": scene}], VARIANTS[size], settings, options, Storage(format, "float32", "none"))  # type: ignore[arg-type]


def read_windows(scene: Path) -> list[Tensor]:
    """Return the windows of a scene in batches."""
    with rasterio.open(scene) as file:
        starts = [*range(0, file.height - CROP, CROP), file.height - CROP]
        windows = [file.read(window=Window(x, y, CROP, CROP), out_dtype="float32") for y in starts for x in starts]
    return [torch.from_numpy(np.stack(windows[at : at + BATCH])) for at in range(0, len(windows), BATCH)]


@torch.no_grad()
def measure_ratio(folder: Path, size: str, format: str, side: int, rounds: int) -> list[float]:
    """Return for each round the bare model's CPU time divided by that of the command without its start."""
    scene = write_scene(folder / f"{side}.tif", side)
    model, _ = build_embedder(VARIANTS[size], None, ["S2L2A"], pretrained=False)
    batches = read_windows(scene)
    ratios = []
    for _ in range(rounds):
        begin = time.process_time()
        for batch in batches:
            model({"S2L2A": batch}, [])
        bare = time.process_time() - begin
        begin = time.process_time()
        build_embedder(VARIANTS[size], None, ["S2L2A"], pretrained=False)
        start = time.process_time() - begin
        begin = time.process_time()
        run_embed(scene, folder / "out", size, format)
        ratios.append(bare / (time.process_time() - begin - start))
        print(f"{size}, {format}, {len(batches)} batches: bare {bare:.1f} s, ratio {ratios[-1]:.3f}", flush=True)
    return ratios


def measure_peak(folder: Path, size: str, height: int) -> float:
    """Return the peak of the memory in MiB of a process that embeds a scene of 1120 columns."""
    words = [sys.executable, "-m", "bench.embedding", "--peak", str(height), "--sizes", size, "--folder", str(folder)]
    return float(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))


def main() -> None:
    """Print ratios and peaks."""
    parser = argparse.ArgumentParser("python -m bench.embedding", description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["terramind_v1_tiny", "terramind_v1_base"])
    parser.add_argument("--formats", nargs="+", default=["cog", "zarr", "parquet"])
    parser.add_argument("--side", type=int, default=1120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--heights", nargs="*", type=int, default=[1120, 4480])
    parser.add_argument("--peak", type=int, help="embed one scene of this height, and print the peak of the memory")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if arguments.peak:
            scene = write_scene(folder / "wide.tif", 1120)
            with rasterio.open(scene) as file:
                profile, image = file.profile | {"height": arguments.peak}, file.read()
            tall = folder / f"tall{arguments.peak}.tif"
            with rasterio.open(tall, "w", **profile) as file:
                for top in range(0, arguments.peak, 1120):
                    file.write(image, window=Window(0, top, 1120, 1120))
            del image
            run_embed(tall, folder / "peak", arguments.sizes[0], "cog")
            print(read_status("VmHWM") / 2**20)
            return
        for size in arguments.sizes:
            for format in arguments.formats:
                ratios = measure_ratio(folder, size, format, arguments.side, arguments.rounds)
                middle = float(np.median(ratios))
                print(f"{size}, {format}: ratio {middle:.3f}, aim {AIM}: {'met' if middle >= AIM else 'missed'}")
        peaks = {height: measure_peak(folder, arguments.sizes[0], height) for height in arguments.heights}
        print("peak of the memory in MiB by height:", {height: round(peak) for height, peak in peaks.items()})


if __name__ == "__main__":
    main()
