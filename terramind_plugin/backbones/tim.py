"""Thinking-in-Modalities: a backbone that first generates a missing modality and then uses it as an input."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from terramind_plugin.backbones.cache.cache import Cache
from terramind_plugin.backbones.cache.keys import describe_specs, seed_of
from terramind_plugin.backbones.encoder import TOKENIZER, TerraMindBackbone
from terramind_plugin.backbones.tokenized import ObservedTokens, plan_observed
from terramind_plugin.errors import ConfigError, WeightsError, suggest
from terramind_plugin.generation.schedules import Decoding
from terramind_plugin.generation.token_generator import TokenGenerator, plan_targets
from terramind_plugin.model.checkpoints import check_stored, hash_weights
from terramind_plugin.model.compiled import keep_out
from terramind_plugin.model.finite import FiniteGuard
from terramind_plugin.model.inputs import TIM, InputSpec, Modalities
from terramind_plugin.model.modalities import Modality, token_key
from terramind_plugin.model.planning import plan_inputs
from terramind_plugin.model.variants import Variant

FROZEN = ("sampler.", "given_tokens.", TOKENIZER)
"""Prefixes of the names of frozen weights: the generator, as in TerraTorch's checkpoints, and the tokenizers."""
GENERATOR_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STEP_KEY = "tim_step"
GENERATOR_KEY = "generator_sha256"


class TerraMindTiM(TerraMindBackbone):
    """Backbone that returns tokens of selected encoder layers for images and for token ids generated from them.

    The generator is frozen and owns its weights; the encoder, embeddings included, is fine-tuned. In evaluation mode
    the generated tokens of a sample depend only on the sample and `tim_seed`. In training they also depend on the
    number of forward passes so far, which checkpoints save as `tim_step`, on the sample's position in the batch and on
    the process, so that equal chips get different tokens. With a cache they depend only on the sample and `tim_seed`,
    also in training. All images need the same size. With merge_method 'dict' the tokens of a generated modality have
    its name, or the name with the prefix 'tim_' if an image has that name.

    Source: TerraMind (arXiv:2504.11171) section 3.3; arguments are those of TerraTorch's implementation, plus the ones
    marked new.

    Args:
        variant: Architecture.
        modalities: As in `TerraMindBackbone`. The generator sees those that are pre-trained, with their known bands; of
            several images of one modality the last, as in TerraTorch. LULC, NDVI and coords may be in `tim_modalities`
            as well: they are generated for batches that lack them.
        tim_modalities: Modalities to generate, in this order.
        tim_chained_generations: Whether a generated modality conditions the next one.
        tim_decoding_steps: Number of steps in which the tokens of an image modality are drawn.
        tim_temps: Sampling temperature; 0 takes the likeliest tokens.
        tim_top_p: Draw from the likeliest tokens that together have this probability.
        tim_top_k: Draw from this many likeliest tokens; 0 for all.
        tim_seed: New. Seed of the sampling.
        tim_observed: New. Those of `tim_modalities` that are given with the images instead of generated, e.g. true land
            cover as class ids [B, 1, H, W]; frozen tokenizers turn them into token ids. With `tim_chained_generations`
            they condition the generated modalities. If all modalities are observed, there is no generator.
        tim_cache: New. Folder of a cache of generated tokens, so that they are generated once for each input; True for
            'cache' below the run's root.
        tim_cache_gib: New. Size limit of the cache in GiB; the least recently used tokens are dropped first.
        tim_generator_dtype: New. Precision of the frozen generator's weights: 'float32', or 'bfloat16' for half the
            memory and no conversion in each step of a run in bf16-mixed; the generated tokens differ.
        tim_store_generator: New. Whether checkpoints contain the generator and the tokenizers of `tim_observed`. If
            not, they contain a fingerprint, and a model with another generator or tokenizer refuses them.
        bands: As in `TerraMindBackbone`.
        new_bands: As in `TerraMindBackbone`.
        kwargs: Further arguments of `TerraMindBackbone`.

    Raises:
        ConfigError: A name or number is not possible; the message says which ones are.
    """

    def __init__(
        self,
        variant: Variant,
        modalities: Modalities,
        *,
        tim_modalities: Sequence[str] = ("LULC",),
        tim_chained_generations: bool = True,
        tim_decoding_steps: int = 1,
        tim_temps: float = 1.0,
        tim_top_p: float = 0.8,
        tim_top_k: int | float = 0,
        tim_seed: int = 0,
        tim_observed: Sequence[str] = (),
        tim_cache: str | Path | bool | None = None,
        tim_cache_gib: float = 1.0,
        tim_generator_dtype: str = "float32",
        tim_store_generator: bool = True,
        bands: Mapping[str, Sequence[object]] | None = None,
        new_bands: Sequence[object] = (),
        share_embeddings: bool = False,
        in_chans: int | None = None,
        **kwargs: Any,
    ) -> None:
        targets = plan_targets(tim_modalities)
        planned: dict[str, Any] = {"bands": bands, "new_bands": new_bands, "in_chans": in_chans}
        planned["share_embeddings"] = share_embeddings
        images = plan_inputs(modalities, tokens=True, **planned)
        tokenized = plan_observed(tim_observed, targets, images, variant.family)
        names, generated = _plan_generated(targets, images)
        super().__init__(variant, modalities, generated=generated, **planned, **kwargs)
        known = [_known_bands(spec) for spec in {spec.source_key: spec for spec in images if spec.pretrained}.values()]
        if not any(not spec.is_sequence for spec, _ in known):
            raise ConfigError(
                "Generation needs a pre-trained modality as input, got only new ones: "
                f"{[spec.name for spec in images]}. Add one, e.g. S2L2A, or use the backbone without _tim."
            )
        self.observed = (*images, *tokenized)
        self.modalities = [spec.name for spec in self.observed]
        self._one_size, self._advice = True, TIM
        self._channels = {spec.name: channels for spec, channels in known}
        self.targets = targets
        """Modalities that are generated or observed as tokens, by the user's names."""
        self.generated_names = names
        """Name of each target among the model's inputs."""
        self.generated_tokens: dict[str, Tensor] = {}
        """Token ids that the last forward pass generated, by name; empty with a feature cache."""
        self.given_tokens = ObservedTokens(tokenized, variant.family) if tokenized else None
        """Tokenizers of observed modalities; this is also their name in checkpoints."""
        self._in_half = _check_dtype(tim_generator_dtype) == torch.bfloat16
        self.sampler = self._build_generator([spec for spec, _ in known], tokenized, tim_chained_generations)
        if tim_cache and self.sampler is None:
            raise ConfigError("tim_cache has no use if all modalities are in tim_observed. Leave tim_cache out.")
        self.decoding = Decoding(steps=tim_decoding_steps, temperature=tim_temps, top_p=tim_top_p, top_k=tim_top_k)
        self.tim_cache = Cache(tim_cache, "tim", tim_cache_gib) if tim_cache else None
        self.tim_seed, self.store_generator = tim_seed, tim_store_generator
        self._guard, self.step = FiniteGuard(), 0
        """`step`: number of forward passes in training mode so far."""
        hooked: Any = self
        hooked.register_state_dict_post_hook(_store)
        hooked.register_load_state_dict_pre_hook(_restore)

    def _build_generator(
        self, known: Sequence[InputSpec], tokenized: Sequence[InputSpec], chained: bool
    ) -> TokenGenerator | None:
        """Return a generator of the targets that are not observed, or None if all are."""
        keep_out(TerraMindTiM, "generate_tokens")
        left = [target for target in self.targets if target not in {spec.name for spec in tokenized}]
        if not left:
            return None
        inputs = [*known, *tokenized] if chained else known
        made = TokenGenerator(self.variant, inputs, left, remembered=left if chained else (), img_size=self.img_size)
        return made.to(torch.bfloat16) if self._in_half else made

    @property
    def makes_tokens(self) -> bool:
        """Return True, because token ids are generated or made from observed modalities."""
        return True

    def compile_parts(self, mode: str = "graphs", *, backend: str | Callable[..., Any] = "inductor") -> None:
        """Compile the encoder and the parts of the generator; arguments as in `compile_model`."""
        super().compile_parts(mode, backend=backend)
        if self.sampler is not None:
            self.sampler.compile_parts(mode, backend=backend)

    def compute(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> list[Any]:
        """Return the merged features of the selected layers, after generating tokens; see `TerraMindBackbone`."""
        given = self.tokenize(inputs)
        tokens = self.generate_tokens({**inputs, **given}, present)
        observed = () if self.given_tokens is None else [spec.name for spec in self.given_tokens.specs]
        if self.feature_cache is None:  # with it, only a part of the batch is computed
            self.generated_tokens = {
                name: ids.detach() for name, ids in tokens.items() if name not in (*observed, *given)
            }
        read = {name: x for name, x in inputs.items() if name not in observed} | given | tokens
        read = {spec.name: read[spec.name] for spec in self.inputs if spec.name in read}
        if present is not None:
            everyone = torch.ones_like(next(iter(present.values())))
            present = {name: present.get(name, everyone) for name in read}
        return self.encode(read, present)

    @property
    def thoughts(self) -> dict[str, Tensor]:
        """Return `generated_tokens`; this is its former name."""
        warnings.warn("thoughts is now called generated_tokens", DeprecationWarning, stacklevel=2)
        return self.generated_tokens

    def think(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the result of `generate_tokens`; this is its former name."""
        warnings.warn("think is now called generate_tokens", DeprecationWarning, stacklevel=2)
        return self.generate_tokens(inputs, present)

    def generate_tokens(
        self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Return the token ids of `tim_modalities`, generated or observed, by name.

        Args:
            inputs: Standardised images [B, bands, H, W], and token ids of inputs that enter as token ids, by the
                model's names.
            present: Boolean [B] for some of the inputs, False where a sample lacks it.

        Returns:
            Token ids [B, rows, columns]; [B, L] for coords.

        Raises:
            ConfigError: No pre-trained modality is given, or a modality of `tim_observed` is missing.
            DataError: An observed modality holds impossible values, or an image is not finite. In a training
                step on a GPU the next step raises the error about images.
        """
        observed = {} if self.given_tokens is None else self.given_tokens(inputs, wait=not self.training)
        seen = {name: x[:, self._channels[name]] for name, x in inputs.items() if name in self._channels}
        if not seen:
            raise ConfigError(f"Thinking needs one of {list(self._channels)}, got {list(inputs)}.")
        self._guard({name: x for name, x in seen.items() if x.ndim == 4}, wait=not self.training)
        if self.sampler is None:
            return observed
        read = {spec.name for spec in self.sampler.inputs}
        seen |= {name: ids for name, ids in observed.items() if name in read}
        kept = {name: x for name, x in seen.items() if name in self.generated_names.values()}
        held = None if present is None else {name: present[name] for name in seen}
        generated = self._generate(self.sampler, seen, held)
        tokens = {self.generated_names[name]: ids for name, ids in generated.items()} | kept | observed
        return {name: tokens[name] for name in self.generated_names.values()}

    def _generate(
        self, sampler: TokenGenerator, seen: Mapping[str, Tensor], present: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Return token ids by target, given images and token ids."""

        def draw(
            some: Mapping[str, Tensor], have: Mapping[str, Tensor] | None, seed: int | list[int]
        ) -> dict[str, Tensor]:
            device = next(iter(some.values())).device.type
            with torch.autocast(device, torch.bfloat16) if self._in_half else nullcontext():
                ids: dict[str, Tensor] = sampler(some, present=have, seed=seed, decoding=self.decoding, checked=True)
            return ids

        if self.tim_cache is not None:
            # Each sample has its own seed, so that its tokens do not depend on other samples.
            return self.tim_cache.recall(
                sampler,
                seen,
                present,
                {"what": "tokens", **self._describe_tokens()},
                lambda some, have, keys: draw(some, have, [seed_of(key, self.tim_seed) for key in keys]),
            )
        seed: int | list[int] = self.tim_seed
        if self.training:
            batch = len(next(iter(seen.values())))
            seed = [_mix(self.tim_seed, self.step, _rank(), position) for position in range(batch)]
            self.step += 1
        return draw(seen, present, seed)

    def describe(self) -> dict[str, Any]:
        """Return everything that features depend on, apart from weights and inputs, for the keys of a cache."""
        return {**super().describe(), **self._describe_tokens(), "seeds of samples": self.tim_cache is not None}

    def _describe_tokens(self) -> dict[str, Any]:
        """Return everything that token ids depend on, apart from weights and inputs."""
        described: dict[str, Any] = {}
        if self.given_tokens is not None:
            described["observed"] = describe_specs(self.given_tokens.specs)
        if self.sampler is not None:
            described |= {
                "generator": describe_specs(self.sampler.inputs),
                "targets": list(self.sampler.targets),
                "read": sorted(self.sampler.model.encoder_embeddings),
                "decoding": self.decoding,
                "seed": self.tim_seed,
            }
            if self._in_half:
                described["generator in"] = "bfloat16"
            if self.variant.one_size:
                described["windows"] = self.variant.img_size
        return described

    def unfreeze(self) -> None:
        """Train all parameters except those of the frozen parts again, and switch to training mode."""
        super().unfreeze()
        for part in self._frozen_parts().values():
            part.requires_grad_(False)

    def fingerprint(self) -> Tensor:
        """Return the SHA-256 of the weights and names of the frozen parts, uint8 [32]."""
        digests = [bytes.fromhex(hash_weights(part.state_dict())) for part in self._frozen_parts().values()]
        digest = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
        return torch.frombuffer(bytearray(digest), dtype=torch.uint8)

    def _frozen_parts(self) -> dict[str, nn.Module]:
        """Return the generator and the tokenizers of observed modalities, if any, by their prefix."""
        parts = zip(FROZEN, (self.sampler, self.given_tokens, self.tokenizer), strict=True)
        return {prefix: part for prefix, part in parts if part is not None}


def _plan_generated(
    targets: Mapping[str, Modality], images: Sequence[InputSpec]
) -> tuple[dict[str, str], list[InputSpec]]:
    """Return the name of each target among the encoder's inputs, and the inputs that are generated."""
    taken = {spec.name for spec in images}
    names = {target: f"tim_{target}" if target in taken else target for target in targets}
    # A target that may also be an input has the same name in both roles.
    names |= {target: spec.name for target in targets for spec in images if spec.key == token_key(targets[target])}
    keys = {spec.key for spec in images}
    new = {target: modality for target, modality in targets.items() if token_key(modality) not in keys}
    return names, [InputSpec.of_tokens(names[target], modality) for target, modality in new.items()]


def _known_bands(spec: InputSpec) -> tuple[InputSpec, slice | list[int]]:
    """Return the known bands of a modality under its published name, for the generator, and their channels."""
    spec = replace(spec, key=str(spec.source_key), new_bands=())
    if spec.band_sources is None or None not in spec.band_sources:
        return spec, slice(None)
    channels = [channel for channel, source in enumerate(spec.band_sources) if source is not None]
    if not channels:
        raise ConfigError(
            f"bands of {spec.name} are all new, so nothing can be generated from them. Declare a new modality."
        )
    sources = tuple(spec.band_sources[channel] for channel in channels)
    return replace(spec, channels=len(channels), band_sources=sources), channels


def _check_dtype(name: str) -> torch.dtype:
    if name not in GENERATOR_DTYPES:
        known = ", ".join(GENERATOR_DTYPES)
        raise ConfigError(
            f"tim_generator_dtype must be one of {known}, got {name!r}.{suggest(str(name), GENERATOR_DTYPES)}"
        )
    return GENERATOR_DTYPES[name]


def _rank() -> int:
    """Return the rank of this process in distributed training, 0 if it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _mix(*numbers: int) -> int:
    """Return a seed that depends on all numbers; close numbers give unrelated seeds."""
    digest = hashlib.sha256("/".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _store(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    """Add the step to a model's weights and, if the generator is not to be stored, its fingerprint instead."""
    assert isinstance(module, TerraMindTiM)
    if module.step:
        state_dict[f"{prefix}{STEP_KEY}"] = torch.tensor(module.step)
    if not module.store_generator:
        frozen = tuple(f"{prefix}{part}" for part in FROZEN)
        for name in [name for name in state_dict if name.startswith(frozen)]:
            del state_dict[name]
        state_dict[f"{prefix}{GENERATOR_KEY}"] = module.fingerprint()


def _restore(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Remove from a checkpoint what is not a weight, and the tokenizers that TerraTorch stores without using them."""
    assert isinstance(module, TerraMindTiM)
    used = (
        []
        if module.tokenizer is None
        else [f"{prefix}{TOKENIZER}{key}." for key, _ in module.tokenizer.named_children()]
    )
    for name in [name for name in state_dict if name.startswith(f"{prefix}{TOKENIZER}")]:
        if not name.startswith(tuple(used)):
            del state_dict[name]
    step = state_dict.pop(f"{prefix}{STEP_KEY}", None)
    if step is not None:
        check_stored(step, torch.int64, (), STEP_KEY)
        module.step = int(step)
    stored = state_dict.pop(f"{prefix}{GENERATOR_KEY}", None)
    if stored is None:
        return
    check_stored(stored, torch.uint8, (32,), GENERATOR_KEY)
    own = module.fingerprint()
    if not torch.equal(stored.cpu(), own):
        raise WeightsError(
            f"The checkpoint was made with another generator (SHA-256 {_hex(stored)}) than this model has "
            f"({_hex(own)}), and holds none of its own. Load the same weights with backbone_pretrained or "
            "backbone_ckpt_path, as in the run that made it."
        )
    for part, frozen in module._frozen_parts().items():
        for name, value in frozen.state_dict().items():
            state_dict[f"{prefix}{part}{name}"] = value


def _hex(fingerprint: Tensor) -> str:
    return bytes(fingerprint.tolist()).hex()[:16]
