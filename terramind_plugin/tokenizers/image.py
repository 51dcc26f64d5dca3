"""Image tokenizers, which convert an image to token ids and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.compiled import check_mode, compile_model
from terramind_plugin.model.encoder import initialise
from terramind_plugin.model.inputs import check_size
from terramind_plugin.tokenizers.denoising import DenoisingSteps
from terramind_plugin.tokenizers.fsq import FiniteScalarQuantizer
from terramind_plugin.tokenizers.noise import draw_noise
from terramind_plugin.tokenizers.unet import PatchedUNet
from terramind_plugin.tokenizers.variants import TokenizerVariant
from terramind_plugin.tokenizers.vit import ClassDecoder, ImageEncoder

PARTS = ("encoder", "quant_proj", "decoder", "post_quant_proj")
"""Parts of a tokenizer, which may have only the parts for encoding or only those for decoding."""


class Encoding(NamedTuple):
    """Codes and token ids of an image; unpacks as TerraTorch's (quant, code_loss, tokens)."""

    codes: Tensor
    """Quantised latents [B, D, rows, columns] in [0, 1]."""
    loss: Tensor
    """Zeros [1]: finite scalar quantisation needs no auxiliary loss."""
    tokens: Tensor
    """Token ids [B, rows, columns], int32."""


class ImageTokenizer(nn.Module):
    """Tokenizer of one modality, with an encoder from images to token ids and a decoder back to images.

    A new tokenizer is in evaluation mode. Source: TerraMind (arXiv:2504.11171) section 3.1.

    Args:
        variant: Architecture.
        encoder: Whether to build the encoder, for `encode` and `tokenize`.
        decoder: Whether to build the decoder, for `decode_tokens`.

    Raises:
        ConfigError: `encoder` and `decoder` are both False.
    """

    def __init__(self, variant: TokenizerVariant, *, encoder: bool = True, decoder: bool = True) -> None:
        super().__init__()
        if not encoder and not decoder:
            raise ConfigError(f"{variant.name}: encoder and decoder are both false, so nothing is left to build.")
        self.variant = variant
        self.patch_size = variant.patch_size
        self.image_size = variant.image_size
        self.channels = variant.channels
        latent_dim = len(variant.levels)
        self.quantize = FiniteScalarQuantizer(variant.levels)
        self.encoder: ImageEncoder | None = None
        self.decoder: PatchedUNet | ClassDecoder | None = None
        if encoder:
            self.encoder = ImageEncoder(variant)
            self.quant_proj = nn.Conv2d(variant.dim, latent_dim, 1)
        if decoder and variant.unet is None:
            self.decoder = ClassDecoder(variant)
            self.post_quant_proj = nn.Conv2d(latent_dim, variant.dim, 1)
        elif decoder and variant.unet is not None:
            self.decoder = PatchedUNet(self.channels, latent_dim, **vars(variant.unet))
        self._steps = DenoisingSteps()
        for part in (self.encoder, self.decoder):
            if isinstance(part, ImageEncoder | ClassDecoder):
                initialise(part)
        self.eval()

    def encode(self, x: Tensor) -> Encoding:
        """Return codes, a loss of zero and token ids.

        Args:
            x: Standardised image [B, bands, H, W]; for class maps, class ids [B, H, W] or [B, 1, H, W], or scores of
                the classes [B, classes, H, W]. H and W are multiples of the patch size and need not be equal.

        Raises:
            ConfigError: The tokenizer has no encoder, or the shape does not fit.
            DataError: A value is NaN, infinite or not a class id.
        """
        if self.encoder is None:
            raise ConfigError(f"{self.variant.name} was built without its encoder. Build it with encoder: true.")
        features = self.encoder(self._prepare(x))
        with torch.autocast(features.device.type, enabled=False):
            latents = self.quant_proj(features)
            codes, tokens = self.quantize(latents.to(torch.promote_types(latents.dtype, torch.float32)))
        return Encoding(codes, codes.new_zeros(1), tokens)

    def tokenize(self, x: Tensor) -> Tensor:
        """Return token ids [B, rows, columns], int32; arguments as in `encode`."""
        return self.encode(x).tokens

    def tokens_to_embedding(self, tokens: Tensor) -> Tensor:
        """Return the codes [B, D, rows, columns], float32 in [0, 1], of token ids [B, rows, columns]."""
        return self.quantize.codes(tokens)

    def decode_tokens(self, tokens: Tensor, timesteps: int = 50, *, checked: bool = False, **options: Any) -> Tensor:
        """Return the image of token ids [B, rows, columns].

        Args:
            tokens: Ids of the tokenizer's vocabulary.
            timesteps: As in `decode_quant`.
            checked: Whether ids are known to be in the vocabulary; otherwise the check waits for a GPU.
            options: As in `decode_quant`.

        Raises:
            DataError: An id is not in the tokenizer's vocabulary.
        """
        return self.decode_quant(self.quantize.codes(tokens, checked=checked), timesteps, **options)

    def decode_quant(
        self,
        quant: Tensor,
        timesteps: int = 50,
        *,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        seed: int | Sequence[int] | None = None,
        noise: Tensor | None = None,
        image_size: int | Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        verbose: bool = False,
    ) -> Tensor:
        """Return the image [B, bands, H, W], standardised, or the class logits [B, classes, H, W] of codes.

        The diffusion decoder starts from noise, by default from seed 0, so that the same codes give the same image. It
        computes no gradients, and its values lie between minus and plus the variant's `largest`, which is 1 for the
        published decoders. The class decoder ignores all options.

        Args:
            quant: Codes [B, D, rows, columns] in [0, 1].
            timesteps: Number of denoising steps, 1 to 1000.
            generator: One generator for all samples, or one for each sample.
            seed: One seed for every sample, or one for each sample.
            noise: Standard normal numbers [B, bands, H, W] to start from, instead of drawing them.
            image_size: Height and width in pixels, or one number for both (default: a patch for each code).
            dtype: Precision of the network (default: that of autocast, otherwise that of the weights). bfloat16 takes
                about half the time.
            verbose: Show a progress bar.

        Raises:
            ConfigError: The tokenizer has no decoder, or an argument is not possible.
        """
        if self.decoder is None:
            raise ConfigError(f"{self.variant.name} was built without its decoder. Build it with decoder: true.")
        if isinstance(self.decoder, ClassDecoder):
            logits: Tensor = self.decoder(self.post_quant_proj(quant.to(self.post_quant_proj.weight.dtype)))
            return logits
        size = [side * self.patch_size for side in quant.shape[-2:]] if image_size is None else image_size
        shape = (self.channels, *check_size(size, self.decoder.patch_size))
        if noise is None:
            noise = draw_noise(len(quant), shape, generator=generator, seed=seed)
        elif tuple(noise.shape) != (len(quant), *shape):
            raise ConfigError(f"noise must have shape {[len(quant), *shape]}, got {list(noise.shape)}.")
        return self._denoise(self.decoder, quant, noise.to(quant.device), timesteps, dtype, verbose)

    def for_inference(self, mode: str = "off") -> ImageTokenizer:
        """Return the tokenizer, optimised so that it is faster and can no longer be trained.

        The weights of the diffusion decoder then have their channels last in memory; `contiguous` restores the usual
        order for libraries that need it.

        Args:
            mode: Mode of `compile_model` for the encoder, the class decoder, and each step of the diffusion decoder.

        Raises:
            ConfigError: The mode is unknown.
        """
        self.eval().requires_grad_(False)
        self._steps.mode = check_mode(mode)
        self._steps.clear()
        if isinstance(self.decoder, PatchedUNet):
            self.decoder.to(memory_format=torch.channels_last)
        for part in (self.encoder, self.decoder):
            if isinstance(part, ImageEncoder | ClassDecoder):
                compile_model(part, mode)
        return self

    def forward(self, x: Tensor, timesteps: int = 50, **options: Any) -> Tensor:
        """Return the reconstruction of an image, which is encoded, quantised and decoded at its own size.

        Args:
            x: As in `encode`.
            timesteps: As in `decode_quant`.
            options: As in `decode_quant`.

        Raises:
            ConfigError: See `encode` and `decode_quant`.
            DataError: See `encode`.
        """
        return self.decode_quant(self.encode(x).codes, timesteps, **options)

    @torch.no_grad()
    def _denoise(
        self,
        decoder: PatchedUNet,
        codes: Tensor,
        noise: Tensor,
        timesteps: int,
        dtype: torch.dtype | None,
        verbose: bool,
    ) -> Tensor:
        """Return the image that the U-Net decodes from noise, with at least float32 precision."""
        own = next(decoder.parameters()).dtype
        device = codes.device.type
        if dtype is None:
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else own
        start = noise.to(torch.promote_types(own, torch.float32))
        track = _track if verbose else None
        return self._steps.run(decoder, start, codes, timesteps, self.variant.largest, dtype, track)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._steps.clear()  # the device or the type of the weights changes
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _prepare(self, x: Tensor) -> Tensor:
        """Return the encoder's input [B, channels, H, W]: the image itself, or one-hot classes."""
        assert self.encoder is not None
        dtype = self.encoder.proj.weight.dtype
        classes = bool(self.variant.modality.class_names)
        shape, size = list(x.shape), self.patch_size
        if classes and x.dim() == 4 and shape[1] == 1:
            x = x[:, 0]
        is_ids = classes and x.dim() == 3
        if not is_ids and (x.dim() != 4 or shape[1] != self.channels):
            expected = f"[B, {self.channels}, H, W]" + (" or class ids [B, H, W] or [B, 1, H, W]" if classes else "")
            raise ConfigError(f"{self.variant.name} expects {expected}, got {shape}.")
        height, width = x.shape[-2:]
        if not height or not width or height % size or width % size:
            raise ConfigError(
                f"{self.variant.name} needs heights and widths that are multiples of {size}, got {shape}."
            )
        return _one_hot(x, self.channels).to(dtype) if is_ids else x.to(dtype)


def drop_unbuilt(tokenizer: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
    """Remove from a checkpoint the weights of tokenizer parts that are not built.

    Args:
        tokenizer: An `ImageTokenizer`.
        state_dict: Weights by name, changed in place.
        prefix: Beginning of the names of the tokenizer's weights.
    """
    for part in PARTS:
        if getattr(tokenizer, part, None) is None:
            for name in [name for name in state_dict if name.startswith(f"{prefix}{part}.")]:
                del state_dict[name]


def _one_hot(ids: Tensor, classes: int) -> Tensor:
    """Return class ids [B, H, W] as [B, classes, H, W] of zeros and ones."""
    whole = ids.long()
    wrong = (ids != whole) | (whole < 0) | (whole >= classes)
    if wrong.any():
        found = ", ".join(f"{value:g}" for value in torch.unique(ids[wrong])[:5].tolist())
        raise DataError(
            f"Class ids must be whole numbers from 0 to {classes - 1}, found {found}. Map missing pixels to 0."
        )
    return F.one_hot(whole, classes).permute(0, 3, 1, 2)


def _track(times: Sequence[int]) -> Iterable[int]:
    """Return the times with a progress bar."""
    from rich.progress import track

    return track(times, description="Denoising", transient=True)
