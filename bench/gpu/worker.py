"""Runs parts in one process and writes what they found after each measurement: `command.py` starts it."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import sys
import time
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.gpu.parts import PARTS, REST
from bench.gpu.reference import load_reference
from bench.gpu.setting import Setting, first_line
from terramind_plugin.system.files import write_text

RUNNING, DONE = "running", "done"
"""States of a part; another state is a sentence that says why it ended early or did not run."""


def describe_device(device: torch.device) -> dict[str, Any]:
    """Return what a reader needs to judge the numbers."""
    found: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in ("timm", "einops", "diffusers", "triton", "rasterio")},
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "device": properties.name,
            "memory": f"{properties.total_memory / 2**30:.0f} GiB",
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def run_part(name: str, setting: Setting, report: dict[str, Any], save: Any, only: int | None = None) -> None:
    """Run the cases of a part, and note in the report how it ended.

    Args:
        name: Key of `PARTS`.
        setting: Where and how to measure; its measurements are part of the report.
        report: Report of the part.
        save: Writes the reports of all parts.
        only: Number of the only case to run; None for all.
    """
    began = time.monotonic()
    report |= {"state": RUNNING, "measurements": [], "left_out": []}

    def write() -> None:
        report["measurements"] = [asdict(one) for one in setting.measurements]
        report["left_out"] = setting.left_out
        report["seconds"] = round(time.monotonic() - began, 1)
        save()

    setting.save = write
    write()
    part = PARTS[name]
    cases = part.quick if setting.quick else part.cases
    state = DONE
    try:
        measure = part.load()
        for case in cases if only is None else cases[only : only + 1]:
            label = " ".join(map(str, case)) or name
            if setting.has_time(label, part.needs):
                try:
                    measure(setting, *case)
                except ModuleNotFoundError:
                    raise
                except Exception as error:  # recorded: other cases go on
                    traceback.print_exc()
                    state = f"failed: {label}: {first_line(error)}"
                setting.release()
    except ModuleNotFoundError as error:
        state = f"left out: it needs the package {error.name}"
    report["state"] = state
    write()
    print(f"{name}: {report['state']}, {report['seconds']} s", file=sys.stderr, flush=True)


def main(plan: str) -> None:
    """Run the parts of a plan.

    Args:
        plan: JSON: device, quick, parts (their names), seconds (of all), terratorch (folder of the model files, or null
            where the parts import TerraTorch itself), out (file to write, or to go on with); compile_only and only (the
            number of a case) for processes that compile ahead.
    """
    asked = json.loads(plan)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    device = torch.device(asked["device"])
    out = Path(asked["out"])
    ends = time.monotonic() + asked["seconds"]
    found: dict[str, Any] = json.loads(out.read_text()) if out.is_file() else {"parts": {}}
    found["machine"] = describe_device(device)

    def save() -> None:
        write_text(out, json.dumps(found, indent=1) + "\n")

    save()
    theirs = {} if asked["terratorch"] is None else load_reference(Path(asked["terratorch"]))
    for name in asked["parts"]:
        report = found["parts"].setdefault(name, {})
        stop = ends if name == REST else min(ends, time.monotonic() + PARTS[name].seconds)
        setting = Setting(device, asked["quick"], theirs, stop, save, asked.get("compile_only", False))
        run_part(name, setting, report, save, asked.get("only"))


if __name__ == "__main__":
    main(sys.argv[1])
