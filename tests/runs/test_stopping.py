"""Runs that a signal ends, and checkpoints of runs before them."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.runs.running import Fitted, Runner

BEST = {
    "class_path": "ModelCheckpoint",
    "init_args": {"filename": "best", "monitor": "val/loss", "save_last": True, "enable_version_counter": False},
}
WEIGHTS = {
    "class_path": "StateDictAwareModelCheckpoint",
    "init_args": {
        "filename": "best-weights", "monitor": "val/loss", "save_weights_only": True, "enable_version_counter": False,
    },
}  # fmt: skip
DATED = re.compile(r"(best|best-weights|last)-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(-\d+)?\.ckpt")


class Terminate(Callback):
    """Sends SIGTERM to its own process when a step, or a batch of prediction, ends."""

    def on_train_batch_end(self, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def on_predict_batch_end(self, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class Interrupt(Callback):
    """Presses Ctrl-C when a step ends."""

    def on_train_batch_end(self, *arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def _handlers() -> Any:
    """Give back SIGINT, which Lightning ignores after Ctrl-C."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def named(callback: type[Callback], patch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return an entry of a configuration for a callback of this file."""
    import terramind_plugin.integration.callbacks as module

    patch.setattr(module, callback.__name__, callback, raising=False)
    return {"class_path": f"terramind_plugin.integration.callbacks.{callback.__name__}"}


def test_fit_ends_with_143_after_sigterm(runner: Runner, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    changes = {"trainer.callbacks": [named(Terminate, monkeypatch)], "trainer.max_epochs": 3}
    with pytest.raises(SystemExit) as plain:
        runner.terratorch("fit", changes)
    assert plain.value.code == 143
    assert runner.terramind("fit", changes) == 143
    assert capsys.readouterr().err.splitlines()[-1] == "terramind: stopped by SIGTERM."
    changes["trainer.callbacks"] = [named(Interrupt, monkeypatch)]
    assert runner.terramind("fit", changes) == 130


def test_predict_stops_after_a_batch(
    runner: Runner, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "trainer.callbacks": [named(Terminate, monkeypatch), {"class_path": "terramind_plugin.GeoTiffWriter"}],
        "data.batch_size": 1,
        "data.predict_split": ...,
        "data.predict_data_root": runner.base["data"]["init_args"]["data_root"],
    }
    for number, run in enumerate((runner.terratorch, runner.terramind)):
        out = tmp_path / f"out{number}"
        words = ("--ckpt_path", fitted.checkpoint, "--predict_output_dir", out)
        if run == runner.terramind:
            assert run("predict", changes, *words) == 143
        else:
            with pytest.raises(SystemExit) as stopped:
                run("predict", changes, *words)
            assert stopped.value.code == 143
        assert len(list(out.rglob("*"))) == 1


def test_predictions_replace_neither_images_nor_labels(
    runner: Runner, fitted: Fitted, tmp_path: Path, capsys: Any
) -> None:
    data = runner.base["data"]["init_args"]
    roots = {name: tmp_path / name for name in data["data_root"]}
    (tmp_path / "label").mkdir()
    for name, root in roots.items():
        root.mkdir()
        file = sorted(Path(data["data_root"][name]).iterdir())[0]
        (root / "a.tif").write_bytes(file.read_bytes())
    changes = {
        "data.predict_data_root": {name: str(root) for name, root in roots.items()},
        "data.image_grep": dict.fromkeys(roots, "*.tif"), "data.predict_split": ..., "data.label_grep": "*.tif",
    }  # fmt: skip
    label = tmp_path / "label" / "a_pred.tif"
    label.write_bytes(b"a label")
    words = ("--ckpt_path", fitted.checkpoint, "--predict_output_dir")
    assert (
        runner.terramind("predict", changes | {"data.test_label_data_root": str(label.parent)}, *words, label.parent)
        == 2
    )
    assert "is an image or a label and would be overwritten" in capsys.readouterr().err
    assert label.read_bytes() == b"a label"
    # Among the images a prediction would be one of them in the next run.
    assert runner.terramind("predict", changes, *words, roots["S2L1C"]) == 2
    assert "would lie among the images" in capsys.readouterr().err
    assert [path.name for path in roots["S2L1C"].iterdir()] == ["a.tif"]
    assert runner.terramind("predict", changes, *words, label / "below a file") == 2
    assert "below a file: Not a directory" in capsys.readouterr().err
    assert runner.terramind("predict", changes, *words, tmp_path / "out") == 0
    # A file of its own from before is replaced, an image of that name is not.
    assert runner.terramind("predict", changes, *words, tmp_path / "out") == 0
    (roots["S2L1C"] / "a_pred.tif").hardlink_to(tmp_path / "out" / "a_pred.tif")
    (roots["S1GRD"] / "a_pred.tif").write_bytes((roots["S1GRD"] / "a.tif").read_bytes())
    before = (tmp_path / "out" / "a_pred.tif").read_bytes()
    assert runner.terramind("predict", changes, *words, tmp_path / "out") == 2
    assert (tmp_path / "out" / "a_pred.tif").read_bytes() == before


def test_earlier_checkpoints_keep_a_name(runner: Runner, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "checkpoints"
    callbacks = [
        {**one, "init_args": {**one["init_args"], "dirpath": str(folder)}}  # type: ignore[dict-item]
        for one in (BEST, WEIGHTS)
    ]
    changes = {"trainer.callbacks": callbacks, "trainer.enable_checkpointing": True}
    runner.terratorch("fit", changes)
    names = {"best.ckpt", "best-weights.ckpt", "last.ckpt"}
    assert {path.name for path in folder.iterdir()} == names
    first = {name: (folder / name).read_bytes() for name in names}
    caplog.clear()
    runner.terratorch("fit", changes | {"model.lr": 1e-2})
    now = {path.name for path in folder.iterdir()}
    assert len(now) == 6
    assert all(DATED.fullmatch(name) for name in now - names)
    said = [record.getMessage() for record in caplog.records if "belongs to an earlier run" in record.getMessage()]
    assert len(said) == 3
    assert {(folder / name).read_bytes() for name in now - names} == set(first.values())
    newest = torch.load(folder / "best.ckpt", weights_only=False)
    assert newest["hyper_parameters"]["lr"] == 1e-2
    # A run that goes on from there keeps the names.
    runner.terratorch("fit", changes | {"model.lr": 1e-2, "trainer.max_epochs": 2}, "--ckpt_path", folder / "best.ckpt")
    assert {path.name for path in folder.iterdir()} == now
    assert torch.load(folder / "last.ckpt", weights_only=False)["global_step"] > newest["global_step"]


def test_versions_of_lightning_stay(runner: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "best.ckpt").write_bytes(b"of an earlier run")
    callbacks = [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(folder), "filename": "best"}}]
    runner.terratorch("fit", {"trainer.callbacks": callbacks, "trainer.enable_checkpointing": True})
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "best-v1.ckpt"}
    assert (folder / "best.ckpt").read_bytes() == b"of an earlier run"
