"""Runs in processes of their own: the commands as a user types them, and several processes at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = Path(sys.executable).parent
COUNTER = '''
import json
from pathlib import Path

from lightning.pytorch.callbacks import Callback


class Counter(Callback):
    """Writes down the files of each batch of each process."""

    def on_fit_start(self, trainer, pl_module):
        self.batches = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(batch["filename"]["S2L1C"])

    def on_fit_end(self, trainer, pl_module):
        Path(f"batches_{trainer.global_rank}.json").write_text(json.dumps(self.batches))
'''


def _run(program: str, *words: Any, cwd: Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    command = PROGRAMS / program
    if not command.exists():
        pytest.skip(f"there is no {program} beside this Python")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": path} if path else {})
    return subprocess.run(
        [command, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=540, check=False
    )


@pytest.mark.slow
def test_terratorch_finds_the_plugin_from_any_folder(runner: Any, tmp_path: Path) -> None:
    config = runner.write({"trainer.fast_dev_run": True})
    result = _run("terratorch", "fit", "--config", config, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    wrong = runner.write({"trainer.fast_dev_run": True, "model_args.backbone_bands": {"S2L1C": ["GREN"]}})
    result = _run("terratorch", "fit", "--config", wrong, cwd=tmp_path)
    assert result.returncode != 0
    assert "Unknown band 'GREN' for modality S2L1C" in result.stderr  # the plugin's own backbone


@pytest.mark.slow
def test_every_process_gets_full_batches(runner: Any, scenes: Any, tmp_path: Path) -> None:
    (tmp_path / "counter.py").write_text(COUNTER)
    callbacks = [{"class_path": "counter.Counter"}]
    config = runner.write({"trainer.callbacks": callbacks, "trainer.devices": 2, "trainer.strategy": "ddp"})
    result = _run("terramind", "fit", "--config", config, cwd=tmp_path, path=str(tmp_path))
    assert result.returncode == 0, result.stderr[-3000:]
    batches = [json.loads((tmp_path / f"batches_{rank}.json").read_text()) for rank in (0, 1)]
    assert [[len(batch) for batch in of_rank] for of_rank in batches] == [[2], [2]]
    files = sorted(Path(file).name for of_rank in batches for batch in of_rank for file in batch)
    assert files == [f"{name}_S2Hand.tif" for name in sorted(scenes.splits["train"])]


@pytest.mark.slow
def test_drawn_modalities_on_two_processes(runner: Any, tmp_path: Path) -> None:
    (tmp_path / "counter.py").write_text(COUNTER)
    changes = {
        "data.sample_num_modalities": 1,
        "data.train_repeats": 2,
        "trainer.callbacks": [{"class_path": "counter.Counter"}],
        "trainer.devices": 2,
        "trainer.strategy": "ddp_find_unused_parameters_true",
    }
    result = _run("terramind", "fit", "--config", runner.write(changes), cwd=tmp_path, path=str(tmp_path))
    assert result.returncode == 0, result.stderr[-3000:]
    batches = [json.loads((tmp_path / f"batches_{rank}.json").read_text()) for rank in (0, 1)]
    assert [[len(batch) for batch in of_rank] for of_rank in batches] == [[2, 2], [2, 2]]


@pytest.mark.slow
def test_too_few_samples_for_all_processes(runner: Any, tmp_path: Path) -> None:
    config = runner.write({"data.batch_size": 3, "trainer.devices": 2, "trainer.strategy": "ddp"})
    result = _run("terramind", "fit", "--config", config, cwd=tmp_path)
    assert result.returncode == 2
    assert "4 training samples do not fill one batch of 3 on 2 processes" in result.stderr


@pytest.mark.slow
def test_thinking_on_two_processes(runner: Any, tmp_path: Path) -> None:
    """Plain ddp: it stops at the second step if a parameter that trains has no gradient."""
    changes = {
        "model_args.backbone": "terramind_v1_tiny_tim",
        "trainer.max_epochs": 3,
        "trainer.devices": 2,
        "trainer.strategy": "ddp",
        "data.batch_size": 1,
        "trainer.callbacks": [{"class_path": "terramind_plugin.FiniteLoss"}],
    }
    result = _run("terratorch", "fit", "--config", runner.write(changes), cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "max_epochs=3" in result.stderr + result.stdout
