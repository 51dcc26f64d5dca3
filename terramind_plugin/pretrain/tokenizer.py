"""Stage 1: a tokenizer learns to give images back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from terramind_plugin.builders import build_image_tokenizer
from terramind_plugin.pretrain.objectives import codebook_usage, reconstruction_loss
from terramind_plugin.pretrain.training import ResumableTask, build_optimizer, make_generator


class TokenizerTask(ResumableTask):
    """Trains an image tokenizer; batches are {'image': standardised [B, bands, H, W] or class ids [B, H, W]}.

    Times and noise depend on `seed`, batch number and process alone, so that a resumed run goes on as the interrupted
    one. For averaged weights add Lightning's EMAWeightAveraging to the callbacks: it validates and saves the average.
    The checkpoint is what `ckpt_path` of a tokenizer takes.

    Source: TerraMind (arXiv:2504.11171) section 3.1. Optimiser settings are chosen here, not published.

    Args:
        tokenizer: Registered name, e.g. 'terramind_sim_nano_tokenizer_dem'.
        ckpt_path: Weights to start from.
        pretrained: Start from the weights of that name.
        lr: Largest learning rate.
        warmup_steps: Steps in which it grows to that, before it falls as a cosine to zero at trainer.max_steps.
        weight_decay: Of AdamW.
        seed: Where times and noise start.
    """

    monitor = "val/loss"

    def __init__(
        self,
        tokenizer: str,
        ckpt_path: str | None = None,
        pretrained: bool = False,
        lr: float = 1e-3,
        warmup_steps: int = 100,
        weight_decay: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()

    def configure_models(self) -> None:
        """Build the tokenizer."""
        self.model = build_image_tokenizer(
            self.hparams["tokenizer"], pretrained=self.hparams["pretrained"], ckpt_path=self.hparams["ckpt_path"]
        )
        self.model.train()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        made = reconstruction_loss(self.model, batch["image"], self._generator(self.batch_number))
        self.log("train/loss", made.loss)
        return made.loss

    def on_validation_epoch_start(self) -> None:
        """Forget which tokens were used."""
        # No buffer: averaging would exchange it with the weights.
        self.counts = torch.zeros(self.model.quantize.codebook_size, dtype=torch.long, device=self.device)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the loss and count tokens; every validation draws the same times and noise."""
        made = reconstruction_loss(self.model, batch["image"], self._generator(-1 - batch_idx))
        self.log("val/loss", made.loss, sync_dist=True, batch_size=len(batch["image"]))
        self.counts += torch.bincount(made.tokens.flatten().long(), minlength=len(self.counts))

    def on_validation_epoch_end(self) -> None:
        """Log which share of the codebook is in use, and the perplexity of its ids, over all processes."""
        gathered: Any = self.all_gather(self.counts)
        counts = gathered.reshape(-1, len(self.counts)).sum(dim=0)
        usage, perplexity = codebook_usage(counts)
        self.log("val/codebook_usage", usage.float())
        self.log("val/perplexity", perplexity.float())

    def configure_optimizers(self) -> Any:
        """Return AdamW with a warm-up and a cosine over trainer.max_steps; errors as in `build_optimizer`."""
        settings = {name: self.hparams[name] for name in ("lr", "warmup_steps", "weight_decay")}
        return build_optimizer(self.model.parameters(), self.trainer, **settings)

    def _generator(self, number: int) -> torch.Generator:
        return make_generator(self.hparams["seed"], number, self.global_rank)
