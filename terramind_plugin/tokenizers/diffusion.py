"""Generation of an image from noise in a few denoising steps.

Source: DDIM (arXiv:2010.02502) without added noise, on a schedule that ends in pure noise (arXiv:2305.08891).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from terramind_plugin.errors import ConfigError

TRAINING_STEPS = 1000
"""Number of steps of the diffusion process on which the published decoders were trained."""


def build_scheduler(largest: float = 1.0) -> Any:
    """Return the DDIM scheduler of the published decoders, from diffusers.

    Args:
        largest: Bound to whose positive and negative value predicted clean images are clipped; 1 for the published
            decoders.
    """
    # Imported here, because importing diffusers takes seconds and only decoding needs it.
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=TRAINING_STEPS,
        beta_start=0.0001,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        # The published decoders use dynamic thresholding with a maximum of 1, which equals clipping at 1 after a
        # needless sort of all pixels.
        thresholding=False,
        clip_sample=True,
        clip_sample_range=largest,
    )


def denoise(step: Callable[[Tensor, int], tuple[Tensor, Tensor]], numbers: Iterable[int], noise: Tensor) -> Tensor:
    """Return a clean image [B, C, H, W].

    Args:
        step: Function of a noisy image and the number of the step, with the result of `mix`.
        numbers: Numbers of the steps, counted from 0.
        noise: Standard normal numbers [B, C, H, W].
    """
    noisy = clean = noise
    for number in numbers:
        noisy, clean = step(noisy, number)
    # If the steps do not divide 1000, the scheduler's last image keeps a trace of noise; this image does not.
    return clean


def mixing(scheduler: Any, time: int) -> Tensor:
    """Return the four numbers of `mix` for the step at a time, float32 [4].

    Args:
        scheduler: Scheduler set by `plan_times`.
        time: Time of the step.
    """
    before = time - TRAINING_STEPS // scheduler.num_inference_steps
    products = scheduler.alphas_cumprod
    share, next_share = products[time], products[before] if before >= 0 else scheduler.final_alpha_cumprod
    return torch.stack([share**0.5, (1 - share) ** 0.5, next_share**0.5, (1 - next_share) ** 0.5])


def mix(predicted: Tensor, noisy: Tensor, numbers: Tensor, largest: float) -> tuple[Tensor, Tensor]:
    """Return the image of the next step, which is less noisy, and the clean image, both [B, C, H, W].

    Args:
        predicted: Clean image predicted by the decoder.
        noisy: Image of this step; the results have its type.
        numbers: Result of `mixing`: the shares of the clean image and of noise in this step, and in the next one.
        largest: Bound to whose positive and negative value the clean image is clipped.
    """
    predicted = predicted.to(noisy.dtype)
    image_share, noise_share, next_image_share, next_noise_share = numbers.unbind()
    noise = (noisy - image_share * predicted) / noise_share
    clean = predicted.clamp(-largest, largest)
    return next_image_share * clean + next_noise_share * noise, clean


@lru_cache(maxsize=32)
def plan_steps(steps: int, largest: float) -> tuple[tuple[int, ...], tuple[tuple[float, ...], ...]]:
    """Return the times of the denoising steps, and the four numbers of `mix` for each.

    Args:
        steps: Number of steps, 1 to 1000.
        largest: As in `build_scheduler`.

    Raises:
        ConfigError: The number of steps is not possible.
    """
    scheduler = build_scheduler(largest)
    times = plan_times(scheduler, steps)
    return tuple(times), tuple(tuple(mixing(scheduler, time).tolist()) for time in times)


def plan_times(scheduler: Any, steps: int) -> list[int]:
    """Return the times of the denoising steps, from noise to image, and set the scheduler to them.

    Args:
        scheduler: Result of `build_scheduler`.
        steps: Number of steps, 1 to 1000.

    Raises:
        ConfigError: The number of steps is not possible.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= TRAINING_STEPS:
        raise ConfigError(f"timesteps must be a whole number from 1 to {TRAINING_STEPS}, got {steps!r}.")
    scheduler.set_timesteps(steps)
    # By rounding, diffusers returns one time too many for some numbers of steps.
    times: list[int] = scheduler.timesteps.tolist()[:steps]
    return times
