"""Tokens, codes and reconstructions equal those of TerraTorch's own tokenizers with the same random weights.

Each model holds 180 to 290 million parameters, so only one pair is kept at a time, as views of one memory.
"""

import copy

import pytest
import torch

from terramind_plugin.tokenizers.diffusion import denoise, mix, plan_steps
from terramind_plugin.tokenizers.variants import tokenizers_of
from tests.conftest import without_initialisation

EXACT, SINGLE = 1e-9, 1e-4
DIFFUSION = ["s2l2a", "s1grd", "s1rtc", "dem", "ndvi"]
# One of each kind in the fast tests. Pytest groups the tests of a model, so that each is built once.
MODELS = [
    pytest.param(name, marks=[] if name in ("s1grd", "lulc") else pytest.mark.slow) for name in [*DIFFUSION, "lulc"]
]


@pytest.fixture(scope="module")
def pair(models, scatter, request):
    """Return TerraTorch's tokenizer and ours in evaluation mode, loaded strictly."""
    name = f"terramind_v1_tokenizer_{request.param}"
    theirs = scatter(models.build(f"terratorch_{name}")).eval().requires_grad_(False)
    with without_initialisation():
        ours = models.build(name).requires_grad_(False)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    return theirs, ours


@pytest.fixture
def sample(image):
    """Return an input of a tokenizer: a standardised image or class ids."""

    def make(ours, batch=2, height=64, width=64):
        modality = ours.variant.modality
        if modality.kind == "classes":
            return torch.randint(0, 10, (batch, height, width))
        return image(modality.name, batch, height, width)

    return make


def on_each(names=MODELS):
    return pytest.mark.parametrize("pair", names, indirect=True, scope="module")


def source(seed=3):
    return torch.Generator().manual_seed(seed)


@on_each()
def test_codes_and_tokens(pair, sample):
    theirs, ours = pair
    x = sample(ours, 2, 96, 64)
    codes, loss, tokens = ours.encode(x)
    expected_codes, expected_loss, expected_tokens = theirs.encode(x)
    assert torch.equal(tokens, expected_tokens)
    assert tokens.unique().numel() > 4
    assert torch.equal(codes, expected_codes)
    assert torch.equal(loss, expected_loss)
    assert torch.equal(ours.tokens_to_embedding(tokens), theirs.tokens_to_embedding(tokens))


@on_each()
def test_encoder_in_double_precision(pair, sample, monkeypatch):
    theirs, ours = (copy.deepcopy(model.encoder).double() for model in pair)
    # Theirs casts to float32 in front of its last layer, which then fails on weights of float64.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    x = sample(pair[1], 1, 64, 96)
    if x.dim() == 3:
        x = torch.nn.functional.one_hot(x, 10).permute(0, 3, 1, 2)
    want = theirs(x.double())
    assert (ours(x.double()) - want).abs().max() <= EXACT * want.abs().max()


@on_each([param for param in MODELS if param.values[0] != "lulc"])
@pytest.mark.parametrize("steps", [5, pytest.param(10, marks=pytest.mark.slow)])
def test_reconstruction(pair, sample, steps):
    theirs, ours = pair
    x = sample(ours, 1)
    want = theirs(x, timesteps=steps, generator=source(), verbose=False)
    assert want.std() > 0.1
    assert (ours(x, timesteps=steps, generator=source()) - want).abs().max() <= SINGLE


@on_each([param for param in MODELS if param.values[0] != "lulc"])
def test_decoding_of_an_oblong_image(pair):
    theirs, ours = pair
    tokens = torch.randint(0, 15360, (1, 4, 6))
    noise = torch.randn(1, ours.channels, 64, 96, generator=source())
    want = theirs.decode_tokens(tokens, timesteps=2, generator=source())
    assert (ours.decode_tokens(tokens, timesteps=2, noise=noise) - want).abs().max() <= SINGLE


@on_each(["lulc"])
def test_logits(pair, sample):
    theirs, ours = pair
    x = sample(ours, 2, 96, 64)
    want, _ = theirs(x)
    assert (ours(x, timesteps=10) - want).abs().max() <= SINGLE
    tokens = ours.tokenize(x)
    assert (ours.decode_tokens(tokens) - theirs.decode_tokens(tokens)).abs().max() <= SINGLE


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 25, 50, 1000])
def test_denoising_is_the_same_to_the_bit(models, steps):
    from terratorch.models.backbones.terramind.tokenizer.scheduling import DDIMScheduler

    theirs = DDIMScheduler(
        beta_schedule="linear", prediction_type="sample", thresholding=True, clip_sample=True, zero_terminal_snr=True
    )
    theirs.set_timesteps(steps, mode="trailing")
    noise = torch.randn(2, 3, 8, 8)
    predictions = 2 * torch.randn(steps, 2, 3, 8, 8)
    image = noise
    for step, time in enumerate(theirs.timesteps):
        image = theirs.step(predictions[step], time, image).prev_sample
    times, plan = plan_steps(steps, 1.0)
    numbers = torch.tensor(plan)
    assert list(times) == theirs.timesteps.tolist()
    ours = denoise(lambda noisy, step: mix(predictions[step], noisy, numbers[step], 1.0), range(steps), noise)
    assert torch.equal(ours, image)


@pytest.mark.parametrize("variant", tokenizers_of().values(), ids=lambda variant: variant.name)
def test_hub_file(models, variant):
    from terratorch.models.backbones.terramind.tokenizer import tokenizer_register

    entry = tokenizer_register.pretrained_weights[variant.name]
    assert (variant.hub_repo, variant.hub_file) == (entry["hf_hub_id"], entry["hf_hub_filename"])
