"""A frozen encoder-decoder that generates token ids of modalities from other modalities."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.generation.decoding import FILLERS, SENTINELS, START, continue_sequence, first_piece
from terramind_plugin.generation.sampling import guide, sample, sample_ids
from terramind_plugin.generation.schedules import Decoding
from terramind_plugin.generation.windows import PatchWindows
from terramind_plugin.model.compiled import compile_method
from terramind_plugin.model.embeddings import SequenceHead
from terramind_plugin.model.encoder_decoder import Context, EncoderDecoder, Tokens
from terramind_plugin.model.finite import FiniteGuard, zero_nan
from terramind_plugin.model.inputs import InputSpec, check_size
from terramind_plugin.model.modalities import Modality, resolve, token_key
from terramind_plugin.model.variants import Variant
from terramind_plugin.tokenizers.noise import Noise

Size = tuple[int, int]


class EncoderTokens:
    """Tokens of the encoder's input, and their context, which is computed once for each state of the tokens.

    Args:
        model: The encoder-decoder.
        parts: Tokens by checkpoint key.
        batch: Number of samples.
    """

    def __init__(self, model: EncoderDecoder, parts: Mapping[str, Tokens], batch: int) -> None:
        self.model = model
        self.parts = dict(parts)
        self.batch = batch
        self._contexts: dict[frozenset[str], Context] = {}

    def put(self, key: str, part: Tokens) -> None:
        """Add or replace the tokens of a modality."""
        self.parts[key] = part
        self._contexts.clear()

    def context(self, without: Collection[str] = ()) -> Context:
        """Return the context of all tokens, except the tokens of some modalities."""
        left_out = frozenset(without)
        if left_out not in self._contexts:
            parts = [part for key, part in self.parts.items() if key not in left_out]
            self._contexts[left_out] = self.model.encode(parts, self.batch)
        return self._contexts[left_out]


class TokenGenerator(nn.Module):
    """Generator of token ids of modalities, one after the other, from images and token ids of other modalities.

    It is frozen, stays in evaluation mode, owns its weights, and contains no image tokenizer.

    Source: TerraMind (arXiv:2504.11171) sections 3.2 and 3.3.

    Args:
        variant: Architecture.
        inputs: Modalities of the input; a modality named by its token key enters as token ids.
        targets: Names of the modalities to predict, in the order of prediction.
        remembered: Targets that become inputs of the encoder as soon as they are predicted, so that they condition
            later targets and their own further decoding steps. None for all but the last.
        img_size: Height and width in pixels of the position embeddings, and of the output if no input has a size.
        sentinels: Token ids that start a part of a sequence.

    Raises:
        ConfigError: A modality is unknown, named twice, or has no tokens.
    """

    def __init__(
        self,
        variant: Variant,
        inputs: Sequence[InputSpec],
        targets: Sequence[str],
        *,
        remembered: Sequence[str] | None = None,
        img_size: Size = (224, 224),
        sentinels: Sequence[int] | range = SENTINELS,
    ) -> None:
        super().__init__()
        self.targets: dict[str, Modality] = plan_targets(targets)
        names = list(self.targets)[:-1] if remembered is None else list(remembered)
        for name in names:
            if name not in self.targets:
                raise ConfigError(f"remembered names '{name}', which is not among the targets {list(self.targets)}.")
        self.sentinels = tuple(sentinels)
        self._guard = FiniteGuard()
        self.inputs = tuple(inputs)
        self.model = EncoderDecoder(
            variant,
            inputs,
            list(self.targets.values()),
            remembered=[self.targets[name] for name in names],
            img_size=img_size,
        )
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> TokenGenerator:
        """Return the module, which stays in evaluation mode because it is frozen."""
        return super().train(False)

    @torch.no_grad()
    def forward(
        self,
        inputs: Mapping[str, Tensor],
        *,
        targets: Sequence[str] | None = None,
        present: Mapping[str, Tensor] | None = None,
        image_size: Size | None = None,
        seed: int | Sequence[int] | None = 0,
        noise: Noise | None = None,
        decoding: Decoding | Mapping[str, Decoding] | None = None,
        checked: bool = False,
    ) -> dict[str, Tensor]:
        """Return token ids by target: [B, rows, columns], or [B, L] for sequences, padded with 0.

        A model for images of one size (`Variant.one_size`) generates larger images in windows of its size.

        Args:
            inputs: Standardised images [B, bands, H, W] and token ids [B, rows, columns] or [B, L] by name.
            targets: Names of some of the model's targets, in any order; None for all that are not inputs.
            present: Boolean [B] for some inputs, False where a sample lacks the input. For a sample that lacks all
                inputs, the given values are used.
            image_size: Height and width in pixels of the targets; None for those of the inputs.
            seed: One seed for every sample, or one for each sample; None for new seeds in each call.
            noise: Random numbers, used instead of `seed`.
            decoding: Settings of decoding, for all targets or by target (default: one step at temperature 1 and top-p
                0.8).
            checked: Whether the caller has checked that images are finite.

        Raises:
            ConfigError: There is no input, a target is unknown or an input, or sizes, batches or seeds do not fit.
            DataError: An image is not finite.
        """
        size = self._grid(inputs, image_size)
        windows = self._plan_windows(size)
        if windows is not None and inputs:
            if noise is None:
                noise = Noise.from_seed(seed, len(next(iter(inputs.values()))))
            found: dict[str, Tensor] = self(
                windows.cut(inputs),
                targets=targets,
                present=None if present is None else windows.cut(present),
                image_size=None if image_size is None else windows.pixels,
                noise=windows.share(noise),
                decoding=decoding,
                checked=checked,
            )
            return {name: windows.join(ids) for name, ids in found.items()}
        tokens = self.read(inputs, present=present, checked=checked)
        noise = noise if noise is not None else Noise.from_seed(seed, tokens.batch)
        guided = set(tokens.parts)
        wanted = self._wanted(targets, tokens)
        self.announce(wanted, tokens)
        ids: dict[str, Tensor] = {}
        for name in wanted:
            how = decoding.get(name, Decoding()) if isinstance(decoding, Mapping) else decoding or Decoding()
            key = token_key(self.targets[name])
            ids[name] = self._predict(key, size, how, tokens, noise, guided)
            guided.add(key)
        return ids

    def _plan_windows(self, size: Size) -> PatchWindows | None:
        """Return windows over the targets' patches; None if the model can process them as a whole."""
        variant = self.model.variant
        largest = variant.img_size // variant.patch_size
        return PatchWindows(size, largest, variant.patch_size) if variant.one_size and max(size) > largest else None

    def read(
        self, inputs: Mapping[str, Tensor], *, present: Mapping[str, Tensor] | None = None, checked: bool = False
    ) -> EncoderTokens:
        """Return the inputs as tokens of the encoder; arguments as in `forward`.

        Raises:
            ConfigError: There is no input, or batches differ.
            DataError: An image is not finite.
        """
        known = [spec.name for spec in self.inputs]
        if not inputs or any(name not in known for name in inputs):
            raise ConfigError(f"Got inputs {list(inputs)}, expected one or several of {known}.")
        batches = {name: len(x) for name, x in inputs.items()}
        if len(set(batches.values())) > 1:
            raise ConfigError(f"Batch sizes differ: {batches}.")
        masks = _masks(inputs, present)
        if masks is not None:
            # A missing input may be NaN, which would pass through a mask.
            images = {spec.name for spec in self.inputs if not spec.is_tokens}
            inputs = {name: zero_nan(x) if name in images else x for name, x in inputs.items()}
        if not checked:
            self._guard(inputs, wait=True)
        parts: dict[str, Tokens] = {}
        for spec in self.inputs:
            x = inputs.get(spec.name)
            if x is None:
                continue
            if not spec.is_tokens:
                part = self.model.embed_image(spec.key, x)
            elif x.ndim == 3:
                part = self.model.embed_grid(spec.key, x)
            else:
                part = self.model.embed_sequence(spec.key, x)
            parts[spec.key] = part.where(None if masks is None else masks[spec.name])
        return EncoderTokens(self.model, parts, next(iter(batches.values())))

    def _wanted(self, targets: Sequence[str] | None, tokens: EncoderTokens) -> list[str]:
        """Return the targets to predict, in the model's order."""
        observed = {name for name, modality in self.targets.items() if token_key(modality) in tokens.parts}
        if targets is None:
            return [name for name in self.targets if name not in observed]
        for name in targets:
            if name not in self.targets:
                raise ConfigError(f"Unknown target '{name}'.{suggest(name, self.targets)} Known: {list(self.targets)}.")
            if name in observed:
                raise ConfigError(f"{name} is both input and target. Leave it out of one of them.")
        return [name for name in self.targets if name in targets]

    def _grid(self, inputs: Mapping[str, Tensor], image_size: Size | None) -> Size:
        """Return the numbers of rows and columns of the targets' tokens."""
        patch = self.model.patch_size
        sizes: dict[str, Size] = {}
        for spec in self.inputs:
            x = inputs.get(spec.name)
            if x is not None and x.ndim == 4:
                sizes[spec.name] = (x.shape[2] // patch, x.shape[3] // patch)
            elif x is not None and x.ndim == 3:
                sizes[spec.name] = (x.shape[1], x.shape[2])
        if image_size is not None or not sizes:
            height, width = check_size(image_size or self.model.img_size, patch)
            sizes["image_size"] = (height // patch, width // patch)
        if len(set(sizes.values())) > 1:
            shown = ", ".join(f"{name} {rows} x {columns}" for name, (rows, columns) in sizes.items())
            raise ConfigError(f"Inputs and output need one size, got {shown} tokens. Resample them to one grid.")
        return next(iter(sizes.values()))

    def announce(self, names: Sequence[str], tokens: EncoderTokens) -> None:
        """Add the start of the sequences to predict to the encoder's tokens, as in pre-training.

        Args:
            names: The targets to predict.
            tokens: Tokens of the encoder, changed in place.
        """
        for name in names:
            key = token_key(self.targets[name])
            if self.targets[name].max_length is not None and key in self.model.encoder_embeddings:
                start = torch.full((tokens.batch, 1), START, device=self.model.mask_token.device)
                tokens.put(key, self.model.embed_sequence(key, start))

    def _predict(
        self, key: str, size: Size, how: Decoding, tokens: EncoderTokens, noise: Noise, guided: Collection[str]
    ) -> Tensor:
        """Return the token ids of one target, which become inputs of the encoder if the target is remembered."""
        model, device = self.model, self.model.mask_token.device
        is_read = key in model.encoder_embeddings
        if how.guidance == 1:
            guided = ()

        if isinstance(model.decoder_embeddings[key], SequenceHead):

            def score_next(sequence: Tensor) -> Tensor:
                return _guided(lambda context: model.next_logits(key, sequence, context), tokens, guided, how)

            sequence = first_piece(continue_sequence(score_next, how, noise, device), self.sentinels)
            if is_read:
                tokens.put(key, model.embed_sequence(key, sequence))
            return sequence

        def draw(index: Tensor, numbers: Tensor | None, temperature: float) -> Any:
            contexts = [tokens.context()] + ([tokens.context(without=guided)] if guided else [])
            return self._draw_grid(key, index, size, contexts, numbers, temperature, how)

        def reveal(index: Tensor, ids: Tensor) -> None:
            if is_read:
                tokens.put(key, model.embed_some(key, ids, index, size))

        ids = FILLERS[how.scheme](draw, reveal, size[0] * size[1], how, noise, device).reshape(-1, *size)
        if is_read:
            tokens.put(key, model.embed_grid(key, ids))
        return ids

    def _draw_grid(
        self,
        key: str,
        index: Tensor,
        size: Size,
        contexts: Sequence[Context],
        numbers: Tensor | None,
        temperature: float,
        how: Decoding,
    ) -> Any:
        """Return the result of a `DrawFunction`; a second context is the one without the guided modalities."""
        scores = [self.model.grid_logits(key, index, size, context) for context in contexts]
        logits = guide(scores[1], scores[:1], [how.guidance]) if len(scores) > 1 else scores[0]
        draw = sample if how.scheme == "maskgit" else sample_ids
        return draw(logits, numbers, temperature=temperature, top_k=how.top_k, top_p=how.top_p)

    def compile_parts(self, mode: str = "graphs", *, backend: str | Callable[..., Any] = "inductor") -> TokenGenerator:
        """Compile the encoder, and the decoder together with the drawing of ids, and return the module.

        Args:
            mode: As in `compile_model`.
            backend: As in `compile_model`.

        Raises:
            ConfigError: The mode is unknown.
        """
        cases: dict[str, Callable[..., Any]] = {"encode": _lengths, "next_logits": _length, "_draw_grid": _numbers}
        for name, case in cases.items():
            compile_method(self if name == "_draw_grid" else self.model, name, mode, backend=backend, case=case)
        return self


def _lengths(parts: Sequence[Tokens], *_: Any) -> tuple[int, ...]:
    """Return the numbers of tokens of the encoder's inputs."""
    return tuple(part.content.shape[1] for part in parts)


def _length(key: str, ids: Tensor, *_: Any) -> tuple[str, int]:
    """Return the key of a sequence, and its length so far."""
    return key, ids.shape[1]


def _numbers(key: str, index: Tensor, size: Size, contexts: Sequence[Context], *_: Any) -> tuple[str, int, int]:
    """Return the key of the drawn modality, the number of its tokens, and the number of tokens in the context."""
    return key, index.shape[1], contexts[0].memory[0][0].shape[2]


def plan_targets(names: Sequence[str]) -> dict[str, Modality]:
    """Return the modalities to predict, by the user's names.

    Raises:
        ConfigError: The list is empty, or a modality is unknown, named twice, or has no tokens.
    """
    if not names or isinstance(names, str):
        raise ConfigError(f"The modalities to predict must be a list of names, e.g. [LULC], got {names!r}.")
    targets: dict[str, Modality] = {}
    for name in names:
        modality = resolve(str(name))
        token_key(modality)  # raises if there are none
        if modality in targets.values():
            raise ConfigError(f"{modality.name} is named twice in {list(names)}.")
        targets[str(name)] = modality
    return targets


def _masks(inputs: Mapping[str, Tensor], present: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    """Return a boolean [B] for each input, True where a sample has it; None if all samples have all inputs."""
    if not present:
        return None
    first = next(iter(inputs.values()))
    everyone = torch.ones(len(first), dtype=torch.bool, device=first.device)
    masks = torch.stack([present.get(name, everyone).to(everyone) for name in inputs])
    # A sample without inputs attends to all of them, because an empty softmax is NaN.
    masks = masks | ~masks.any(dim=0)
    return dict(zip(inputs, masks.unbind(0), strict=True))


def _guided(
    score: Callable[[Context], Tensor], tokens: EncoderTokens, guided: Collection[str], how: Decoding
) -> Tensor:
    """Return scores with classifier-free guidance by the guided modalities; plain scores if there are none."""
    scores = score(tokens.context())
    return guide(score(tokens.context(without=guided)), [scores], [how.guidance]) if guided else scores
