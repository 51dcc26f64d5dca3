"""An epoch that is bound by loading: training steps of the tiny backbone on chips from a local disk."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.gpu.setting import OURS, Measurement, Setting

CHIPS, QUICK_CHIPS = 64, 8
SIDE, QUICK_SIDE = 512, 64
WORKERS = 12
"""Processes that load, or as many as there are cores."""


MODALITIES = ("S2L1C", "S1GRD")
CACHED = "from the cache of decoded chips"


def measure_loader(setting: Setting) -> None:
    """Measure epochs of training steps: chips read from files, and from the cache of decoded chips."""
    import terratorch  # noqa: F401  the data module is TerraTorch's

    from bench.loading import TRANSFORMS, make_loader
    from terramind_plugin.builders import build_by_name
    from terramind_plugin.data.datamodule import TerraMindDataModule

    chips, pixels = (QUICK_CHIPS, QUICK_SIDE) if setting.quick else (CHIPS, SIDE)
    workers = 0 if setting.quick else min(WORKERS, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        endings = write_chips(root / "chips", chips, pixels)
        torch.manual_seed(0)
        model: Any = build_by_name("terramind_v1_tiny", modalities=list(MODALITIES), out_indices=[2, 5, 8, 11])
        model.to(setting.device).train()
        make = partial(make_loader, TerraMindDataModule, root / "chips", endings, TRANSFORMS["D4"], check_values=False)
        for what, more in (("from files", {}), (CACHED, {"cache": root / "cache"})):
            loader = make(num_workers=workers, **more)
            run_epoch(setting, model, loader)  # starts workers, fills caches
            whole, idle = run_epoch(setting, model, loader)
            case = f"epoch of {chips} chips of {pixels} x {pixels}, {workers} workers, {what}"
            each = 1e3 * whole * max(1, workers) / chips
            setting.add(
                Measurement(case, OURS, 1e3 * whole, "ms", remark=f"{each:.1f} ms a sample and worker"),
                Measurement(f"{case}, time in which the step waits for a batch", OURS, idle / whole, ""),
            )
    setting.release()


def write_chips(root: Path, count: int, pixels: int) -> dict[str, str]:
    """Write chips of two modalities and labels, copies of a few simulated ones, and return their endings by folder.

    Args:
        root: Folder to write to.
        count: Number of chips.
        pixels: Their height and width.
    """
    from terramind_plugin.simulation.dataset import chip_files, simulate

    endings = {"S2L1C": "_S2.tif", "S1GRD": "_S1.tif", "mask": "_label.tif"}
    with tempfile.TemporaryDirectory() as folder:
        data = simulate(Path(folder, "simulated"), chips=3, size=pixels)
        for number in range(count):
            files = chip_files(data.root, data.chip_ids[number % len(data.chip_ids)])
            for kind, ending in endings.items():
                target = root / kind / f"c{number}{ending}"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(files["label" if kind == "mask" else kind], target)
    return endings


def run_epoch(setting: Setting, model: nn.Module, loader: Any) -> tuple[float, float]:
    """Return the seconds of an epoch, and those in which the step waits for its batch."""
    setting.synchronise()
    began = time.perf_counter()
    waited = 0.0
    batches = iter(loader)
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        waited += time.perf_counter() - asked
        if batch is None:
            break
        images = {name: batch["image"][name].to(setting.device, non_blocking=True).float() for name in MODALITIES}
        with setting.autocast():
            features = model(images)
        torch.stack([x.float().square().mean() for x in features]).sum().backward()
        model.zero_grad(set_to_none=True)
    setting.synchronise()
    return time.perf_counter() - began, waited
