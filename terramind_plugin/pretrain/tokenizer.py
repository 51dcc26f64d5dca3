"""Stage 1: a tokenizer learns to reconstruct images."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from terramind_plugin.builders import build_image_tokenizer
from terramind_plugin.errors import ConfigError
from terramind_plugin.pretrain.task import PretrainingTask
from terramind_plugin.tokenizers.diffusion import TRAINING_STEPS, build_scheduler
from terramind_plugin.tokenizers.image import ImageTokenizer
from terramind_plugin.tokenizers.unet import PatchedUNet


class TokenizerTask(PretrainingTask):
    """Trains an image tokenizer; batches are {'image': standardised [B, bands, H, W] or class ids [B, H, W]}.

    Diffusion times and noise depend on `seed`, batch number and process alone, so that a resumed run repeats the
    uninterrupted one. For averaged weights add Lightning's EMAWeightAveraging to the callbacks: it validates and saves
    the average. A tokenizer's `ckpt_path` takes the checkpoint.

    Source: TerraMind (arXiv:2504.11171) section 3.1. Optimiser settings are chosen here, not published.

    Args:
        tokenizer: Registered name, e.g. 'terramind_sim_nano_tokenizer_dem'.
        ckpt_path: Weights to start from.
        pretrained: Start from the weights of that name.
        lr: Largest learning rate.
        warmup_steps: Steps of the rise to `lr`, before a cosine falls to zero at trainer.max_steps.
        weight_decay: Weight decay of AdamW.
        seed: Start of times and noise.
    """

    monitor = "val/loss"
    model: ImageTokenizer

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
        loss = reconstruction_loss(self.model, batch["image"], self.make_generator(self.batch_number)).loss
        self.log("train/loss", loss)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Reset the counts of token ids."""
        # No buffer: averaging would exchange it with the weights.
        self.counts = torch.zeros(self.model.quantize.codebook_size, dtype=torch.long, device=self.device)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the loss and count tokens; every validation draws the same times and noise."""
        loss, tokens = reconstruction_loss(self.model, batch["image"], self.make_generator(-1 - batch_idx))
        self.log("val/loss", loss, sync_dist=True, batch_size=len(batch["image"]))
        self.counts += torch.bincount(tokens.flatten().long(), minlength=len(self.counts))

    def on_validation_epoch_end(self) -> None:
        """Log the share of the codebook in use and the perplexity of its ids, over all processes."""
        gathered: Any = self.all_gather(self.counts)
        usage, perplexity = codebook_usage(gathered.reshape(-1, len(self.counts)).sum(dim=0))
        self.log("val/codebook_usage", usage.float())
        self.log("val/perplexity", perplexity.float())


class Reconstruction(NamedTuple):
    """Loss of a tokenizer for a batch."""

    loss: Tensor
    """Scalar: mean squared error of the clean sample in standard deviations, or cross-entropy of classes."""
    tokens: Tensor
    """Token ids [B, rows, columns]."""


def reconstruction_loss(
    tokenizer: ImageTokenizer, x: Tensor, generator: torch.Generator | None = None
) -> Reconstruction:
    """Return the reconstruction loss of a batch.

    The diffusion decoder gets the image at a uniformly drawn time of decoding's noise schedule and predicts the clean
    image, clipped as in decoding. Gradients reach the encoder through the rounding of the codes.

    Source: TerraMind (arXiv:2504.11171) section 3.1: FSQ with a diffusion decoder, cross-entropy for classes.

    Args:
        tokenizer: With encoder and decoder.
        x: Standardised image [B, bands, H, W], or class ids [B, H, W].
        generator: On the CPU; draws times and noise.

    Raises:
        ConfigError: A half of the tokenizer is missing, or a shape does not fit.
        DataError: A value is NaN, infinite or no class id.
    """
    if tokenizer.encoder is None or tokenizer.decoder is None:
        raise ConfigError(f"{tokenizer.variant.name}: training needs encoder and decoder; build both.")
    encoding = tokenizer.encode(x)
    if not isinstance(tokenizer.decoder, PatchedUNet):
        classes = x[:, 0] if x.dim() == 4 else x
        logits = tokenizer.decode_quant(encoding.codes)
        return Reconstruction(F.cross_entropy(logits.float(), classes.long()), encoding.tokens)
    largest = tokenizer.variant.largest
    clean = x.float().clamp(-largest, largest)
    times = torch.randint(TRAINING_STEPS, (len(x),), generator=generator).to(x.device)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    noisy = build_scheduler(largest).add_noise(clean, noise, times)
    predicted = tokenizer.decoder(noisy, encoding.codes, tokenizer.decoder.time_shifts(times))
    return Reconstruction(F.mse_loss(predicted.float(), clean), encoding.tokens)


def codebook_usage(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of token ids in use, 0 to 1, and the perplexity of their distribution, 1 to the number of ids.

    Args:
        counts: Occurrences of each id [V], at least one in all.
    """
    share = counts.double() / counts.sum()
    entropy = torch.special.entr(share).sum()
    return (counts > 0).double().mean(), entropy.exp()
