"""Stage 1 as Lightning runs it: average, codebook, checkpoints that tokenizers load."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import DataLoader

from terramind_plugin.builders import build_image_tokenizer
from terramind_plugin.errors import ConfigError
from terramind_plugin.pretrain.tokenizer import TokenizerTask

NAME = "terramind_sim_nano_tokenizer_lulc"
BATCHES = [{"image": torch.randint(10, (16, 16), generator=torch.Generator().manual_seed(n))} for n in range(8)]


def run(folder):
    torch.manual_seed(0)
    task = TokenizerTask(NAME, warmup_steps=2, lr=1e-3)
    stop = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    fitting = Trainer(
        accelerator="cpu", devices=1, max_steps=8, logger=False, callbacks=[
            stop, EMAWeightAveraging(decay=0.9)], enable_progress_bar=False, enable_model_summary=False,
        gradient_clip_val=1.0, max_epochs=1,
    )  # fmt: skip
    loader = DataLoader(BATCHES, batch_size=2)
    fitting.fit(task, DataLoader(BATCHES * 2, batch_size=2), loader)
    return fitting


def test_fit(tmp_path):
    trainer = run(tmp_path)
    assert trainer.global_step == 8
    assert 0 < trainer.callback_metrics["val/codebook_usage"] <= 1
    assert 1 <= trainer.callback_metrics["val/perplexity"] <= 256
    path = tmp_path / "step=8.ckpt"
    loaded = build_image_tokenizer(NAME, ckpt_path=path).state_dict()
    stored = torch.load(path, weights_only=False)
    average, current = stored["state_dict"], stored["current_model_state"]
    assert all(torch.equal(value, average[f"model.{name}"]) for name, value in loaded.items())
    assert not all(torch.equal(value, current[f"model.{name}"]) for name, value in loaded.items())


def test_needs_steps():
    task = TokenizerTask(NAME, warmup_steps=5)
    task.trainer = Trainer(accelerator="cpu", max_steps=5, logger=False, enable_checkpointing=False)
    with pytest.raises(ConfigError, match="max_steps must be above warmup_steps 5"):
        task.configure_optimizers()
