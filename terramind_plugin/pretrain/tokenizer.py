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

    Diffusion times and noise depend only on `seed`, batch number and process, so that a resumed run repeats the
    uninterrupted one. For averaged weights, add Lightning's EMAWeightAveraging to the callbacks: it validates and saves
    the average. Tokenizers take the checkpoint as their `ckpt_path`.

    Source: TerraMind (arXiv:2504.11171) section 3.1. The optimiser settings are our choice; none are published.

    Args:
        tokenizer: Registered name, e.g. 'terramind_sim_nano_tokenizer_dem'.
        ckpt_path: Weights to start from.
        pretrained: Start from the weights of that name.
        lr: Maximum learning rate.
        warmup_steps: Number of steps of the linear warm-up to `lr`; a cosine to zero at trainer.max_steps follows.
        weight_decay: Weight decay of AdamW.
        seed: Seed of diffusion times and noise.
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
        # Not a buffer: weight averaging would swap it together with the weights.
        self.counts = torch.zeros(self.model.quantize.codebook_size, dtype=torch.long, device=self.device)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the loss and count tokens; every validation uses the same times and noise."""
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

    The diffusion decoder gets the image with noise of a uniformly drawn time of the noise schedule and predicts the
    clean image, clipped as in decoding. Gradients pass through the rounding of the codes to the encoder.

    Source: TerraMind (arXiv:2504.11171) section 3.1: FSQ with a diffusion decoder, cross-entropy for classes.

    Args:
        tokenizer: Tokenizer with encoder and decoder.
        x: Standardised image [B, bands, H, W], or class ids [B, H, W].
        generator: Random generator on the CPU for times and noise.

    Raises:
        ConfigError: A half of the tokenizer is missing, or a shape does not fit.
        DataError: A value is NaN or infinite, or is not a class id.
    """
    if tokenizer.encoder is None or tokenizer.decoder is None:
        raise ConfigError(f"{tokenizer.variant.name}: training needs the encoder and the decoder; build both.")
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
