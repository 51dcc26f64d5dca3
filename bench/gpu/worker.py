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
from terramind_plugin.files import write_text

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


def run_part(name: str, setting: Setting, report: dict[str, Any], save: Any) -> None:
    """Run one part, and note in the report how it ended.

    Args:
        name: Key of `PARTS`.
        setting: Where and how to measure; its measurements are part of the report.
        report: Report of the part.
        save: Writes the reports of all parts.
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
    try:
        PARTS[name].load()(setting)
        report["state"] = DONE
    except ModuleNotFoundError as error:
        report["state"] = f"left out: it needs the package {error.name}"
    except Exception as error:  # recorded: the other parts go on
        traceback.print_exc()
        report["state"] = f"failed: {first_line(error)}"
    write()
    print(f"{name}: {report['state']}, {report['seconds']} s", file=sys.stderr, flush=True)


def main(plan: str) -> None:
    """Run the parts of a plan.

    Args:
        plan: JSON: device, quick, parts (their names), seconds (of all), terratorch (folder of the model files, or null
            where the parts import TerraTorch itself), out (file to write, or to go on with).
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
        setting = Setting(device, asked["quick"], theirs, stop, save)
        run_part(name, setting, report, save)


if __name__ == "__main__":
    main(sys.argv[1])
