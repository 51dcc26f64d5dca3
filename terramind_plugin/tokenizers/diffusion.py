"""From noise to an image in a few denoising steps.

Source: DDIM (arXiv:2010.02502) without added noise, on a schedule that ends in pure noise (arXiv:2305.08891).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from terramind_plugin.errors import ConfigError

TRAINING_STEPS = 1000
"""Length of the diffusion process that the published decoders were trained on."""


def build_scheduler(largest: float = 1.0) -> Any:
    """Return the DDIM scheduler of the published decoders, from diffusers.

    Args:
        largest: Predicted clean images are clipped to plus and minus this; the published decoders have 1.
    """
    # Here and not at the top: importing diffusers takes seconds, and only decoding needs it.
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=TRAINING_STEPS,
        beta_start=0.0001,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="sample",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        # The published decoders threshold dynamically with a largest value of 1, which is clipping at 1 with a sort of
        # all pixels in front of it.
        thresholding=False,
        clip_sample=True,
        clip_sample_range=largest,
    )


def denoise(predict: Callable[[Tensor, int], Tensor], times: Sequence[int], noise: Tensor, scheduler: Any) -> Tensor:
    """Return a clean image [B, C, H, W] with values within the scheduler's clipping range.

    Args:
        predict: Gets the noisy image and the number of the step, 0 first, and returns the clean image it expects.
        times: From `plan_times`.
        noise: Standard normal [B, C, H, W].
        scheduler: From `build_scheduler`, set by `plan_times`.
    """
    noisy, clean = noise, noise
    for step, time in enumerate(times):
        noisy, clean = scheduler.step(predict(noisy, step).to(noise.dtype), time, noisy, return_dict=False)
    # Where the steps do not divide 1000 the scheduler leaves a trace of noise in its last image, not in this one.
    return clean


def plan_times(scheduler: Any, steps: int) -> list[int]:
    """Return the times of the denoising steps, from noise to image, and set the scheduler to them.

    Args:
        scheduler: From `build_scheduler`.
        steps: How many, 1 to 1000.

    Raises:
        ConfigError: The number is not possible.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= TRAINING_STEPS:
        raise ConfigError(f"timesteps must be a whole number from 1 to {TRAINING_STEPS}, got {steps!r}.")
    scheduler.set_timesteps(steps)
    # Float rounding gives diffusers one more time for some step counts.
    return scheduler.timesteps.tolist()[:steps]


def draw_noise(
    batch: int,
    shape: Sequence[int],
    *,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    seed: int | Sequence[int] | None = None,
) -> Tensor:
    """Return standard normal noise [batch, *shape], float32.

    With a seed, or a generator for each sample, a sample's noise does not depend on the batch it is in.

    Args:
        batch: Number of samples.
        shape: Of one sample.
        generator: One for all samples, which draw from it one after the other, or one for each.
        seed: One that every sample starts from, or one for each; 0 if there is no generator either.

    Raises:
        ConfigError: Both are given, or there are not as many as samples.
    """
    if generator is not None and seed is not None:
        raise ConfigError("Give either a generator or a seed, not both.")
    if generator is None:
        seeds = [0 if seed is None else seed] * batch if seed is None or isinstance(seed, int) else list(seed)
        generators = [torch.Generator().manual_seed(int(one)) for one in seeds]
    elif isinstance(generator, torch.Generator):
        generators = [generator] * batch
    else:
        generators = list(generator)
    if len(generators) != batch:
        name = "seeds" if generator is None else "generators"
        raise ConfigError(f"Got {len(generators)} {name} for {batch} samples. Give one for each, or a single one.")
    return torch.stack([torch.randn(tuple(shape), generator=one, device=one.device) for one in generators])
