"""Thinking-in-Modalities: a backbone that first generates a modality it was not given, and then answers with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from terramind_plugin.backbones.encoder import TerraMindBackbone
from terramind_plugin.backbones.tokenized import GivenTokens, plan_given
from terramind_plugin.cache.cache import Memo, Value, stack, unstack
from terramind_plugin.cache.keys import (
    Fingerprint,
    describe_context,
    describe_specs,
    hash_weights,
    sample_keys,
    seed_of,
)
from terramind_plugin.errors import ConfigError, WeightsError
from terramind_plugin.generation.schedules import Decoding
from terramind_plugin.generation.token_generator import TokenGenerator, plan_targets
from terramind_plugin.model.encoder_decoder import token_key
from terramind_plugin.model.finite import FiniteGuard
from terramind_plugin.model.inputs import TIM, InputSpec, plan_inputs
from terramind_plugin.model.variants import Variant

GENERATOR = "sampler."
"""What the names of the generator's weights begin with, as in TerraTorch's checkpoints."""
FROZEN = (GENERATOR, "given_tokens.")
"""The same for all parts that are frozen."""
STEP = "tim_step"
FINGERPRINT = "generator_sha256"


class TerraMindTiM(TerraMindBackbone):
    """Tokens of selected encoder layers for images and for token ids that a generator imagines from them.

    The generator is frozen and owns its weights; the encoder, embeddings included, is fine-tuned. In evaluation mode
    a sample's thought depends on the sample and `tim_seed` alone. In training it also depends on the number of forward
    passes so far, which checkpoints keep, on the sample's position in the batch and on the process, so that equal chips
    get different thoughts. With a memo it depends on the sample and `tim_seed` in training as well. All images need one
    size. With merge_method 'dict' the thought
    is there under its name, or with 'tim_' in front where an image has that name.

    Source: TerraMind (arXiv:2504.11171) section 3.3; arguments are those of TerraTorch's implementation, plus the ones
    marked new.

    Args:
        variant: Architecture.
        modalities: As in `TerraMindBackbone`. The generator sees those that are pre-trained, with their known bands.
        tim_modalities: What to imagine, in this order.
        tim_chained_generations: Whether what was imagined conditions what is imagined next.
        tim_decoding_steps: Steps in which the tokens of an image modality are drawn.
        tim_temps: Sampling temperature; 0 takes the likeliest tokens.
        tim_top_p: Draw from the likeliest tokens that together have this probability.
        tim_top_k: Draw from this many likeliest tokens; 0 for all.
        tim_seed: New. Where sampling starts.
        tim_given: New. Those of `tim_modalities` that are not imagined but come with the images, e.g. true land cover
            as class ids [B, 1, H, W]: frozen tokenizers turn them into the token ids that the generator would have
            imagined. With `tim_chained_generations` they condition what is imagined. If all are given, there is no
            generator.
        tim_memo: New. Folder in which thoughts are remembered, so that none is generated twice for the same input; True
            for 'memo' under the run's root. With it a thought is a function of the chip, in training, too.
        tim_memo_gib: New. Size that the memo may have, in GiB; what was not used for longest is forgotten.
        tim_store_generator: New. Whether checkpoints hold the generator and the tokenizers of `tim_given`. If not, they
            hold their fingerprint, and are refused by a model with others.
        bands: As in `TerraMindBackbone`.
        new_bands: As in `TerraMindBackbone`.
        kwargs: Further arguments of `TerraMindBackbone`.

    Raises:
        ConfigError: A name or number is not possible; the message says what is.
    """

    _advice = TIM

    def __init__(
        self,
        variant: Variant,
        modalities: Sequence[str | Mapping[str, int]] | Mapping[str, int] | None,
        *,
        tim_modalities: Sequence[str] = ("LULC",),
        tim_chained_generations: bool = True,
        tim_decoding_steps: int = 1,
        tim_temps: float = 1.0,
        tim_top_p: float = 0.8,
        tim_top_k: int | float = 0,
        tim_seed: int = 0,
        tim_given: Sequence[str] = (),
        tim_memo: str | Path | bool | None = None,
        tim_memo_gib: float = 1.0,
        tim_store_generator: bool = True,
        bands: Mapping[str, Sequence[object]] | None = None,
        new_bands: Sequence[object] = (),
        **kwargs: Any,
    ) -> None:
        targets = plan_targets(tim_modalities)
        images = plan_inputs(modalities, bands, new_bands)
        true = plan_given(tim_given, targets, images, variant.family)
        taken = {spec.name for spec in images}
        names = {target: f"tim_{target}" if target in taken else target for target in targets}
        imagined = [
            InputSpec(names[target], token_key(modality)[0], 1, modality, None) for target, modality in targets.items()
        ]
        super().__init__(variant, modalities, bands=bands, new_bands=new_bands, imagined=imagined, **kwargs)
        known = [_known_bands(spec) for spec in self.given if spec.pretrained is not None]
        if not known:
            raise ConfigError(
                "Thinking needs a pre-trained modality to think about, got only new ones: "
                f"{[spec.name for spec in self.given]}. Add one, e.g. S2L2A, or use the backbone without _tim."
            )
        self.given = (*self.given, *true)
        self.modalities = [spec.name for spec in self.given]
        self._channels = {spec.name: channels for spec, channels in known}
        self.targets = targets
        """What is imagined or given as tokens, by the user's names."""
        self.thought_names = names
        """By what is imagined, its name among the model's inputs."""
        self.thoughts: dict[str, Tensor] = {}
        """Token ids that the last forward pass imagined, by name; none with a feature memo."""
        self.given_tokens = GivenTokens(true, variant.family) if true else None
        self.sampler = self._build_generator([spec for spec, _ in known], true, tim_chained_generations)
        if tim_memo and self.sampler is None:
            raise ConfigError("tim_memo remembers what is imagined, and tim_given gives all of it. Leave tim_memo out.")
        self.decoding = Decoding(steps=tim_decoding_steps, temperature=tim_temps, top_p=tim_top_p, top_k=tim_top_k)
        self.tim_seed = tim_seed
        self.tim_memo = Memo(tim_memo, "thoughts", tim_memo_gib) if tim_memo else None
        self._fingerprint = Fingerprint()
        self.store_generator = tim_store_generator
        self._guard = FiniteGuard()
        self.step = 0
        """Forward passes in training mode so far."""
        self.register_state_dict_post_hook(_store)
        self.register_load_state_dict_pre_hook(_restore)

    def _build_generator(
        self, known: Sequence[InputSpec], true: Sequence[InputSpec], chained: bool
    ) -> TokenGenerator | None:
        """Return a generator of what is not given, or None if all is."""
        left = [target for target in self.targets if target not in {spec.name for spec in true}]
        if not left:
            return None
        inputs = [*known, *true] if chained else known
        return TokenGenerator(self.variant, inputs, left, remembered=left if chained else (), img_size=self.img_size)

    def _needs_one_size(self) -> bool:
        return True

    def _compute(self, inputs: Mapping[str, Tensor], present: Tensor | None) -> list[Any]:
        held = None if present is None else dict(zip(inputs, present.unbind(0), strict=True))
        tokens = self.think(inputs, held)
        true = () if self.given_tokens is None else [spec.name for spec in self.given_tokens.specs]
        if self.feature_memo is None:  # else it is not thought about all samples
            self.thoughts = {name: ids.detach() for name, ids in tokens.items() if name not in true}
        read = {name: x for name, x in inputs.items() if name not in true} | tokens
        if present is not None and held is not None:
            everyone = present.new_ones(present.shape[1])
            present = torch.stack([held.get(name, everyone) for name in read])
        return super()._compute(read, present)

    def _describe(self) -> dict[str, Any]:
        return {**super()._describe(), **self._describe_thoughts(), "derived seeds": self.tim_memo is not None}

    def _describe_thoughts(self) -> dict[str, Any]:
        """Return what thoughts depend on besides weights and inputs."""
        described: dict[str, Any] = {}
        if self.given_tokens is not None:
            described["told"] = describe_specs(self.given_tokens.specs)
        if self.sampler is not None:
            described |= {
                "generator": describe_specs(self.sampler.inputs),
                "targets": list(self.sampler.targets),
                "read": sorted(self.sampler.model.encoder_embeddings),
                "decoding": self.decoding,
                "seed": self.tim_seed,
            }
        return described

    def think(self, inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the token ids of `tim_modalities`, imagined or given, by name: [B, rows, columns], [B, L] for coords.

        Args:
            inputs: Standardised images [B, bands, H, W] by the model's names.
            present: For some of them a boolean [B], False where a sample lacks it.

        Raises:
            ConfigError: None of the pre-trained modalities is there, or one of `tim_given` is not.
            DataError: What is given holds values that are none of its modality, or an image is not finite. In a
                training step on a GPU the latter is raised by the next step.
        """
        true = {} if self.given_tokens is None else self.given_tokens(inputs, wait=not self.training)
        seen = {name: x[:, self._channels[name]] for name, x in inputs.items() if name in self._channels}
        if not seen:
            raise ConfigError(f"Thinking needs one of {list(self._channels)}, got {list(inputs)}.")
        self._guard(seen, wait=not self.training)
        if self.sampler is None:
            return true
        read = {spec.name for spec in self.sampler.inputs}
        seen |= {name: ids for name, ids in true.items() if name in read}
        imagined = self._imagine(self.sampler, seen, present)
        tokens = {self.thought_names[name]: ids for name, ids in imagined.items()} | true
        return {name: tokens[name] for name in self.thought_names.values()}

    def _imagine(
        self, sampler: TokenGenerator, seen: Mapping[str, Tensor], present: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Return token ids by target, given images and token ids."""
        held = None if present is None else {name: present[name] for name in seen}
        if self.tim_memo is not None:
            return self._recall(self.tim_memo, sampler, seen, held)
        seed: int | list[int] = self.tim_seed
        if self.training:
            batch = len(next(iter(seen.values())))
            seed = [_mix(self.tim_seed, self.step, _rank(), position) for position in range(batch)]
            self.step += 1
        return sampler(seen, present=held, seed=seed, decoding=self.decoding, checked=True)

    def _recall(
        self, memo: Memo, sampler: TokenGenerator, seen: Mapping[str, Tensor], present: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """Return token ids by target; each sample starts from a seed of its own, so that no other decides them."""
        device = next(iter(seen.values())).device

        def make_keys() -> list[bytes]:
            weights = self._fingerprint.of(sampler)
            context = describe_context(what="thoughts", weights=weights, **self._describe_thoughts())
            return sample_keys(context, seen, present)

        def compute(index: list[int], keys: Sequence[bytes]) -> list[Value]:
            rows = torch.tensor(index, device=device)
            ids = sampler(
                {name: x[rows] for name, x in seen.items()},
                present=None if present is None else {name: x[rows] for name, x in present.items()},
                seed=[seed_of(keys[i], self.tim_seed) for i in index],
                decoding=self.decoding,
                checked=True,
            )
            return unstack(ids)

        return stack(memo.remember(make_keys, compute), device)

    def unfreeze(self) -> None:
        """Let all parameters but those of the frozen parts train again and switch to training mode."""
        super().unfreeze()
        for part in self._frozen_parts().values():
            part.requires_grad_(False)

    def fingerprint(self) -> Tensor:
        """Return the SHA-256 of the weights and names of the frozen parts, uint8 [32]."""
        digests = [hash_weights(part).digest() for part in self._frozen_parts().values()]
        digest = digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()
        return torch.frombuffer(bytearray(digest), dtype=torch.uint8)

    def _frozen_parts(self) -> dict[str, nn.Module]:
        """Return the generator and the tokenizers of what is given, as far as there are any, by the prefix of names."""
        parts = zip(FROZEN, (self.sampler, self.given_tokens), strict=True)
        return {prefix: part for prefix, part in parts if part is not None}


def _known_bands(spec: InputSpec) -> tuple[InputSpec, slice | list[int]]:
    """Return what the generator is given of a modality, and the channels that this takes."""
    if spec.band_sources is None or None not in spec.band_sources:
        return spec, slice(None)
    channels = [channel for channel, source in enumerate(spec.band_sources) if source is not None]
    if not channels:
        raise ConfigError(
            f"bands of {spec.name} are all new, so there is nothing to think about. Declare a new modality."
        )
    sources = tuple(spec.band_sources[channel] for channel in channels)
    return replace(spec, channels=len(channels), band_sources=sources), channels


def _rank() -> int:
    """Return the number of this process among those that train together, 0 if it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _mix(*numbers: int) -> int:
    """Return a seed that depends on all numbers, far from those of their neighbours."""
    digest = hashlib.sha256("/".join(map(str, numbers)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _store(module: nn.Module, state_dict: dict[str, Any], prefix: str, _: Any) -> None:
    """Add the step to a model's weights and, if asked for, put a fingerprint in place of the generator."""
    assert isinstance(module, TerraMindTiM)
    if module.step:
        state_dict[f"{prefix}{STEP}"] = torch.tensor(module.step)
    if not module.store_generator:
        frozen = tuple(f"{prefix}{part}" for part in FROZEN)
        for name in [name for name in state_dict if name.startswith(frozen)]:
            del state_dict[name]
        state_dict[f"{prefix}{FINGERPRINT}"] = module.fingerprint()


def _restore(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take from a checkpoint what is no weight, and leave out the image tokenizers of TerraTorch's."""
    assert isinstance(module, TerraMindTiM)
    for name in [name for name in state_dict if name.startswith(f"{prefix}tokenizer.")]:
        del state_dict[name]
    step = state_dict.pop(f"{prefix}{STEP}", None)
    if step is not None:
        _check_stored(step, torch.int64, (), STEP)
        module.step = int(step)
    stored = state_dict.pop(f"{prefix}{FINGERPRINT}", None)
    if stored is None:
        return
    _check_stored(stored, torch.uint8, (32,), FINGERPRINT)
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


def _check_stored(value: Tensor, dtype: torch.dtype, shape: tuple[int, ...], name: str) -> None:
    """Raise a WeightsError if what a checkpoint holds beside weights is of another type or shape."""
    if value.dtype != dtype or value.shape != shape:
        raise WeightsError(
            f"The checkpoint's {name} is {value.dtype} {list(value.shape)}, expected {dtype} {list(shape)}: it is "
            "damaged."
        )


def _hex(fingerprint: Tensor) -> str:
    return bytes(fingerprint.tolist()).hex()[:16]
