"""TerraTorch's encoder-decoder and sampler beside ours, with the same random weights."""

import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch

from terramind_plugin.generation.token_generator import TokenGenerator
from terramind_plugin.model.encoder_decoder import EncoderDecoder
from terramind_plugin.model.inputs import InputSpec
from terramind_plugin.model.modalities import find, resolve
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.tokenizers.noise import Noise

BLANK_SENTINELS = (4, 5, 6)
"""Of TerraTorch's tokenizer without a vocabulary file."""
SHALLOW = replace(VARIANTS["terramind_v1_tiny"], depth=4, decoder_depth=2)
"""The tiny size with fewer blocks: they are all alike."""
TINY = {
    "dim": 192,
    "encoder_depth": 4,
    "decoder_depth": 2,
    "num_heads": 3,
    "qkv_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
}
"""The same for TerraTorch's classes."""


def scatter_weights(model):
    """Move all parameters off the values that a mistake could hide behind (ones in norms, zeros in biases)."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def specs(names):
    """Return what a model takes: pixels where the modality has them, else token ids."""
    found = []
    for name in names:
        modality = resolve(name)
        is_tokens = modality.patch_key is None or name == modality.token_key
        key = modality.token_key if is_tokens else modality.patch_key
        found.append(InputSpec(name, key, len(modality.bands), modality, None, is_tokens=is_tokens))
    return tuple(found)


def make_tokens(name, batch=2, rows=6, columns=6, seed=0):
    """Return random token ids of a modality; of coordinates two and the end."""
    modality = find(name)
    generator = torch.Generator().manual_seed(seed)
    if modality.max_length is not None:
        ids = torch.randint(300, 3000, (batch, 3), generator=generator)
        ids[:, 2] = 3
        return ids
    return torch.randint(modality.vocab_size, (batch, rows, columns), generator=generator)


@pytest.fixture(scope="session")
def give(image):
    """Return inputs by name: images for modalities with pixels, else token ids."""

    def make(names, batch=2, height=96, width=96, *, seed=0, dtype=torch.float64):
        given = {}
        for spec in specs(names):
            if spec.key == spec.pretrained.token_key:
                given[spec.name] = make_tokens(spec.name, batch, height // 16, width // 16, seed)
            else:
                given[spec.name] = image(spec.pretrained.name, batch, height, width, seed=seed, dtype=dtype)
        return given

    return make


@pytest.fixture(scope="session")
def generator():
    """Return a tiny token generator whose weights do not depend on what else the test draws."""

    def make(inputs, targets, *, seed=0, dtype=torch.float32, **kwargs):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = TokenGenerator(SHALLOW, specs(inputs), targets, **kwargs)
            return scatter_weights(model).to(dtype)

    return make


@pytest.fixture(scope="session")
def reference():
    """Return TerraTorch's encoder-decoder, tiny, in its sampler."""
    from terratorch.models.backbones.terramind.model.generate import GenerationSampler
    from terratorch.models.backbones.terramind.model.modality_info import MODALITY_INFO
    from terratorch.models.backbones.terramind.model.terramind import (
        TerraMind,
        build_modality_embeddings,
        build_output_modality_embeddings,
    )
    from terratorch.models.backbones.terramind.model.tm_utils import LayerNorm

    def make(inputs, targets, remembered=None, *, dtype=torch.float64, img_size=224):
        remembered = targets[:-1] if remembered is None else remembered
        arguments = {"img_size": img_size, "dim": TINY["dim"], "patch_size": 16}
        read, _ = build_modality_embeddings(MODALITY_INFO, list(inputs), cond_modalities=list(remembered), **arguments)
        predicted, _ = build_output_modality_embeddings(MODALITY_INFO, list(targets), **arguments)
        norm = partial(LayerNorm, eps=1e-6, bias=False)
        model = TerraMind(read, predicted, MODALITY_INFO, norm_layer=norm, **TINY)
        return GenerationSampler(scatter_weights(model).to(dtype).eval())

    return make


@pytest.fixture(scope="session")
def pair(reference, generator):
    """Return TerraTorch's sampler and our generator with the same weights."""

    def make(inputs, targets, remembered=None, *, dtype=torch.float64):
        theirs = reference(inputs, targets, remembered, dtype=dtype)
        ours = generator(inputs, targets, remembered=remembered, sentinels=BLANK_SENTINELS, dtype=dtype)
        ours.model.load_state_dict(theirs.model.state_dict(), strict=True)
        return theirs, ours

    return make


@pytest.fixture(scope="session")
def run_reference():
    """Run TerraTorch's sampler as its generator does, on inputs by name; return token ids by checkpoint key."""
    from terratorch.models.backbones.terramind.model import generate
    from terratorch.models.backbones.terramind.model.modality_info import MODALITY_INFO
    from terratorch.models.backbones.terramind.tokenizer.text.text_tokenizer import CoordsTokenizer

    def run(sampler, given, targets, *, steps=1, scheme="roar", counts="linear", guidance=1.0, seed=7, lengths=4):
        batch = len(next(iter(given.values())))
        state, tokens = {}, 36
        for spec in specs(given):
            x = given[spec.name]
            length = x.shape[1] if x.ndim == 2 else x.shape[-1] * x.shape[-2] // (256 if x.ndim == 4 else 1)
            tokens = tokens if x.ndim == 2 else length
            blank = torch.zeros(batch, length, dtype=torch.bool)
            value = {"tensor": x, "input_mask": blank, "target_mask": ~blank, "decoder_attention_mask": blank.clone()}
            state[spec.key] = generate.init_full_input_modality(value, MODALITY_INFO, spec.key, "cpu")
        keys = [resolve(name).token_key for name in targets]
        numbers = [lengths if key == "coords" else tokens for key in keys]
        for key, number in zip(keys, numbers, strict=True):
            state[key] = generate.init_empty_target_modality(MODALITY_INFO, key, batch, number, "cpu")
        schedule = generate.build_chained_generation_schedules(
            cond_domains=[spec.key for spec in specs(given)],
            target_domains=keys,
            tokens_per_target=numbers,
            autoregression_schemes=["autoregressive" if key == "coords" else scheme for key in keys],
            decoding_steps=[steps] * len(keys),
            token_decoding_schedules=[counts] * len(keys),
            temps=[0.0] * len(keys),
            temp_schedules=["constant"] * len(keys),
            cfg_scales=[guidance] * len(keys),
            cfg_schedules=["constant"] * len(keys),
            cfg_grow_conditioning=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = sampler.generate(state, schedule, seed=seed, tokenizer={"coords": CoordsTokenizer(None)})
        return {key: out[key]["tensor"] for key in keys}

    return run


class ReplayedNoise(Noise):
    """The random orders that TerraTorch's sampler draws from the global generator in each of its steps."""

    def __init__(self, batch, seed, counts, first_step=0):
        super().__init__([torch.Generator() for _ in range(batch)])
        self.seed, self.counts, self.step = seed, counts, first_step

    def order(self, count):
        done, order = torch.zeros(count, dtype=torch.bool), []
        for number in self.counts(count):
            with torch.random.fork_rng():
                torch.manual_seed(self.seed + self.step)
                rank = torch.argsort(done + torch.rand(count) * 1e-6)[:number]
            order.append(rank)
            done[rank] = True
            self.step += 1
        return torch.cat(order).expand(len(self.generators), count)


@pytest.fixture
def record(monkeypatch):
    """Collect the scores that TerraTorch's model and ours compute, in the order of computation."""
    from terratorch.models.backbones.terramind.model.terramind import TerraMind

    theirs, ours = [], []

    def wrap(owner, name, kept, last_of_sequence):
        original = getattr(owner, name)

        def recorded(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            kept.append(last_of_sequence(result, *args) if isinstance(result, dict) else result.flatten(0, -2))
            return result

        monkeypatch.setattr(owner, name, recorded)

    def pick(result, y, decoder_mod_dict, decoder_mod_mask, *_):
        ((key, scores),) = result.items()
        return scores.view(len(y), -1, scores.shape[-1])[:, -1] if key == "coords" else scores

    wrap(TerraMind, "forward_logits", theirs, pick)
    wrap(EncoderDecoder, "grid_logits", ours, None)
    wrap(EncoderDecoder, "next_logits", ours, None)
    return theirs, ours
