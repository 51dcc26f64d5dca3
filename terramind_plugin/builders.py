"""Builders of everything that is registered: backbones, generators and tokenizers with their weights."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from terramind_plugin.backbones.arguments import FORMER_ARGUMENTS, read_texts
from terramind_plugin.backbones.encoder import TerraMindBackbone
from terramind_plugin.backbones.tim import TerraMindTiM
from terramind_plugin.backbones.tokenizer_files import COORDS_IDS, load_tokenizers
from terramind_plugin.backbones.wrap import wrap_backbone
from terramind_plugin.errors import ConfigError, WeightsNotFoundError, suggest
from terramind_plugin.generation.decoding import SENTINELS
from terramind_plugin.generation.generator import TerraMindGenerator
from terramind_plugin.generation.schedules import plan_decoding
from terramind_plugin.generation.token_generator import TokenGenerator, plan_targets
from terramind_plugin.model.checkpoints import read_file
from terramind_plugin.model.download import fetch_file
from terramind_plugin.model.inputs import InputSpec, Modalities, check_size
from terramind_plugin.model.modalities import Modality, resolve, token_key
from terramind_plugin.model.planning import plan_inputs, say_sources
from terramind_plugin.model.variants import VARIANTS, Variant
from terramind_plugin.model.weights import load_encoder_decoder, load_weights
from terramind_plugin.tokenizers.coordinates import COORDS_VOCABULARIES, CoordsTokenizer, build_coords_vocabulary
from terramind_plugin.tokenizers.variants import TOKENIZERS, tokenizers_of
from terramind_plugin.tokenizers.weights import load_tokenizer

if TYPE_CHECKING:
    from terramind_plugin.tokenizers.image import ImageTokenizer

logger = logging.getLogger("terramind_plugin")
Backbone = TypeVar("Backbone", bound=TerraMindBackbone)
File = str | Path | None
Paths = Mapping[str, str | Path]
BandNames = Mapping[str, Sequence[object]] | None


@read_texts("ckpt_path", "merge_method", "padding", "tokenizer_file")
def build_backbone(
    variant: str,
    modalities: Modalities = None,
    *,
    pretrained: bool = False,
    ckpt_path: str | Path | None = None,
    tokenizer_ckpt_paths: Paths | None = None,
    tokenizer_file: str | Path | None = None,
    **arguments: Any,
) -> TerraMindBackbone:
    """Return a backbone with weights.

    Args:
        variant: Name of a published model, e.g. 'terramind_v1_base'.
        modalities: See `TerraMindBackbone`.
        pretrained: Load the published weights.
        ckpt_path: Load a local .pt, .safetensors or Lightning .ckpt file instead.
        tokenizer_ckpt_paths: New. Files with weights of the inputs' tokenizers, by modality. Other tokenizers come from
            `ckpt_path` if it contains them, otherwise from the published weights with `pretrained`.
        tokenizer_file: New. Vocabulary of the coordinates (default: that of `ckpt_path`, or the published one).
        arguments: Arguments of `wrap_backbone` and `TerraMindBackbone`. `patch_size` must be that of the variant.
            `padding` is for TerraTorch's EncoderDecoderFactory and is ignored here.

    Raises:
        ConfigError: An argument is unknown or not possible.
        WeightsError: The weights are missing or do not fit.
    """
    coords = functools.partial(_make_coords, variant, tokenizer_file, pretrained, ckpt_path)
    model, wrapping = _make_backbone(TerraMindBackbone, variant, modalities, arguments, coords)
    loaded = _load(model, pretrained, ckpt_path)
    load_tokenizers(model.tokenizer, pretrained, ckpt_path, tokenizer_ckpt_paths, "modalities")
    return wrap_backbone(model, loaded=loaded, **wrapping)


@read_texts("ckpt_path", "merge_method", "padding", "tokenizer_file")
def build_tim(
    variant: str,
    modalities: Modalities = None,
    *,
    pretrained: bool = False,
    ckpt_path: str | Path | None = None,
    tim_tokenizer_ckpt_paths: Paths | None = None,
    tokenizer_ckpt_paths: Paths | None = None,
    tokenizer_file: str | Path | None = None,
    **arguments: Any,
) -> TerraMindTiM:
    """Return a Thinking-in-Modalities backbone with weights, including those of the generator.

    Args:
        variant: Name of the published model without '_tim', e.g. 'terramind_v1_base'.
        modalities: See `TerraMindTiM`.
        pretrained: As in `build_backbone`.
        ckpt_path: Load encoder and generator from this file: a published one, or one saved from a TiM model.
        tim_tokenizer_ckpt_paths: Files with weights of the tokenizers of `tim_observed`, by modality. Other tokenizers
            come from `ckpt_path` if it contains them, otherwise from the published weights with `pretrained`.
        tokenizer_ckpt_paths: As in `build_backbone`.
        tokenizer_file: As in `build_backbone`.
        arguments: As in `build_backbone`, and those of `TerraMindTiM`.

    Raises:
        ConfigError: An argument is unknown or not possible.
        WeightsError: The weights are missing or do not fit.
    """
    coords = functools.partial(_make_coords, variant, tokenizer_file, pretrained, ckpt_path)
    model, wrapping = _make_backbone(TerraMindTiM, variant, modalities, arguments, coords)
    loaded = _load(model, pretrained, ckpt_path)
    if not loaded:
        logger.warning("%s_tim has random weights: generated tokens mean nothing until weights are loaded.", variant)
    elif model.sampler is not None:
        logger.info("Generator. %s", load_encoder_decoder(model.sampler.model, ckpt_path))
    load_tokenizers(model.given_tokens, pretrained, ckpt_path, tim_tokenizer_ckpt_paths, "tim_observed", "tim_")
    load_tokenizers(model.tokenizer, pretrained, ckpt_path, tokenizer_ckpt_paths, "modalities")
    return wrap_backbone(model, loaded=loaded, **wrapping)


def build_by_name(name: str, **arguments: Any) -> TerraMindBackbone:
    """Return the backbone with a registered name, e.g. 'terramind_v1_base_tim'.

    Raises:
        ConfigError: There is no such backbone, or an argument is not possible.
        WeightsError: The weights are missing or do not fit.
    """
    variant = name.removesuffix("_tim")
    if variant not in VARIANTS:
        names = [*VARIANTS, *(f"{known}_tim" for known in VARIANTS)]
        raise ConfigError(f"Unknown backbone '{name}'.{suggest(name, names)} Known: {', '.join(names)}.")
    return (build_backbone if name == variant else build_tim)(variant, **arguments)


def backbone_arguments(kind: type[TerraMindBackbone]) -> list[str]:
    """Return the sorted names of the arguments of a kind of backbone, without 'backbone_'."""
    build = build_tim if issubclass(kind, TerraMindTiM) else build_backbone
    takers: list[Callable[..., Any]] = [build, wrap_backbone]
    takers += [parent for parent in kind.__mro__ if issubclass(parent, TerraMindBackbone)]
    names = {"patch_size", "padding", *(name for taker in takers for name in inspect.signature(taker).parameters)}
    return sorted(names - {"variant", "generated", "coords", "kwargs", "arguments", "model", "loaded"})


def _make_backbone(
    kind: type[Backbone],
    variant: str,
    modalities: Modalities,
    arguments: dict[str, Any],
    coords: Callable[[], CoordsTokenizer],
) -> tuple[Backbone, dict[str, Any]]:
    """Return a backbone with its initial weights, and the arguments for `wrap_backbone`."""
    known = backbone_arguments(kind)
    for name in arguments:
        if name in FORMER_ARGUMENTS:
            raise ConfigError(f"The argument '{name}' is now called '{FORMER_ARGUMENTS[name]}'.")
        if name not in known:
            raise _unknown_argument(variant, name, known)
    numbers = VARIANTS[variant]
    _check_patch_size(variant, numbers, arguments.pop("patch_size", None))
    arguments.pop("padding", None)
    wrapping = inspect.signature(wrap_backbone).parameters
    architecture = {"coords": coords, **{name: arguments[name] for name in arguments if name not in wrapping}}
    model = kind(numbers, modalities, **architecture)
    for line in say_sources(model.observed):
        logger.info("%s", line)
    return model, {name: value for name, value in arguments.items() if name in wrapping}


def _unknown_argument(model: str, name: str, known: Collection[str]) -> ConfigError:
    return ConfigError(f"{model} has no argument '{name}'.{suggest(name, known)} It accepts: {', '.join(known)}.")


def _check_patch_size(name: str, variant: Variant, patch_size: int | None) -> None:
    if patch_size not in (None, variant.patch_size):
        raise ConfigError(f"{name} has patches of {variant.patch_size} pixels, got patch_size {patch_size}.")


def _load(model: TerraMindBackbone, pretrained: bool, ckpt_path: File) -> bool:
    """Load weights into the encoder and return whether any were asked for."""
    report = load_weights(model, pretrained=pretrained, ckpt_path=ckpt_path)
    if report is not None:
        logger.info("%s", report)
    return report is not None


def _make_coords(variant: str, file: File, pretrained: bool, ckpt_path: File) -> CoordsTokenizer:
    """Return the tokenizer of coordinates for a backbone, whose checkpoints hold its vocabulary."""
    needed = pretrained if ckpt_path is None else not any(COORDS_IDS in name for name in read_file(ckpt_path)[1])
    return build_coords_tokenizer(file, VARIANTS[variant].family, needed=needed)


@read_texts("ckpt_path", "tokenizer_file")
def build_generator(
    variant: str,
    modalities: Modalities = None,
    output_modalities: Sequence[str] | None = None,
    *,
    pretrained: bool = False,
    ckpt_path: str | Path | None = None,
    tokenizer_ckpt_paths: Paths | None = None,
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
    bands: BandNames = None,
    **unknown: Any,
) -> TerraMindGenerator:
    """Return a generator with weights, in evaluation mode.

    Args:
        variant: Name of a published model, e.g. 'terramind_v1_base'.
        modalities: Names of the inputs; {name: channels} adds one without pre-trained weights. A call may omit some.
        output_modalities: Outputs, in the order of generation; each output conditions the later ones.
        pretrained: Load the published weights, including those of the tokenizers.
        ckpt_path: Load the encoder-decoder, and the tokenizers that it contains, from this file instead: a published
            file, or one saved from a generator or a TiM model by this package or by TerraTorch.
        tokenizer_ckpt_paths: New. Files with tokenizer weights, by name of the modality.
        tokenizer_file: New. Vocabulary of the coordinates (default: the published one).
        standardize: Whether input and output images are in the units of their modality instead of standardised.
        offset: Number added to the pre-training mean of inputs and outputs, by modality.
        timesteps: Number of denoising steps of an image.
        decoding_steps: Number of steps that draw tokens. This and the next three take a number, or one for each output.
        temps: Sampling temperature.
        top_p: Draw from the likeliest tokens that together have this probability; 0 for all.
        top_k: Draw from this many likeliest tokens; 0 for all.
        img_size: Height and width of position embeddings, and of outputs without input images (default: the variant's).
        patch_size: Must be that of the variant, 16 for the published models.
        bands: New. Bands of an input in the order of its channels, for inputs that lack some bands.
        unknown: Unknown arguments, which raise an error.

    Raises:
        ConfigError: An argument is unknown or not possible.
        WeightsError: The weights are missing or do not fit.
    """
    _check_arguments(variant, pretrained, patch_size, unknown)
    inputs, targets = _plan_images(variant, modalities, bands), plan_targets(output_modalities or ())
    decoding = plan_decoding(targets, steps=decoding_steps, temperature=temps, top_p=top_p, top_k=top_k, max_tokens=3)
    tokenizers, coords = _build_tokenizers(
        inputs, targets, VARIANTS[variant].family, pretrained, ckpt_path, tokenizer_ckpt_paths or {}, tokenizer_file
    )
    sampler = _build_sampler(VARIANTS[variant], inputs, targets, img_size, coords)
    if pretrained or ckpt_path is not None:
        logger.info("%s", load_encoder_decoder(sampler.model, ckpt_path))
    return TerraMindGenerator(
        sampler, tokenizers, coords, standardize=standardize, offset=offset, timesteps=timesteps, decoding=decoding
    )


def _plan_images(variant: str, modalities: Modalities, bands: BandNames) -> tuple[InputSpec, ...]:
    inputs = plan_inputs(modalities, bands, tokens=True)
    if len(inputs) > len({spec.key for spec in inputs}):
        raise ConfigError(f"{variant}_generate needs one image per modality, got {[spec.name for spec in inputs]}.")
    return inputs


def _build_sampler(
    variant: Variant,
    inputs: Sequence[InputSpec],
    targets: Iterable[str],
    img_size: int | Sequence[int] | None,
    coords: CoordsTokenizer | None,
) -> TokenGenerator:
    size = check_size(variant.img_size if img_size is None else img_size, variant.patch_size)
    sentinels = SENTINELS if coords is None else coords.sentinels
    return TokenGenerator(variant, inputs, list(targets), img_size=size, sentinels=sentinels)


def _check_arguments(variant: str, pretrained: object, patch_size: int | None, unknown: Iterable[str]) -> None:
    name = f"{variant}_generate"
    known = sorted(set(inspect.signature(build_generator).parameters) - {"variant", "unknown"})
    for first in unknown:
        raise _unknown_argument(name, first, known)
    if not isinstance(pretrained, bool):
        raise ConfigError(f"pretrained must be true or false, got {pretrained!r}. A file is given as ckpt_path.")
    _check_patch_size(name, VARIANTS[variant], patch_size)


def _build_tokenizers(
    inputs: Sequence[InputSpec],
    targets: Mapping[str, Modality],
    family: str,
    pretrained: bool,
    ckpt_path: str | Path | None,
    paths: Paths,
    vocabulary: str | Path | None,
) -> tuple[dict[str, ImageTokenizer], CoordsTokenizer | None]:
    """Return a generator's image tokenizers by checkpoint key, and its tokenizer of coordinates if it needs one.

    Each image tokenizer gets the parts that are needed: an encoder for inputs, a decoder for targets.
    """
    read = [spec.pretrained for spec in inputs if spec.pretrained is not None and spec.is_tokens]
    written = list(targets.values())
    files = {resolve(name).name: path for name, path in paths.items()}
    stored = [] if ckpt_path is None else [name for name in read_file(ckpt_path)[1] if "tokenizer." in name]
    tokenizers: dict[str, ImageTokenizer] = {}
    coords = None
    for modality in dict.fromkeys([*read, *written]):
        if modality.kind == "sequence":
            coords = build_coords_tokenizer(vocabulary, family, needed=pretrained or ckpt_path is not None)
            continue
        key, name = token_key(modality), modality.name
        path = files.pop(name, None)
        if path is None and any(f"tokenizer.{key}." in stored_name for stored_name in stored):
            path = ckpt_path
        if path is None and not pretrained and ckpt_path is not None:
            hint = f"Set pretrained: true, or tokenizer_ckpt_paths: {{{name}: /path/to/file}}."
            logger.warning("%s: its tokenizer has random weights, %s has none. %s", name, ckpt_path, hint)
        tokenizers[key] = build_image_tokenizer(
            tokenizers_of(family)[name].name,
            pretrained=pretrained,
            ckpt_path=path,
            encoder=modality in read,
            decoder=modality in written,
        )
    if files:
        raise ConfigError(f"tokenizer_ckpt_paths names {sorted(files)}, which this model has no tokenizer of.")
    return tokenizers, coords


@read_texts("ckpt_path")
def build_image_tokenizer(
    name: str,
    *,
    pretrained: bool = False,
    ckpt_path: str | Path | None = None,
    encoder: bool = True,
    decoder: bool = True,
) -> ImageTokenizer:
    """Return an image tokenizer with weights, in evaluation mode.

    Args:
        name: Name of a published tokenizer, e.g. 'terramind_v1_tokenizer_s2l2a'.
        pretrained: Load the published weights.
        ckpt_path: Load a local .pt, .safetensors or Lightning .ckpt file; it takes precedence over `pretrained`.
        encoder: Whether to build the encoder, for `encode` and `tokenize`.
        decoder: Whether to build the decoder, for `decode_tokens`.

    Raises:
        ConfigError: The name is unknown, or an argument is not possible.
        WeightsError: The weights are missing or do not fit.
    """
    from terramind_plugin.tokenizers.image import ImageTokenizer

    if name not in TOKENIZERS:
        raise ConfigError(f"Unknown tokenizer '{name}'.{suggest(name, TOKENIZERS)} Known: {', '.join(TOKENIZERS)}.")
    for argument, value in (("pretrained", pretrained), ("encoder", encoder), ("decoder", decoder)):
        if not isinstance(value, bool):
            raise ConfigError(f"{argument} of {name} must be true or false, got {value!r}.")
    variant = TOKENIZERS[name]
    if ckpt_path is None and pretrained:
        otherwise = f"pass ckpt_path: /path/to/{variant.hub_file}\nor use random weights by pretrained: false."
        ckpt_path = fetch_file(variant.name, variant.hub_repo, variant.hub_file, otherwise)
    model = ImageTokenizer(variant, encoder=encoder, decoder=decoder)
    if ckpt_path is not None:
        logger.info("%s", load_tokenizer(model, ckpt_path))
    return model


def build_coords_tokenizer(
    tokenizer_file: str | Path | None = None, family: str = "terramind_v1", *, needed: bool = True
) -> CoordsTokenizer:
    """Return the tokenizer of coordinates.

    Args:
        tokenizer_file: A local vocabulary file (default: that of the family).
        family: Family of the models: 'terramind_v1' or 'terramind_sim_nano'.
        needed: Whether token ids must be those of the published weights. If not, and the published vocabulary is not
            available, a vocabulary of the same resolution is built.

    Raises:
        WeightsError: The vocabulary is missing or not valid.
    """
    if tokenizer_file is not None:
        return CoordsTokenizer(tokenizer_file)
    vocabulary = COORDS_VOCABULARIES[family]
    try:
        otherwise = f"pass tokenizer_file: /path/to/{vocabulary.hub_file}"
        return CoordsTokenizer(fetch_file(vocabulary.name, vocabulary.hub_repo, vocabulary.hub_file, otherwise))
    except WeightsNotFoundError:
        if needed:
            raise
        logger.warning(
            "The published vocabulary of coordinates is not on this machine. New token ids are used, which only suit "
            "random weights, and checkpoints of backbones, which contain their own. For other weights set "
            "tokenizer_file."
        )
        return CoordsTokenizer(build_coords_vocabulary())
