"""Progress of training: epochs count from 1, with loss and score, one line each where the output is a file."""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from torch.utils.data import DataLoader

from terramind_plugin.integration import quiet
from terramind_plugin.integration.progress import EpochProgress, describe_epoch, replace_bars


class Line(LightningModule):
    """A model of one weight with the metrics of a segmentation."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        loss = ((self.weight - batch) ** 2).mean()
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, index):
        self.log("val/loss", 0.25)
        self.log("val/mIoU", 0.5)
        self.log("val/F1_Score", 0.75)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(**options):
    numbers = DataLoader(torch.ones(4), batch_size=2)
    fixed = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_model_summary": False}
    trainer = Trainer(**{"enable_checkpointing": False, **fixed, **options})
    replace_bars(trainer)
    trainer.fit(Line(), numbers, numbers)
    return trainer


def test_a_log_file_gets_a_line_an_epoch(capfd):
    trainer = fit(callbacks=[RichProgressBar()])
    assert isinstance(trainer.progress_bar_callback, EpochProgress)
    lines = [line for line in capfd.readouterr().out.splitlines() if line.strip()]
    assert len(lines) == 2, lines
    assert lines[0].startswith("Epoch 1/2: train/loss 0.")
    assert lines[1].startswith("Epoch 2/2: train/loss 0.")
    assert ", val/loss 0.250, val/mIoU 0.500, " in lines[1]
    assert lines[1].endswith(" s")


def test_the_last_line_names_the_checkpoint(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    best = ModelCheckpoint(dirpath="run", filename="best", monitor="val/mIoU", mode="max")
    fit(callbacks=[RichProgressBar(), best], enable_checkpointing=True)
    assert capfd.readouterr().out.rstrip().endswith("\nBest checkpoint (val/mIoU 0.500): run/best.ckpt")
    fit(callbacks=[RichProgressBar()], enable_checkpointing=True)
    assert capfd.readouterr().out.rstrip().endswith("\nCheckpoint: checkpoints/epoch=1-step=4.ckpt")


def test_without_a_bar_there_is_no_line(capfd):
    fit(enable_progress_bar=False)
    assert "Epoch" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("number", "epochs", "text"), [(0, 12, "Epoch  1/12"), (11, 12, "Epoch 12/12"), (4, -1, "Epoch 5")]
)
def test_epochs_count_from_one(number, epochs, text):
    assert describe_epoch(number, epochs) == text


def test_libraries_are_quiet_and_what_concerns_the_user_is_not(caplog):
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(logger.filters)
        quiet.silence_libraries()
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use ...", stacklevel=1)
        warnings.warn("something of the user's", stacklevel=1)
        with caplog.at_level(logging.INFO, logger.name):
            logger.info("💡 Tip: try installing something")
            logger.info("GPU available: False, used: False")
        logger.filters[:] = before
    assert [str(one.message) for one in caught] == ["something of the user's"]
    assert caplog.messages == ["GPU available: False, used: False"]
