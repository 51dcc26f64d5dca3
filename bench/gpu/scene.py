"""A scene from file to file, beside its model alone and reading alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.gpu.models import compiled, failures
from bench.gpu.setting import EAGER, GRAPHS, OURS, Measurement, Setting, side
from terramind_plugin.backbones.network import compile_network
from terramind_plugin.builders import build_by_name
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.model.standardisation import Standardisation

CROP, QUICK_CROP = 224, 64
MODALITY, CLASSES = "S2L2A", 10
BATCH, QUICK_BATCH = 32, 4
"""Windows at once: large enough for a GPU to be busy."""


class Network(nn.Module):
    """A backbone and a linear map to classes of each pixel.

    Args:
        size: Size of the backbone.
    """

    def __init__(self, size: str) -> None:
        super().__init__()
        entry = MODALITIES[MODALITY]
        self.scale = Standardisation(entry.mean, entry.std, 0.0)
        self.backbone: Any = build_by_name(f"terramind_v1_{size}", modalities=[MODALITY], out_indices=[-1])
        self.patch = self.backbone.patch_size
        self.head = nn.Linear(self.backbone.out_channels[-1], CLASSES * self.patch**2)

    def forward(self, image: Tensor) -> Tensor:
        """Return scores [B, classes, h, w] of images [B, bands, h, w] in their units."""
        rows, columns = (n // self.patch for n in image.shape[-2:])
        pixels: Tensor = self.head(self.backbone({MODALITY: self.scale(image)})[-1])
        shaped = pixels.view(len(image), rows, columns, CLASSES, self.patch, self.patch)
        return shaped.permute(0, 3, 1, 4, 2, 5).reshape(len(image), CLASSES, rows * self.patch, columns * self.patch)


class SceneModel(nn.Module):
    """A network as the model of a scene.

    Args:
        size: Size of the backbone.
    """

    channels = CLASSES

    def __init__(self, size: str) -> None:
        super().__init__()
        from terramind_plugin.inference.outputs import NO_DATA
        from terramind_plugin.raster.writer import Layer

        colors = {number: (25 * number, 0, 255 - 25 * number, 255) for number in range(CLASSES)}
        self.layers = (Layer("classes", "uint8", ("class",), "class id", NO_DATA, colors),)
        self.network = Network(size)

    def prepare(self, mode: str) -> None:
        """Compile the network for windows of one size."""
        compile_network(self.network, mode)

    def forward(self, images: Mapping[str, Tensor], corners: Sequence[tuple[int, int]]) -> Tensor:
        """Return scores [B, classes, h, w] of windows in their units."""
        scores: Tensor = self.network(images[MODALITY])
        return scores

    def finish(self, blended: Tensor) -> list[Tensor]:
        """Return classes [1, rows, W]."""
        return [blended.max(dim=0, keepdim=True).indices.to(torch.uint8)]


def measure_scene(setting: Setting, size: str, pixels: int) -> None:
    """Measure a scene on a local disk: from file to file, and the model alone on as many windows."""
    import rasterio  # noqa: F401  the part needs it; scene_runs would say so less plainly

    from bench.scene_runs import write_scene

    torch.manual_seed(0)
    model = SceneModel(size).to(setting.device).eval()
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        scene = write_scene(Path(name, "scene.tif"), pixels)
        for mode in (EAGER, GRAPHS):
            _measure(setting, f"{size}, scene of {pixels} x {pixels}", mode, model, scene, Path(name))


def _measure(setting: Setting, case: str, mode: str, model: SceneModel, scene: Path, folder: Path) -> None:
    from terramind_plugin.inference.planning import plan_jobs
    from terramind_plugin.inference.runner import run_jobs
    from terramind_plugin.raster.reader import Expected

    options = _options(setting, folder / mode, mode)
    (job,) = plan_jobs([{MODALITY: scene}], {MODALITY: Expected.of(MODALITIES[MODALITY])}, options, model.network.patch)
    job.decide("map", model.layers, {"model": case, "weights": "random"}, options)
    windows = len(job.plan.columns.starts) * sum(len(block.rows) for block in job.plan.blocks(options.batch_size))
    alone = _time_model(setting, model, mode, windows, options)
    mega = scene_pixels(job) / 1e6
    run_jobs(model, [job], options)  # compiles, fills the cache of files
    seconds = []
    for _ in range(1 if setting.quick else 3):
        setting.synchronise()
        began = time.perf_counter()
        run_jobs(model, [job], options)
        setting.synchronise()
        seconds.append(time.perf_counter() - began)
    whole = min(seconds)
    name = side(OURS, mode)
    remark = "; ".join(filter(None, [f"{mega / whole:.3g} Mpixel/s", failures()]))
    setting.add(
        Measurement(f"{case}, model alone", name, 1e3 * alone, "ms", remark=f"{windows} windows"),
        Measurement(f"{case}, file to file", name, 1e3 * whole, "ms", remark=remark),
        Measurement(f"{case}, model's share", name, alone / whole, ""),
    )


def scene_pixels(job: Any) -> int:
    """Return the number of pixels of a job's scene."""
    rows, columns = job.grid.shape
    return int(rows * columns)


def _options(setting: Setting, out: Path, mode: str) -> Any:
    from terramind_plugin.inference.options import Options

    crop = QUICK_CROP if setting.quick else CROP
    return Options(
        out, crop=crop, stride=crop * 6 // 7 // 16 * 16, margin=0,
        batch_size=QUICK_BATCH if setting.quick else BATCH, precision="bf16", restart=True,
        accelerator=setting.device.type,
        compile="off" if mode == EAGER else mode,
    )  # fmt: skip


def _time_model(setting: Setting, model: SceneModel, mode: str, windows: int, options: Any) -> float:
    """Return the seconds that the model alone takes for a number of windows, which lie on the device."""
    image = 1500 + 500 * setting.random(options.batch_size, 12, options.crop, options.crop)
    network = compiled(model.network, OURS, mode)

    def go(count: int) -> None:
        with torch.inference_mode(), setting.autocast():
            for _ in range(count):
                setting.begin_step()
                network(image)

    go(3)
    setting.synchronise()
    began = time.perf_counter()
    go(-(-windows // options.batch_size))
    setting.synchronise()
    return time.perf_counter() - began
