"""Losses of the tokenizers: they fall, they reach every weight, and repeat with a seed."""

from __future__ import annotations

import pytest
import torch

from terramind_plugin.builders import build_image_tokenizer
from terramind_plugin.errors import ConfigError
from terramind_plugin.pretrain.objectives import codebook_usage, reconstruction_loss


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
    with pytest.raises(ConfigError, match="needs encoder and decoder"):
        reconstruction_loss(model, torch.zeros(1, 1, 32, 32))


def test_codebook_usage():
    usage, perplexity = codebook_usage(torch.tensor([5, 5, 0, 0]))
    assert usage == 0.5
    assert perplexity.item() == pytest.approx(2)
