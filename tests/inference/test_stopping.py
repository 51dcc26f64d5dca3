"""Scenes that a signal interrupts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from terramind_plugin.cli import main
from tests.inference.conftest import write_modality

WINDOWS = ("--crop", "64", "--stride", "48", "--margin", "4", "--batch_size", "2", "--accelerator", "cpu")


def _words(task: tuple[Path, Path], scene: Path, out: Path, *more: str) -> list[str]:
    config, checkpoint = task
    return list(
        map(str, ["map", "-c", config, "--ckpt_path", checkpoint, "--scene", scene, "--out", out, *WINDOWS, *more])
    )


def _rows(out: Path) -> list[str]:
    return [line for path in out.glob("*.partial/rows-*") for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_map_stops_after_a_row_block(
    number: int,
    status: int,
    radar_task: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    scene = write_modality(tmp_path / "scene.tif", "S1GRD", (700, 200))
    out = tmp_path / "out"
    done = threading.Event()

    def send() -> None:
        while not _rows(out) and not done.is_set():
            time.sleep(0.002)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    assert main(_words(radar_task, scene, out)) == status
    done.set()
    thread.join()
    assert capsys.readouterr().err.splitlines()[-1] == f"terramind: stopped by {signal.Signals(number).name}."
    assert [path.name for path in out.iterdir()] == ["scene_map.partial"]
    assert 0 < len(_rows(out)) < 14
    assert main(_words(radar_task, scene, out)) == 0
    assert main(_words(radar_task, scene, tmp_path / "whole")) == 0
    for path in (tmp_path / "whole").iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_map_on_two_processes_stops(number: int, radar_task: tuple[Path, Path], tmp_path: Path) -> None:
    scene = write_modality(tmp_path / "scene.tif", "S1GRD", (3000, 400))
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1767225600", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "terramind_plugin.cli"]
    out = tmp_path / "out"
    words = _words(radar_task, scene, out, "--devices", "2")
    with subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True, env=environment) as process:
        while len(list(out.glob("*.partial/rows-*"))) < 2 and process.poll() is None:
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(number)
        text = process.communicate(timeout=120)[1]
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}.get(signal.Signals(number), -number), text
    assert "Traceback" not in text
    assert children
    for _ in range(100):
        if not any(_runs(child) for child in children):
            break
        time.sleep(0.1)
    assert not [child for child in children if _runs(child)]
    assert [path.name for path in out.iterdir()] == ["scene_map.partial"]
    result = subprocess.run([*command, *words], stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["scene_map.png", "scene_pred.tif"]


def _runs(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
