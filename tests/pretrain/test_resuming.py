"""Gradients that accumulate: batches draw differently, and a resumed run repeats the uninterrupted one to the bit."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import Dataset

from terramind_plugin import MaskedModellingTask, TokenizerTask
from terramind_plugin.pretrain.loading import Draw, PretrainingDataModule
from tests.conftest import one_thread

NANO = "terramind_sim_nano"
BATCHES, BATCH_SIZE = 10, 2


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


class Samples(Dataset):
    """Random samples; `equal` makes them all the same."""

    def __init__(self, make, equal):
        self.make, self.equal = make, equal

    def __len__(self):
        return BATCHES * BATCH_SIZE + 1

    def __getitem__(self, draw):
        seed = list(draw.seed) if isinstance(draw, Draw) else [draw]
        number = 0 if self.equal else draw.number if isinstance(draw, Draw) else draw
        return {**self.make(torch.Generator().manual_seed(number)), "seed": torch.tensor(seed)}


def masked_sample(random):
    tokens = {name: torch.randint(256, (2, 2), generator=random) for name in ("LULC", "DEM")}
    return {"pixels": {"DEM": torch.randn(1, 16, 16, generator=random)}, "tokens": tokens, "sequences": {}}


def image_sample(random):
    return {"image": torch.randn(1, 16, 16, generator=random)}


class Data(PretrainingDataModule):
    def __init__(self, make, equal=False):
        super().__init__(None, None, BATCH_SIZE, 0, 0)
        self.train_data = self.val_data = Samples(make, equal)


class Diary(Callback):
    """Notes which samples each batch holds, and its loss; writes a checkpoint after some batches."""

    def __init__(self, folder=None, after=()):
        self.folder, self.after = folder, after
        self.batches, self.losses = [], []

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        self.batches.append((trainer.current_epoch, batch_idx, batch["seed"].tolist()))
        self.losses.append(float(outputs["loss"]))
        if self.folder is not None and len(self.batches) in self.after:
            trainer.save_checkpoint(self.folder / f"{len(self.batches)}.ckpt")


def masked(**changes):
    given = {"pixels": ["DEM"], "tokens": ["LULC", "DEM"], "input_tokens": [2, 4], "target_tokens": 4, "img_size": 16}
    return MaskedModellingTask(NANO, **given, lr=1e-2, warmup_steps=1, **changes)


def tokenizer():
    return TokenizerTask(f"{NANO}_tokenizer_dem", lr=1e-2, warmup_steps=1)


def run(task, make, folder, *callbacks, ckpt_path=None, equal=False, **options):
    torch.manual_seed(0)
    given = {"max_steps": 7, "limit_val_batches": 0, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    logger = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)
    saves = any(isinstance(one, ModelCheckpoint) for one in callbacks)
    given |= {"logger": logger, "callbacks": list(callbacks), "enable_checkpointing": saves, **silent, **options}
    trainer = Trainer(**given)
    task = task()
    trainer.fit(task, datamodule=Data(make, equal), ckpt_path=ckpt_path)
    return trainer, {name: value.clone() for name, value in task.state_dict().items()}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(("task", "make"), [(masked, masked_sample), (tokenizer, image_sample)], ids=["masks", "times"])
def test_batches_of_one_step_draw_differently(task, make, tmp_path):
    diary = Diary()
    run(task, make, tmp_path, diary, equal=True, accumulate_grad_batches=2, max_steps=2)
    assert diary.losses[2] != diary.losses[3]  # the same weights, the same samples


@pytest.mark.parametrize(
    ("accumulate", "options", "after"),
    [
        (4, {}, (4, 6, 10)),
        slow(1, {"max_steps": 12}, (3, 10)),
        slow(3, {}, (3, 5, 10, 12)),
        slow(4, {}, (1, 8, 9, 13, 15)),
        slow(4, {"limit_train_batches": 7}, (4, 7, 9)),
        slow(4, {"limit_val_batches": 1, "val_check_interval": 2}, (2, 4, 6, 10, 11)),
        slow(7, {"max_steps": 4}, (7, 8, 12)),
    ],
    ids=str,
)
def test_a_resumed_run_repeats_the_whole_one(accumulate, options, after, tmp_path):
    whole = Diary(tmp_path, after)
    options = {"accumulate_grad_batches": accumulate, **options}
    trainer, wanted = run(masked, masked_sample, tmp_path / "whole", whole, **options)
    per_epoch = options.get("limit_train_batches", BATCHES)
    for count in after:
        rest = Diary()
        resumed, got = run(masked, masked_sample, tmp_path, rest, ckpt_path=tmp_path / f"{count}.ckpt", **options)
        in_epoch = (count - 1) % per_epoch + 1
        first = count - (0 if in_epoch == per_epoch else in_epoch % accumulate)
        assert rest.batches == whole.batches[first:], f"resumed after {count} batches"
        assert rest.losses == whole.losses[first:]
        assert all(torch.equal(got[name], value) for name, value in wanted.items())
        assert resumed.global_step == trainer.global_step
        assert resumed.logger.version == trainer.logger.version
        logged = (tmp_path / "metrics.csv").read_text().splitlines()[1:]
        assert logged == (tmp_path / "whole" / "metrics.csv").read_text().splitlines()[-len(logged) :]


class Stops(Callback):
    """Breaks a run off in the middle of a batch, as a signal does."""

    def on_before_zero_grad(self, trainer, task, optimizer):
        if trainer.global_step == 2:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["validation", "broken off"])
def test_other_moments_to_save(kind, tmp_path):
    options = {"accumulate_grad_batches": 4, "limit_val_batches": 1, "val_check_interval": 3}
    whole = Diary()
    _, wanted = run(masked, masked_sample, tmp_path, whole, **options)
    if kind == "validation":
        save = ModelCheckpoint(tmp_path, filename="{step}", monitor="val/loss", save_top_k=-1)
        run(masked, masked_sample, tmp_path, save, **options)
        paths = sorted(tmp_path.glob("*.ckpt"))
        assert len(paths) > 3
    else:
        diary = Diary()
        with pytest.raises(SystemExit):
            run(masked, masked_sample, tmp_path, SavesWhenStopped(tmp_path), Stops(), diary, **options)
        paths = [tmp_path / "stopped.ckpt"]
    for path in paths:
        rest = Diary()
        _, got = run(masked, masked_sample, tmp_path, rest, ckpt_path=path, **options)
        assert rest.losses == whole.losses[len(whole.losses) - len(rest.losses) :]
        assert all(torch.equal(got[name], value) for name, value in wanted.items())


class SavesWhenStopped(Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_exception(self, trainer, task, exception):
        trainer.save_checkpoint(self.folder / "stopped.ckpt")
