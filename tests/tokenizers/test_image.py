"""Image tokenizers, with small networks."""

import pytest
import torch

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.tokenizers.image import ImageTokenizer

UNET = ["S2L2A", "S1GRD", "S1RTC", "DEM", "NDVI"]


@pytest.fixture(scope="module")
def s1(small):
    return small("S1GRD")


@pytest.fixture(scope="module")
def lulc(small):
    return small("LULC")


def psnr(got, want):
    return 10 * torch.log10(4 / (got - want).square().mean()).item()


@pytest.mark.parametrize("modality", UNET)
def test_reconstruction(small, image, modality):
    model = small(modality)
    x = image(modality)
    found = model(x, timesteps=2)
    assert found.shape == x.shape
    assert found.dtype == torch.float32
    assert found.abs().max() <= 1
    assert found.std() > 0.01


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (48, 80), (16, 16), (80, 48)])
def test_height_and_width(s1, image, size):
    x = image("S1GRD", 1, *size)
    codes, loss, tokens = s1.encode(x)
    assert tokens.shape == (1, size[0] // 16, size[1] // 16)
    assert tokens.dtype == torch.int32
    assert codes.shape == (1, 5, *tokens.shape[1:])
    assert loss.tolist() == [0]
    assert torch.equal(s1.tokenize(x), tokens)
    assert s1(x, timesteps=2).shape == x.shape
    assert torch.equal(s1.decode_tokens(tokens, timesteps=2), s1(x, timesteps=2))


def test_rows_and_columns_are_not_swapped(s1, image):
    x = image("S1GRD", 1, 32, 64)
    changed = x.clone()
    changed[..., :16, :16] += 5
    differ = (s1.encode(x).codes != s1.encode(changed).codes).any(dim=1)[0]
    assert differ[0, 0]
    assert differ.shape == (2, 4)


@pytest.mark.parametrize("image_size", [128, (128, 96)])
def test_size_of_the_output(s1, image_size):
    tokens = torch.zeros(1, 4, 4, dtype=torch.long)
    found = s1.decode_tokens(tokens, timesteps=1, image_size=image_size)
    assert found.shape[-2:] == ((128, 128) if image_size == 128 else image_size)


def test_evaluation_mode_by_default(s1, lulc):
    assert not s1.training
    assert not lulc.decoder.training


def test_same_codes_same_image(s1, image):
    x = image("S1GRD")
    assert torch.equal(s1(x, timesteps=2), s1(x, timesteps=2))
    assert not torch.equal(s1(x, timesteps=2), s1(x, timesteps=2, seed=1))


def test_global_random_state_is_left_alone(s1, image):
    x = image("S1GRD")
    before = torch.get_rng_state()
    s1(x, timesteps=2)
    s1(x, timesteps=2, seed=7)
    assert torch.equal(torch.get_rng_state(), before)


def test_sample_does_not_depend_on_its_batch(s1, image):
    x = image("S1GRD", 3)
    together = s1(x, timesteps=3, seed=[5, 6, 7])
    for index in range(3):
        alone = s1(x[index : index + 1], timesteps=3, seed=5 + index)
        torch.testing.assert_close(alone[0], together[index], atol=1e-5, rtol=0)


def test_noise_can_be_given(s1, image):
    x = image("S1GRD")
    noise = torch.stack([torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)])
    assert torch.equal(s1(x, timesteps=2, noise=noise), s1(x, timesteps=2, seed=[1, 2]))
    with pytest.raises(ConfigError, match=r"\[2, 2, 64, 64\], got \[1, 2, 64, 64\]"):
        s1(x, timesteps=2, noise=noise[:1])


def test_half_precision(s1, image):
    x = image("S1GRD")
    full, half = s1(x, timesteps=3), s1(x, timesteps=3, dtype=torch.bfloat16)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert psnr(half, full) > 30


def test_autocast_sets_the_precision(s1, image):
    tokens = s1.tokenize(image("S1GRD"))
    with torch.autocast("cpu", torch.bfloat16):
        found = s1.decode_tokens(tokens, timesteps=2)
        kept = s1.decode_tokens(tokens, timesteps=2, dtype=torch.float32)
    assert torch.equal(found, s1.decode_tokens(tokens, timesteps=2, dtype=torch.bfloat16))
    assert torch.equal(kept, s1.decode_tokens(tokens, timesteps=2))


def test_weights_keep_type_and_layout(s1, image):
    s1(image("S1GRD"), timesteps=1, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in s1.parameters()} == {torch.float32}
    assert all(value.is_contiguous() for value in s1.state_dict().values())


def test_model_in_half_precision(small, image):
    model = small("S1GRD").to(torch.bfloat16)
    assert model(image("S1GRD"), timesteps=2).isfinite().all()


def test_moving_without_blocking(small, image):
    model = small("S1GRD").to("cpu", non_blocking=True)
    assert model(image("S1GRD").to("cpu", non_blocking=True), timesteps=1).isfinite().all()


def test_input_is_not_changed(s1, image):
    x = image("S1GRD")
    copy = x.clone()
    s1(x, timesteps=1)
    assert torch.equal(x, copy)


def test_progress_bar(s1, image, capsys):
    x = image("S1GRD")
    assert torch.equal(s1(x, timesteps=2, verbose=True), s1(x, timesteps=2))
    capsys.readouterr()
    s1(x, timesteps=2)
    assert capsys.readouterr().out == ""


def test_classes_in_all_forms(lulc):
    ids = torch.randint(0, 10, (2, 48, 32))
    one_hot = torch.nn.functional.one_hot(ids, 10).permute(0, 3, 1, 2)
    codes, _, tokens = lulc.encode(ids)
    for form in (ids[:, None], one_hot, one_hot.float(), ids.float(), ids.to(torch.uint8)):
        assert torch.equal(lulc.encode(form).tokens, tokens)
        torch.testing.assert_close(lulc.encode(form).codes, codes)
    logits = lulc(ids, timesteps=10)
    assert logits.shape == (2, 10, 48, 32)
    torch.testing.assert_close(lulc.decode_tokens(tokens), logits)


def test_gradients_reach_the_encoder(lulc):
    lulc(torch.randint(0, 10, (1, 32, 32))).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in lulc.parameters())
    lulc.zero_grad()


@pytest.mark.parametrize(
    ("value", "shown"), [(10, "10"), (255, "255"), (-1, "-1"), (2.5, "2.5"), (float("nan"), "nan")]
)
def test_wrong_class_id(lulc, value, shown):
    ids = torch.zeros(1, 32, 32)
    ids[0, 3, 4] = value
    with pytest.raises(DataError, match=f"0 to 9, found {shown}"):
        lulc.encode(ids)


@pytest.mark.parametrize(
    ("modality", "shape", "message"),
    [
        ("S1GRD", (1, 3, 64, 64), r"expects \[B, 2, H, W\], got \[1, 3, 64, 64\]"),
        ("S1GRD", (2, 64, 64), r"expects \[B, 2, H, W\]"),
        ("LULC", (1, 9, 64, 64), r"or class ids \[B, H, W\]"),
        ("S1GRD", (1, 2, 60, 64), "multiples of 16"),
        ("LULC", (1, 64, 60), "multiples of 16"),
        ("S1GRD", (1, 2, 0, 64), "multiples of 16"),
    ],
)
def test_wrong_shape(s1, lulc, modality, shape, message):
    with pytest.raises(ConfigError, match=message):
        {"S1GRD": s1, "LULC": lulc}[modality].encode(torch.zeros(shape))


def test_missing_pixels_are_refused(s1, image):
    x = image("S1GRD")
    x[1, 0, 5, 5] = float("nan")
    with pytest.raises(DataError, match="NaN or infinite"):
        s1.encode(x)


@pytest.mark.parametrize("image_size", [66, (64, 30), 0])
def test_wrong_output_size(s1, image_size):
    with pytest.raises(ConfigError, match="multiple of 4"):
        s1.decode_tokens(torch.zeros(1, 4, 4, dtype=torch.long), image_size=image_size)


@pytest.mark.parametrize("modality", ["S1GRD", "LULC"])
def test_only_the_encoder(small, image, modality):
    model, whole = small(modality, decoder=False), small(modality)
    assert not [name for name in model.state_dict() if "decoder" in name or "post_quant" in name]
    model.load_state_dict({name: value for name, value in whole.state_dict().items() if name in model.state_dict()})
    x = image(modality) if modality == "S1GRD" else torch.randint(0, 10, (2, 64, 64))
    assert torch.equal(model.tokenize(x), whole.tokenize(x))
    with pytest.raises(ConfigError, match="without its decoder"):
        model(x)


@pytest.mark.parametrize("modality", ["S1GRD", "LULC"])
def test_only_the_decoder(small, modality):
    model, whole = small(modality, encoder=False), small(modality)
    assert not [name for name in model.state_dict() if name.startswith(("encoder", "quant_proj"))]
    model.load_state_dict({name: value for name, value in whole.state_dict().items() if name in model.state_dict()})
    tokens = torch.randint(0, 4375, (1, 2, 3))
    assert torch.equal(model.decode_tokens(tokens, timesteps=2), whole.decode_tokens(tokens, timesteps=2))
    with pytest.raises(ConfigError, match="without its encoder"):
        model.encode(torch.zeros(1, 2, 64, 64))


def test_neither_part(variant):
    with pytest.raises(ConfigError, match="nothing is left"):
        ImageTokenizer(variant("DEM"), encoder=False, decoder=False)


def test_denoiser_can_be_trained(small):
    model = small("DEM")
    unet, codes = model.decoder, torch.rand(2, 5, 2, 2)
    shifts = unet.time_shifts(torch.tensor([3, 700]))
    unet(torch.randn(2, 1, 32, 32), codes, shifts).square().sum().backward()
    assert all(parameter.grad is not None for parameter in unet.parameters())


def test_each_sample_can_have_its_own_time(small):
    unet = small("DEM").decoder
    noisy, codes, times = torch.randn(2, 1, 32, 32), torch.rand(2, 5, 2, 2), torch.tensor([3, 700])
    with torch.no_grad():
        together = unet(noisy, codes, unet.time_shifts(times))
        for index in range(2):
            one = slice(index, index + 1)
            alone = unet(noisy[one], codes[one], unet.time_shifts(times[one]))
            torch.testing.assert_close(alone, together[one], atol=1e-5, rtol=1e-4)
