"""The steps of the diffusion decoder: each is one graph of the U-Net, and shared values are computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from terramind_plugin.model.compiled import compile_model
from terramind_plugin.tokenizers.diffusion import denoise, mix, plan_steps
from terramind_plugin.tokenizers.unet import PatchedUNet, spread_codes

Track = Callable[[Sequence[int]], Iterable[int]]
"""Function that shows the progress of a loop over numbers."""

WAIT = 1000
"""Number of steps after which another batch size or image size gets a graph, because compiling takes 40 seconds."""


class DenoisingStep(nn.Module):
    """One step: the U-Net predicts a clean image, and the next image is a mixture of the clean and the noisy one.

    All inputs are tensors of fixed shapes, so that the step is one graph for each batch size and image size.

    Args:
        unet: The U-Net.
        largest: Bound to whose positive and negative value the clean image is clipped.
    """

    def __init__(self, unet: PatchedUNet, largest: float) -> None:
        super().__init__()
        self.unet = unet
        self.largest = largest
        self.widths = unet.shift_widths

    def forward(self, noisy: Tensor, codes: Tensor, shifts: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image of the next step and the clean image, both [B, C, H, W].

        Args:
            noisy: Image of this step, at least float32.
            codes: Codes [B, D, H / patch, W / patch] in the precision of the U-Net.
            shifts: Time shifts of all residual blocks, concatenated to [1, sum of their channels].
            numbers: Result of `diffusion.mixing`, [4].
        """
        predicted = self.unet(noisy.to(codes.dtype), codes, torch.split(shifts, self.widths, dim=1))
        next_image, clean = mix(predicted, noisy, numbers, self.largest)
        # The layout is the same in all steps, because a graph needs a fixed layout.
        return next_image.contiguous(), clean.contiguous()


class DenoisingSteps:
    """Runner of a decoder's steps.

    If the weights are not trained, it keeps what all calls share: the weights in another precision and with their
    channels last, which suits convolutions, and compiled graphs.
    """

    def __init__(self) -> None:
        self.mode = "off"
        """Mode of compilation of a step, see `compile_model`."""
        self._kept: dict[torch.dtype, tuple[list[tuple[Tensor, int, int]], DenoisingStep]] = {}

    def run(
        self,
        decoder: PatchedUNet,
        noise: Tensor,
        codes: Tensor,
        timesteps: int,
        largest: float,
        dtype: torch.dtype,
        track: Track | None = None,
    ) -> Tensor:
        """Return the clean image [B, C, H, W], of the type of the noise.

        Args:
            decoder: The U-Net.
            noise: Standard normal numbers [B, C, H, W].
            codes: Codes [B, D, rows, columns] in [0, 1].
            timesteps: Number of denoising steps, 1 to 1000.
            largest: See `DenoisingStep`.
            dtype: Precision of the U-Net.
            track: Function that shows the progress.

        Raises:
            ConfigError: The number of steps is not possible.
        """
        times, plan = plan_steps(timesteps, largest)
        device = codes.device
        numbers = torch.tensor(plan).to(device, non_blocking=True)
        with torch.autocast(device.type, enabled=False):
            moments = torch.tensor(times).to(device, non_blocking=True)
            shifts = torch.cat([shift.to(dtype) for shift in decoder.time_shifts(moments)], dim=1)
            codes = spread_codes(codes.to(dtype), [side // decoder.patch_size for side in noise.shape[-2:]])
            step = self._step(decoder, largest, dtype)
            every = range(len(times))
            return denoise(
                lambda noisy, number: step(noisy, codes, shifts[number : number + 1], numbers[number]),
                every if track is None else track(every),
                noise.contiguous(),
            )

    def _step(self, decoder: PatchedUNet, largest: float, dtype: torch.dtype) -> Callable[..., tuple[Tensor, Tensor]]:
        """Return the step with the decoder's weights in a precision and with their channels last."""
        weights = list(decoder.parameters())
        if any(one.requires_grad for one in weights):
            cast = {f"unet.{name}": _cast(value, dtype) for name, value in decoder.named_parameters()}
            step = DenoisingStep(decoder, largest)
            return lambda *args: functional_call(step, cast, args)
        state: list[tuple[Tensor, int, int]] = [
            (one, one.data_ptr(), 0 if one.is_inference() else one._version) for one in weights
        ]
        if dtype not in self._kept or not _same(self._kept[dtype][0], state):
            unet = decoder
            if any(_cast(one, dtype) is not one for one in weights):
                unet = deepcopy(decoder)
                for one in unet.parameters():
                    one.data = _cast(one.data, dtype)
            self._kept[dtype] = state, compile_model(DenoisingStep(unet, largest).eval(), self.mode, wait=WAIT)
        return self._kept[dtype][1]

    def clear(self) -> None:
        """Drop kept weights and graphs, e.g. because the weights move to another device."""
        self._kept.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> DenoisingSteps:
        return DenoisingSteps()  # a copy has its own weights

    def __reduce__(self) -> Any:
        return DenoisingSteps, ()


def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight in a precision with its channels last, without a copy if it already is."""
    return weight.to(dtype, memory_format=torch.channels_last if weight.dim() == 4 else torch.preserve_format)


def _same(kept: list[tuple[Tensor, int, int]], state: list[tuple[Tensor, int, int]]) -> bool:
    """Return whether weights are the same tensors with the same values as before."""
    return len(kept) == len(state) and all(
        one[0] is other[0] and one[1:] == other[1:] for one, other in zip(kept, state, strict=True)
    )
