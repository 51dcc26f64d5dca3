"""Builders of the generators: encoder-decoder, tokenizers and weights put together."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from terramind_plugin.builders.settings import read_texts
from terramind_plugin.builders.tokenizers import build_coords_tokenizer, build_image_tokenizer
from terramind_plugin.errors import ConfigError, WeightsError, suggest
from terramind_plugin.generation.decoding import SENTINELS
from terramind_plugin.generation.generator import TerraMindGenerator
from terramind_plugin.generation.schedules import Decoding
from terramind_plugin.generation.token_generator import TokenGenerator, check_size, plan_targets
from terramind_plugin.model.encoder_decoder import EncoderDecoder, token_key
from terramind_plugin.model.inputs import InputSpec, plan_inputs
from terramind_plugin.model.modalities import Modality, resolve
from terramind_plugin.model.variants import VARIANTS, Variant
from terramind_plugin.model.weights import Checkpoint, LoadReport, fetch_published, load_backbone, read_tensors
from terramind_plugin.tokenizers.image import ImageTokenizer
from terramind_plugin.tokenizers.variants import tokenizers_of

logger = logging.getLogger("terramind_plugin")

DECODER_ANCHOR = "decoder_embeddings."
"""What the names of an encoder-decoder's weights contain, whatever model it is wrapped in."""

USER_NAMES = {"steps": "decoding_steps", "temperature": "temps"}
"""What arguments of `Decoding` are called in configurations, where the names differ."""


@read_texts("ckpt_path", "tokenizer_file")
def build_generator(
    variant: str,
    modalities: Sequence[str | Mapping[str, int]] | Mapping[str, int] | None = None,
    output_modalities: Sequence[str] | None = None,
    *,
    pretrained: bool = False,
    ckpt_path: str | Path | None = None,
    tokenizer_ckpt_paths: Mapping[str, str | Path] | None = None,
    tokenizer_file: str | Path | None = None,
    standardize: bool = False,
    offset: Mapping[str, float] | None = None,
    timesteps: int = 50,
    decoding_steps: int | Sequence[int] = 1,
    temps: float | Sequence[float] = 1.0,
    top_p: float | Sequence[float] = 0.8,
    top_k: int | float | Sequence[float] = 0,
    img_size: int | Sequence[int] | None = None,
    patch_size: int | None = None,
    **unknown: Any,
) -> TerraMindGenerator:
    """Return a generator with the weights asked for, in evaluation mode.

    Args:
        variant: Name of a published model, e.g. 'terramind_v1_base'.
        modalities: Inputs, by name; {name: channels} adds one without pre-trained weights. A call may leave some out.
        output_modalities: Outputs, in the order of generation; each conditions those after it.
        pretrained: Load the published weights, tokenizers included.
        ckpt_path: Take the encoder-decoder from this file instead, and the tokenizers, too, if it holds them. It is a
            published file, or one that a generator or a TiM model was saved to, here or by TerraTorch.
        tokenizer_ckpt_paths: New. Files with tokenizer weights, by name of the modality.
        tokenizer_file: New. Vocabulary of the coordinates; by default the published one.
        standardize: Whether images come and go in the units of their modality, not standardised.
        offset: Added to the pre-training mean of a modality, by its name, as input and as output.
        timesteps: Denoising steps of an image.
        decoding_steps: In how many steps tokens are drawn; one number, or one for each output.
        temps: Sampling temperature, likewise.
        top_p: Draw from the likeliest tokens that together have this probability; 0 for all. Likewise.
        top_k: Draw from this many likeliest tokens, 0 for all. Likewise.
        img_size: Height and width in pixels that position embeddings are made for, and of outputs where no input is an
            image; by default that of the variant, 224 for the published ones.
        patch_size: That of the variant, 16 for the published ones; another number is an error.
        unknown: Not taken; named here to say so.

    Raises:
        ConfigError: An argument is unknown or not possible.
        WeightsError: The weights are not there or do not fit.
    """
    numbers = VARIANTS[variant]
    _check_arguments(numbers, pretrained, patch_size, unknown)
    inputs = plan_generator_inputs(modalities)
    targets = plan_targets(output_modalities or ())
    decoding = plan_decoding(
        list(targets), steps=decoding_steps, temperature=temps, top_p=top_p, top_k=top_k, max_tokens=3
    )
    uses_coords = any(modality.kind == "sequence" for modality in _modalities(inputs, targets))
    loads = pretrained or ckpt_path is not None
    coords = build_coords_tokenizer(tokenizer_file, numbers.family, needed=loads) if uses_coords else None
    sampler = TokenGenerator(
        numbers,
        inputs,
        list(targets),
        img_size=check_size(numbers.img_size if img_size is None else img_size, numbers.patch_size),
        sentinels=SENTINELS if coords is None else coords.sentinels,
    )
    model = TerraMindGenerator(
        sampler,
        _build_tokenizers(inputs, targets, pretrained, ckpt_path, tokenizer_ckpt_paths or {}, numbers.family),
        coords,
        standardize=standardize,
        offset=offset,
        timesteps=timesteps,
        decoding=decoding,
    )
    if loads:
        logger.info("%s", load_encoder_decoder(sampler.model, ckpt_path))
    return model


def _check_arguments(variant: Variant, pretrained: object, patch_size: int | None, unknown: Mapping[str, Any]) -> None:
    """Raise a ConfigError if an argument of `build_generator` is not possible."""
    name = f"{variant.name}_generate"
    if unknown:
        known = [
            known for known in inspect.signature(build_generator).parameters if known not in ("variant", "unknown")
        ]
        first = next(iter(unknown))
        raise ConfigError(
            f"{name} has no argument '{first}'.{suggest(first, known)} It takes: {', '.join(sorted(known))}."
        )
    if not isinstance(pretrained, bool):
        raise ConfigError(f"pretrained must be true or false, got {pretrained!r}. A file is given as ckpt_path.")
    if patch_size not in (None, variant.patch_size):
        raise ConfigError(f"{name} has patches of {variant.patch_size} pixels, got patch_size {patch_size}.")


def load_encoder_decoder(model: EncoderDecoder, path: str | Path | None = None) -> LoadReport:
    """Copy weights into an encoder-decoder and return what was loaded.

    Args:
        model: The encoder-decoder.
        path: A published file, or one that a model with an encoder-decoder inside was saved to; None for the published
            weights of the model's variant.

    Raises:
        WeightsNotFoundError: There is no such file.
        WeightsError: The file holds no encoder-decoder, or a weight of the model is missing or has another shape.
    """
    path = fetch_published(model.variant) if path is None else path
    _, tensors = read_tensors(path)
    prefixes = sorted({name.split(DECODER_ANCHOR)[0] for name in tensors if DECODER_ANCHOR in name}, key=len)
    if not prefixes:
        raise WeightsError(
            f"{path} holds no TerraMind decoder: none of its {len(tensors)} names contains '{DECODER_ANCHOR}'. "
            f"A fine-tuned backbone cannot generate; use the published {model.variant.hub_file}."
        )
    own = {name.removeprefix(prefixes[0]): value for name, value in tensors.items() if name.startswith(prefixes[0])}
    return load_backbone(model, Checkpoint(tensors=own, source=str(path)))


def plan_generator_inputs(
    modalities: Sequence[str | Mapping[str, int]] | Mapping[str, int] | None,
) -> tuple[InputSpec, ...]:
    """Return what a generator takes, in the user's order.

    Args:
        modalities: As in `build_generator`. Modalities without pixels in the model (LULC, NDVI, coords), and those
            named by the checkpoint key of their tokens, enter as token ids.

    Raises:
        ConfigError: A modality is unknown, named twice, or not possible as input.
    """
    entries: list[Any] = [modalities] if isinstance(modalities, Mapping) else modalities  # type: ignore[assignment]
    if not entries or isinstance(entries, str):
        plan_inputs(modalities)  # says what is wrong
    specs: list[InputSpec] = []
    for entry in entries:
        modality = None if isinstance(entry, Mapping) else resolve(str(entry))
        if modality is None or (modality.patch_key is not None and entry != modality.token_key):
            specs += plan_inputs([entry])
            continue
        key, _ = token_key(modality)
        specs.append(InputSpec(str(entry), key, len(modality.bands), modality, None))
    keys = [spec.key for spec in specs]
    for spec in specs:
        if keys.count(spec.key) > 1:
            raise ConfigError(f"Modality '{spec.name}' is named twice in modalities {[one.name for one in specs]}.")
    return tuple(specs)


def plan_decoding(targets: Sequence[str], **settings: Any) -> dict[str, Decoding]:
    """Return how to draw each target.

    Args:
        targets: Their names.
        settings: Arguments of `Decoding`, each one value for all targets or a list with one for each.

    Raises:
        ConfigError: A list has another length, or a value is not possible.
    """
    for name, value in settings.items():
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) != len(targets):
            shown = USER_NAMES.get(name, name)
            raise ConfigError(f"{shown} has {len(value)} values for the {len(targets)} modalities {list(targets)}.")
    return {
        target: Decoding(
            **{
                name: value[index] if isinstance(value, Sequence) and not isinstance(value, str) else value
                for name, value in settings.items()
            }
        )
        for index, target in enumerate(targets)
    }


def _modalities(inputs: Sequence[InputSpec], targets: Mapping[str, Modality]) -> list[Modality]:
    """Return the modalities that need a tokenizer."""
    return [spec.pretrained for spec in inputs if spec.pretrained is not None and spec.is_tokens] + [*targets.values()]


def _build_tokenizers(
    inputs: Sequence[InputSpec],
    targets: Mapping[str, Modality],
    pretrained: bool,
    ckpt_path: str | Path | None,
    paths: Mapping[str, str | Path],
    family: str,
) -> dict[str, ImageTokenizer]:
    """Return the image tokenizers by checkpoint key, each with the parts that are needed."""
    files = {resolve(name).name: path for name, path in paths.items()}
    encoded = {spec.key for spec in inputs if spec.is_tokens}
    decoded = {token_key(modality)[0] for modality in targets.values()}
    names = {name: variant.name for name, variant in tokenizers_of(family).items()}
    stored = [] if ckpt_path is None else [name for name in read_tensors(ckpt_path)[1] if "tokenizer." in name]
    tokenizers: dict[str, ImageTokenizer] = {}
    for modality in dict.fromkeys(_modalities(inputs, targets)):
        if modality.kind == "sequence":
            continue
        key, _ = token_key(modality)
        path = files.pop(modality.name, None)
        if path is None and any(f"tokenizer.{key}." in name for name in stored):
            path = ckpt_path
        if path is None and not pretrained and ckpt_path is not None:
            logger.warning(
                "%s: its tokenizer has random weights, %s has none. Set pretrained: true, or "
                "tokenizer_ckpt_paths: {%s: /path/to/file}.",
                modality.name,
                ckpt_path,
                modality.name,
            )
        tokenizers[key] = build_image_tokenizer(
            names[modality.name], pretrained=pretrained, ckpt_path=path, encoder=key in encoded, decoder=key in decoded
        )
    if files:
        raise ConfigError(f"tokenizer_ckpt_paths names {sorted(files)}, which this model has no tokenizer of.")
    return tokenizers
