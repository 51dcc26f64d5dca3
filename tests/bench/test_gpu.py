"""`python -m bench --gpu`: the same parts on a CPU, with few packages, and what becomes of a part that fails."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.gpu import ahead, command
from bench.gpu.memory import peak_bytes
from bench.gpu.page import AIMS, render
from bench.gpu.parts import PARTS
from bench.gpu.reference import find_files
from bench.gpu.setting import Setting

ROOT = Path(__file__).parents[2]
MISSING = ("lightning", "rasterio", "jsonargparse", "torchgeo", "segmentation_models_pytorch", "albumentations",
           "scipy", "rich", "matplotlib", "sklearn", "geopandas", "transformers")  # fmt: skip
"""Packages that a machine with a GPU may lack."""


@pytest.fixture(scope="module")
def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run_worker(plan: dict[str, object], environment: dict[str, str], before: str = "") -> dict[str, object]:
    """Run the worker after some lines of Python, and return what it wrote."""
    code = f"import sys\n{before}\nfrom bench.gpu.worker import main\nmain(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, json.dumps(plan)], cwd=ROOT, env=environment, check=True, timeout=300)
    return json.loads(Path(str(plan["out"])).read_text())


def test_few_packages_are_enough(tmp_path, environment):
    """Steps of both models run without TerraTorch's other dependencies; what needs one of them says so."""
    hidden = "\n".join(f"sys.modules[{name!r}] = None" for name in MISSING)
    plan = {
        "device": "cpu", "quick": True, "parts": ["steps", "scene"], "seconds": 100.0,
        "terratorch": str(find_files(None)), "out": str(tmp_path / "gpu.json"),
    }  # fmt: skip
    parts = run_worker(plan, environment, hidden)["parts"]
    assert parts["scene"]["state"] == "left out: it needs the package rasterio"
    assert parts["steps"]["state"] == "done"
    rows = {(row["case"], row["side"]): row for row in parts["steps"]["measurements"]}
    assert set(rows) == {
        (f"tiny 64, {work}", f"{who}, {mode}")
        for work, modes in (("forward", ["eager"]), ("step", ["eager", "graphs"]))
        for who in ("TerraTorch", "ours") for mode in modes if (who, mode) != ("TerraTorch", "graphs")
    }  # fmt: skip
    assert all(row["value"] > 0 and row["rounds"] == 2 for row in rows.values())
    assert rows["tiny 64, step", "TerraTorch, eager"]["ratio"] == 1.0


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path, environment):
    out = tmp_path / "gpu.json"
    told = subprocess.run(
        [sys.executable, "-m", "bench", "--gpu", "--device", "cpu", "--quick", "--out", str(out)],
        cwd=ROOT, env=environment, check=True, timeout=1500, capture_output=True, text=True,
    )  # fmt: skip
    parts = json.loads(out.read_text())["parts"]
    assert {name: report["state"] for name, report in parts.items()} == dict.fromkeys(PARTS, "done")
    for name, report in parts.items():
        failed = [row for row in report["measurements"] if row["value"] is None and "attention" not in row["case"]]
        assert report["measurements"], name
        assert not failed, name
    apart = [row["value"] for row in parts["parity"]["measurements"]
             if "float32" in row["case"] and row["side"] == "ours from TerraTorch"]  # fmt: skip
    assert len(apart) == 2
    assert max(apart) < 1e-5
    assert "Its numbers mean nothing" in told.stdout
    assert out.with_suffix(".md").read_text() == told.stdout


FAILING = """
import json, os, sys, time
plan = json.loads(sys.argv[1])
found = json.load(open(plan["out"])) if os.path.exists(plan["out"]) else {"parts": {}}
for name in plan["parts"]:
    found["parts"][name] = {"state": "running", "measurements": [], "left_out": [], "seconds": 0.0}
    json.dump(found, open(plan["out"], "w"))
    if name == "parity":
        os._exit(7)
    if name == "thinking":
        time.sleep(60)
    found["parts"][name]["state"] = "done"
    json.dump(found, open(plan["out"], "w"))
"""


def test_a_part_that_crashes_or_hangs_ends_alone(tmp_path, monkeypatch):
    """The parts after it run in a new process, and results of the parts before it stay."""
    start = subprocess.Popen
    monkeypatch.setattr(command.subprocess, "Popen", lambda words: start([sys.executable, "-c", FAILING, words[-1]]))
    monkeypatch.setattr(command, "GRACE", 0.0)
    monkeypatch.setitem(command.PARTS, "thinking", PARTS["thinking"]._replace(seconds=1.0))
    arguments = argparse.Namespace(device="cpu", quick=False, out=tmp_path / "gpu.json", terratorch=tmp_path)
    began = time.monotonic()
    command.run_group(["ceilings", "parity", "steps", "thinking", "waits"], arguments, time.monotonic() + 300)
    states = {name: report["state"] for name, report in json.loads(arguments.out.read_text())["parts"].items()}
    assert states.pop("thinking").startswith("stopped: ")
    assert states == {"ceilings": "done", "parity": "failed: its process ended with status 7",
                      "steps": "done", "waits": "done"}  # fmt: skip
    assert time.monotonic() - began < 30


def test_a_stopped_run_writes_what_it_has(tmp_path, monkeypatch, capsys):
    out = tmp_path / "gpu.json"
    report = {"state": "running", "measurements": [measured("a case", "ours", 5)], "left_out": [], "seconds": 1.0}

    def measure(arguments):
        arguments.out.write_text(json.dumps({"machine": {"device": "A card"}, "parts": {"steps": report}}))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(command, "measure", measure)
    before = signal.getsignal(signal.SIGTERM)
    assert command.main(["--device", "cpu", "--out", str(out)]) == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert "**steps** (1 s): stopped by signal 15." in out.with_suffix(".md").read_text()
    assert "| a case | ours | 5 ms |" in capsys.readouterr().out


def test_compiling_ahead_ends_with_its_time(tmp_path, monkeypatch):
    """A few processes run at a time, in order of worth, and none is left."""
    processes: list[subprocess.Popen[bytes]] = []
    plans = []
    start = subprocess.Popen

    def sleep(words, **_):
        plans.append(json.loads(words[-1]))
        processes.append(start(["sleep", "60" if len(processes) < 2 else "0"]))
        return processes[-1]

    monkeypatch.setattr(ahead, "MOST", 3)
    monkeypatch.setattr(ahead.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(ahead.subprocess, "Popen", sleep)
    with ahead.compiling({"device": "cuda"}, ["steps", "decoding"], tmp_path, time.monotonic() + 1):
        assert len(processes) == 3
    wanted = ahead.list_jobs(["steps", "decoding"])
    assert [(plan["parts"][0], plan["only"]) for plan in plans] == wanted  # the third place was free at once
    assert wanted[:2] == [("steps", 0), ("steps", 1)]
    assert all(plan["compile_only"] for plan in plans)
    assert all(process.poll() is not None for process in processes)


def test_peak_of_live_tensors():
    """What lives at one time counts, what an operation only reads does not."""

    def work():
        kept = torch.ones(1024)
        for _ in range(3):
            kept.view(32, 32).add(1).mul(2)

    setting = Setting(torch.device("cpu"), True, {}, 0.0, lambda: None)
    assert peak_bytes(setting, work) == 3 * 1024 * 4


def measured(case: str, side: str, value: float, unit: str = "ms", ratio: float | None = None) -> dict[str, object]:
    return {"case": case, "side": side, "value": value, "unit": unit, "ratio": ratio, "spread": None, "rounds": 5,
            "remark": ""}  # fmt: skip


def test_verdicts():
    found = {
        "machine": {"device": "A card", "date": "2026-11-27"},
        "parts": {
            "parity": [measured("tiny 224, float32, features", "ours from TerraTorch", 2e-6, "")],
            "steps": [measured("tiny 224, step", "ours, graphs", 5.1, ratio=5.5),
                      measured("base 224, step", "ours, graphs", 9.0, ratio=3.9)],
            "memory": [measured("base 512, step, memory", "TerraTorch", 900, "MiB"),
                       measured("base 512, step, memory", "ours", 800, "MiB"),
                       measured("base 512, step, graphs", "ours, checkpointing", 70, ratio=0.8)],
            "waits": [measured("TiM, step", "ours, graphs", 2, "waits"),
                      measured("TiM, step", "ours, eager", 3, "waits"),
                      measured("TiM, step", "ours, graphs", 0, "recompilations")],
        },
    }  # fmt: skip
    found["parts"] = {
        name: {"state": "done", "seconds": 1.0, "left_out": [], "measurements": rows}
        for name, rows in found["parts"].items()
    }
    verdicts = {cells[0]: cells[2:] for cells in (aim.verdict(found) for aim in AIMS)}
    assert verdicts["parity with TerraTorch, float32, largest difference"] == ["2e-06", "met"]
    assert verdicts["tiny 224, step: times as fast"] == ["5.5", "met"]
    assert verdicts["base 224, step: times as fast"] == ["3.9", "**missed**"]
    assert verdicts["base 512, step: times as fast"] == ["", "not measured"]
    assert verdicts["activation checkpointing: times the step"] == ["1.25", "met"]
    assert verdicts["memory of a step: times TerraTorch's"] == ["0.889", "met"]
    assert verdicts["waits in steps with graphs"] == ["2", "**missed**"]
    assert verdicts["recompilations after warm-up"] == ["0", "met"]
    page = render(found)
    assert page.startswith("A card, 2026-11-27.")
    assert "| tiny 224, step | ours, graphs | 5.1 ms | 5.50 | 5 |" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quick", "--write"], "give no result to write"),
        (["--device", "cpu", "--write"], "give no result to write"),
        (["--seconds", "0"], "--seconds must be above 0, got 0.0"),
        (["--terratorch", "nowhere"], "not in nowhere. Give the folder terratorch/models/backbones/terramind"),
    ],
)
def test_wrong_arguments(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        command.parse_arguments(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_model_files_are_found_from_any_of_their_folders():
    inside = find_files(None)
    top = Path(importlib.util.find_spec("terratorch").submodule_search_locations[0])
    assert inside == top / "models" / "backbones" / "terramind"
    assert {find_files(folder) for folder in (inside, inside.parent, top, top.parent)} == {inside}
