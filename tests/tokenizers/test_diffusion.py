"""The denoising loop."""

from itertools import pairwise

import pytest
import torch

from terramind_plugin.errors import ConfigError
from terramind_plugin.tokenizers.diffusion import build_scheduler, denoise, mix, plan_steps, plan_times
from terramind_plugin.tokenizers.noise import draw_noise


def run(predict, steps, noise):
    """Return the image that is denoised with the clean image which `predict` expects in each step."""
    times, plan = plan_steps(steps, 1.0)
    numbers = torch.tensor(plan)
    return denoise(lambda noisy, step: mix(predict(noisy, step), noisy, numbers[step], 1.0), range(len(times)), noise)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7, 10, 30, 33, 49, 50, 333, 600, 999, 1000])
def test_exactly_as_many_steps_as_asked_for(steps):
    calls = []

    def predict(noisy, step):
        calls.append(step)
        return 0.5 * noisy

    image = run(predict, steps, torch.randn(1, 1, 4, 4))
    assert calls == list(range(steps))
    assert image.isfinite().all()


def test_times_of_every_step_count():
    scheduler = build_scheduler()
    for steps in range(1, 1001):
        times = plan_times(scheduler, steps)
        assert len(times) == steps
        assert times[0] == 999
        assert times[-1] >= 0
        assert all(early > late for early, late in pairwise(times))


@pytest.mark.parametrize("steps", [7, 10, 30])
def test_no_noise_is_left(steps):
    wanted = torch.rand(1, 2, 8, 8) * 2 - 1
    assert torch.equal(run(lambda *_: wanted, steps, torch.randn(1, 2, 8, 8)), wanted)


def test_values_are_clipped():
    image = run(lambda noisy, _: noisy * 9, 4, torch.randn(1, 2, 8, 8))
    assert image.abs().max() == 1


@pytest.mark.parametrize("steps", [0, -3, 1001, 2.5, "10", True, None])
def test_impossible_step_count(steps):
    with pytest.raises(ConfigError, match="1 to 1000"):
        plan_times(build_scheduler(), steps)


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    seeds = [4, 0, 9]
    together = draw_noise(3, (2, 8, 8), seed=seeds)
    for seed, noise in zip(seeds, together, strict=True):
        assert torch.equal(draw_noise(1, (2, 8, 8), seed=seed)[0], noise)


def test_one_seed_is_for_every_sample():
    noise = draw_noise(2, (2, 8, 8), seed=3)
    assert torch.equal(noise[0], noise[1])
    assert torch.equal(draw_noise(2, (2, 8, 8)), draw_noise(2, (2, 8, 8), seed=0))


def test_one_generator_gives_what_one_draw_gives():
    noise = draw_noise(3, (2, 16, 32), generator=torch.Generator().manual_seed(5))
    assert torch.equal(noise, torch.randn(3, 2, 16, 32, generator=torch.Generator().manual_seed(5)))


def test_a_generator_for_each_sample():
    noise = draw_noise(2, (1, 4, 4), generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)])
    assert torch.equal(noise, draw_noise(2, (1, 4, 4), seed=[5, 6]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": [1, 2, 3]}, "3 seeds for 2 samples"),
        ({"generator": [torch.Generator()]}, "1 generators for 2 samples"),
        ({"seed": 1, "generator": torch.Generator()}, "not both"),
    ],
)
def test_wrong_sources_of_noise(options, message):
    with pytest.raises(ConfigError, match=message):
        draw_noise(2, (1, 4, 4), **options)
