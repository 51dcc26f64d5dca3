"""Stage 1: losses fall, reach every weight and repeat with a seed; averages and checkpoints as Lightning runs it."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import DataLoader

from terramind_plugin.builders import build_image_tokenizer
from terramind_plugin.errors import ConfigError
from terramind_plugin.pretrain.tokenizer import TokenizerTask, codebook_usage, reconstruction_loss

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


def make(modality: str):
    torch.manual_seed(0)
    model = build_image_tokenizer(f"terramind_sim_nano_tokenizer_{modality}").train()
    x = torch.randint(10, (2, 32, 32)) if modality == "lulc" else torch.randn(2, model.channels, 32, 32)
    return model, x


@pytest.mark.parametrize("modality", ["s1grd", "lulc"])
def test_loss_falls_on_one_batch_and_reaches_every_weight(modality):
    model, x = make(modality)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses, reached = [], set()
    for _ in range(30):
        loss = reconstruction_loss(model, x, torch.Generator().manual_seed(0)).loss
        optimizer.zero_grad()
        loss.backward()
        reached |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert reached == {name for name, _ in model.named_parameters()}


def test_same_seed_same_loss():
    model, x = make("dem")
    torch.nn.init.normal_(model.decoder.out[-1].weight, std=0.1)  # it starts at zero, where noise makes no difference
    first, again, other = (
        reconstruction_loss(model, x, torch.Generator().manual_seed(seed)).loss.item() for seed in (1, 1, 2)
    )
    assert first == again != other


def test_half_a_tokenizer():
    model = build_image_tokenizer("terramind_sim_nano_tokenizer_dem", decoder=False)
    with pytest.raises(ConfigError, match="needs the encoder and the decoder"):
        reconstruction_loss(model, torch.zeros(1, 1, 32, 32))


def test_codebook_usage():
    usage, perplexity = codebook_usage(torch.tensor([5, 5, 0, 0]))
    assert usage == 0.5
    assert perplexity.item() == pytest.approx(2)
