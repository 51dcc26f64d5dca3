"""What the tokenizers are trained on: one number for a batch, without any training loop."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from terramind_plugin.errors import ConfigError
from terramind_plugin.tokenizers.diffusion import TRAINING_STEPS, build_scheduler
from terramind_plugin.tokenizers.image import ImageTokenizer
from terramind_plugin.tokenizers.unet import PatchedUNet


class Reconstruction(NamedTuple):
    """Loss of a tokenizer for a batch."""

    loss: Tensor
    """Scalar: mean squared error of the clean sample in standard deviations, or cross-entropy of classes."""
    tokens: Tensor
    """Token ids [B, rows, columns]."""


def reconstruction_loss(
    tokenizer: ImageTokenizer, x: Tensor, generator: torch.Generator | None = None
) -> Reconstruction:
    """Return how far a tokenizer is from giving back a batch.

    The diffusion decoder gets the image at a uniformly drawn time of the noise schedule that decoding uses, and is to
    name the clean one, clipped as decoding clips it. Gradients reach the encoder through the rounding of the codes.

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
        counts: How often each id occurred [V], at least one of them.
    """
    share = counts.double() / counts.sum()
    entropy = torch.special.entr(share).sum()
    return (counts > 0).double().mean(), entropy.exp()
