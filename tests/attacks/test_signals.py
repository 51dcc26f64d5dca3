"""Signals at any moment: no traceback, no damaged file under a final name, the same bytes after starting again."""

from __future__ import annotations

import hashlib
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from terramind_plugin.simulation.dataset import SimulatedDataset, simulate
from tests.attacks.forking import Ended, command, run_forked
from tests.inference.conftest import make_task, write_modality
from tests.runs.running import Runner, segmentation_config

KINDS = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}
UNFINISHED = (".tmp", ".partial")
RADAR = {
    "data.modalities": ["S1GRD"],
    "data.data_root": {"S1GRD": "nowhere"},
    "data.image_grep": {"S1GRD": "*"},
    "model_args.backbone_modalities": ["S1GRD"],
}
CHECKPOINT = {
    "class_path": "ModelCheckpoint",
    "init_args": {"dirpath": "checkpoints", "filename": "best", "save_last": True, "enable_version_counter": False},
}


def content_of(path: Path) -> str:
    """Return a digest of what a file holds; of a checkpoint, of its weights."""
    if path.suffix == ".ckpt":
        state = torch.load(path, weights_only=False)["state_dict"]
        return hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Target:
    """A command and the folder it writes to, below its working directory."""

    name: str
    words: Sequence[Any]
    signals: int
    out: str = "out"
    endings: tuple[str, ...] = (".tif", ".png", ".json", ".txt", ".csv", ".safetensors", ".ckpt", ".md")
    changing: tuple[str, ...] = ()
    """Files whose content is another one before the end."""
    seconds: float = 0.0
    expected: dict[str, str] = field(default_factory=dict)

    def files(self, folder: Path) -> dict[str, str]:
        """Return the digest of each file under a final name."""
        found = {}
        for path in sorted((folder / self.out).rglob("*")):
            parts = path.relative_to(folder).parts
            if path.is_file() and path.suffix in self.endings and not any(part.endswith(UNFINISHED) for part in parts):
                found[str(path.relative_to(folder))] = content_of(path)
        return found

    def run(self, folder: Path, **more: Any) -> Ended:
        """Run the command in a folder."""
        folder.mkdir(exist_ok=True)
        return run_forked(command(self.words), folder, **more)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SimulatedDataset:
    return simulate(tmp_path_factory.mktemp("scenes"), size=64, chips=8)


@pytest.fixture(scope="module")
def setting(scenes: SimulatedDataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Write configurations; what is forked has one thread and a fixed date."""
    runner = Runner(segmentation_config(scenes), tmp_path_factory.mktemp("configurations"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1767225600")
        yield runner.write
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def targets(
    scenes: SimulatedDataset, setting: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Target]:
    folder = tmp_path_factory.mktemp("inputs")
    config, checkpoint = make_task(folder, RADAR)
    radar = write_modality(folder / "radar.tif", "S1GRD", (420, 300))
    optical = write_modality(folder / "optical.tif", "S2L2A", (200, 140))
    windows = ("--crop", "64", "--stride", "48", "--margin", "4", "--batch_size", "2", "--accelerator", "cpu")
    data = scenes.root / "data"
    small = {
        "model_args.backbone": "terramind_sim_nano",
        "model_args.necks": [{"name": "terramind_pyramid", "patch_size": 8}],
        "model_args.backbone_out_indices": [0, 1, 3, 5],
        "trainer.callbacks": [CHECKPOINT],
        "trainer.enable_checkpointing": True,
        "trainer.max_epochs": 4,
        "trainer.default_root_dir": ".",
    }
    cache = {"model.freeze_backbone": True, "model_args.backbone_feature_cache": "cache"}
    predicted = {**small, "trainer.callbacks": [], "data.batch_size": 1, "data.predict_split": ...}
    fitted = folder / "fitted.ckpt"
    _save_task(setting(predicted), fitted)
    compared = setting(small | {"trainer.max_epochs": 2})
    every = [
        Target("map", ["map", "-c", config, "--ckpt_path", checkpoint, "--scene", radar, "--out", "out", *windows], 10),
        Target(
            "generate",
            ["generate", optical, "--modality", "S2L2A", "--to", "S1GRD,LULC", "--model", "terramind_sim_nano",
             "--steps", "2", "--out", "out", *windows],
            10,
        ),
        Target("fit", ["fit", "--config", setting(small | cache)], 10, "checkpoints", changing=(".ckpt",)),
        Target(
            "tokenize",
            ["tokenize", "--model", "terramind_sim_nano", "--out", "out",
             *(f"--data={name}={data / name}Hand" for name in ("S2L2A", "S1GRD", "DEM", "LULC", "NDVI"))],
            8,
        ),
        Target("simulate", ["simulate", "--out", "out", "--chips", "24", "--size", "128"], 8),
        Target("simulate on two processes", ["simulate", "--out", "out", "--chips", "12", "--processes", "2"], 4),
        Target(
            "predict",
            ["predict", "--config", setting(predicted), "--ckpt_path", fitted, "--predict_output_dir", "out"],
            8,
        ),
        Target(
            "compare",
            ["compare", "-c", compared, "--arms", "frozen", "--seeds", "1", "--out", "out"],
            5,
            endings=(".json", ".ckpt"),
            changing=("measured.json", "result.json", ".ckpt"),
        ),
        Target(
            "embed",
            ["embed", "--scene", f"S1GRD={radar}", "--model", "terramind_sim_nano", "--format", "parquet", "--stride",
             "16", "--out", "out", *windows[:2], *windows[-4:]],
            8,
            endings=(".parquet",),
        ),
        Target(
            "embed chips",
            ["embed", *sorted((data / "S2L2AHand").iterdir()), "--modality", "S2L2A", "--model", "terramind_sim_nano",
             "--preview", "--out", "out", *windows[-4:]],
            8,
        ),
    ]  # fmt: skip
    return {target.name: target for target in every}


def _save_task(config: Path, path: Path) -> None:
    from terramind_plugin.integration.lightning_cli import make_cli

    task = make_cli(["--config", str(config)]).model
    torch.save({"state_dict": task.state_dict(), "hyper_parameters": {}, "pytorch-lightning_version": "2.6.0"}, path)


NAMES = (
    "map",
    "generate",
    "fit",
    "tokenize",
    "simulate",
    "simulate on two processes",
    "predict",
    "compare",
    "embed",
    "embed chips",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_signals_at_any_moment(targets: dict[str, Target], name: str, tmp_path: Path, record_property: Any) -> None:
    target = targets[name]
    whole = target.run(tmp_path / "whole")
    assert whole.status == 0, whole.text
    expected = target.files(tmp_path / "whole")
    assert expected
    random = np.random.default_rng(NAMES.index(name))
    ends: Counter[str] = Counter()
    for number in range(target.signals):
        kind, folder = KINDS[number % len(KINDS)], tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        # Earlier a signal would meet Python itself, before the command has asked for signals.
        after = 0.2 + random.uniform(0, 0.9) * whole.seconds
        ended = target.run(folder, number=kind, after=after)
        ends[f"{kind.name} {ended.status}"] += 1
        story = f"{kind.name} after {after:.2f} of {whole.seconds:.2f} s: {ended.status}\n{ended.text}"
        assert ended.status in (STATUS[kind], 0), story
        assert "Traceback" not in ended.text, story
        for file, digest in target.files(folder).items():  # reading a checkpoint fails where it is damaged
            assert digest == expected.get(file) or file.endswith(target.changing or ("\0",)), f"{file}: {story}"
        again = target.run(folder)
        assert again.status == 0, f"{again.text}\nafter {story}"
        assert "Traceback" not in again.text, story
        found = target.files(folder)
        dated = {file for file in found if "/last-2" in file or "/best-2" in file}
        results = {file for file in found if file.endswith(".json") and name == "compare"}  # hold seconds
        assert {file: found[file] for file in found.keys() - dated - results} == {
            file: expected[file] for file in expected.keys() - results
        }, story
        assert results <= expected.keys(), story
    print(f"\n{name}: {whole.seconds:.1f} s; {dict(ends)}")
    record_property("ends", dict(ends))
