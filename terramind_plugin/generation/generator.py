"""The any-to-any model: it generates images and coordinates from images and coordinates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from terramind_plugin.errors import ConfigError
from terramind_plugin.generation.locations import LikelyLocations, LocationMap, PairScores
from terramind_plugin.generation.schedules import Decoding
from terramind_plugin.generation.token_generator import TokenGenerator
from terramind_plugin.model.inputs import GENERATOR, InputSpec, check_shapes, check_size, collect_inputs
from terramind_plugin.model.modalities import Modality, token_key
from terramind_plugin.model.standardisation import Standardisation
from terramind_plugin.tokenizers.coordinates import CoordsTokenizer
from terramind_plugin.tokenizers.image import ImageTokenizer, drop_unbuilt
from terramind_plugin.tokenizers.noise import Noise


class TerraMindGenerator(nn.Module):
    """Model that generates images and coordinates of some modalities from those of others.

    Source: TerraMind (arXiv:2504.11171) section 3; arguments are those of TerraTorch's implementation.

    Args:
        sampler: Generator of token ids; its targets are the outputs.
        tokenizers: Image tokenizers by checkpoint key. An input that enters as token ids needs the encoder, an image
            output needs the decoder.
        coords: Tokenizer of coordinates, needed if they are an input or output.
        standardize: Whether inputs and outputs are in the units of their modality; otherwise they are standardised.
        offset: Offsets by modality, added to the pre-training means of inputs and outputs.
        timesteps: Number of denoising steps of an image.
        decoding: Settings of decoding by output.

    Raises:
        ConfigError: A tokenizer is missing, or `offset` names a modality that is neither input nor output.
    """

    def __init__(
        self,
        sampler: TokenGenerator,
        tokenizers: Mapping[str, ImageTokenizer],
        coords: CoordsTokenizer | None = None,
        *,
        standardize: bool = False,
        offset: Mapping[str, float] | None = None,
        timesteps: int = 50,
        decoding: Mapping[str, Decoding] | None = None,
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.tokenizer = nn.ModuleDict(tokenizers)
        self.coords = coords
        self.standardize = standardize
        self.timesteps = timesteps
        self.decoding = dict(decoding or {})
        self.modalities = [spec.name for spec in sampler.inputs]
        self.output_modalities = list(sampler.targets)
        self._check_tokenizers()
        self.standardisation = _standardisation(sampler.inputs, sampler.targets, offset or {})
        self.register_load_state_dict_pre_hook(_drop_unbuilt_parts)  # type: ignore[no-untyped-call]
        self.eval()

    def _check_tokenizers(self) -> None:
        """Raise a ConfigError if `forward` would lack a tokenizer."""
        needed = [(spec.name, spec.pretrained, "encoder") for spec in self.sampler.inputs if spec.is_tokens]
        needed += [(name, modality, "decoder") for name, modality in self.sampler.targets.items()]
        for name, modality, part in needed:
            if modality is None:
                continue
            key = token_key(modality)
            if modality.kind == "sequence":
                if self.coords is None:
                    raise ConfigError(f"{name} needs a tokenizer of coordinates.")
            elif key not in self.tokenizer or getattr(self.tokenizer[key], part) is None:
                raise ConfigError(f"{name} needs the {part} of its tokenizer, '{key}'.")

    def for_inference(self, mode: str = "off") -> TerraMindGenerator:
        """Return the generator, optimised so that it is faster and can no longer be trained.

        Args:
            mode: Mode of `compile_model` for encoder, decoder and the parts of the tokenizers.

        Raises:
            ConfigError: The mode is unknown.
        """
        self.eval().requires_grad_(False)
        self.sampler.compile_parts(mode)
        for tokenizer in self.tokenizer.values():
            assert isinstance(tokenizer, ImageTokenizer)
            tokenizer.for_inference(mode)
        return self

    @torch.no_grad()
    def forward(
        self,
        x: Tensor | Mapping[str, Tensor] | None = None,
        standardize: bool | None = None,
        timesteps: int | None = None,
        verbose: bool = False,
        image_size: int | Sequence[int] | None = None,
        seed: int | Sequence[int] | None = 0,
        noise: Noise | None = None,
        **named: Tensor,
    ) -> dict[str, Tensor]:
        """Return images [B, bands, H, W] by modality, class scores [B, classes, H, W], and positions [B, 2].

        Positions are (longitude, latitude) in degrees, NaN if the drawn text is not a position; `locate` returns the
        most likely positions.

        Args:
            x: Inputs by modality: images [B, bands, H, W], class ids [B, H, W], or positions [B, 2] as (longitude,
                latitude) in degrees; or the tensor of the first modality. It is not changed.
            standardize: Overrides the model's setting.
            timesteps: Overrides the model's setting.
            verbose: Show a progress bar for each image.
            image_size: Height and width in pixels of the outputs, if no input is an image (default: the model's size).
            seed: One seed for every sample, so that its result does not depend on its batch, or one for each sample;
                None for new seeds in each call.
            noise: Random numbers, used instead of `seed`.
            named: Inputs by modality, as keyword arguments.

        Raises:
            ConfigError: An input is unknown or also an output, or its shape does not fit.
            DataError: A position or class id is not possible.
        """
        standardize = self.standardize if standardize is None else standardize
        inputs = self._tokenize(x, named, standardize)
        noise = Noise.from_seed(seed, len(next(iter(inputs.values())))) if noise is None else noise
        size = None if image_size is None else check_size(image_size, self.sampler.model.patch_size)
        tokens = self.sampler(
            inputs, targets=self.output_modalities, image_size=size, noise=noise, decoding=self.decoding
        )
        timesteps = self.timesteps if timesteps is None else timesteps
        out: dict[str, Tensor] = {}
        for name, ids in tokens.items():
            modality = self.sampler.targets[name]
            if modality.kind == "sequence" and self.coords is not None:
                out[name] = self.coords.decode(ids)
                continue
            tokenizer: Any = self.tokenizer[token_key(modality)]
            # A decoder of classes needs no noise.
            rows, columns = (side * tokenizer.patch_size for side in ids.shape[1:])
            start = None if modality.kind == "classes" else noise.normal(tokenizer.channels, rows, columns)
            fits = modality.vocab_size == tokenizer.quantize.codebook_size  # all ids that can be drawn are known
            image = tokenizer.decode_tokens(ids, timesteps, noise=start, verbose=verbose, checked=fits)
            scale: Any = self.standardisation[name] if standardize and name in self.standardisation else None
            out[name] = image if scale is None else scale.undo(image)
        return out

    @torch.no_grad()
    def locate(
        self,
        x: Tensor | Mapping[str, Tensor] | None = None,
        count: int = 5,
        *,
        standardize: bool | None = None,
        **named: Tensor,
    ) -> LikelyLocations:
        """Return the most likely positions of the images, with probabilities.

        Args:
            x: As in `forward`.
            count: Number of positions for each sample.
            standardize: As in `forward`.
            named: As in `forward`.

        Raises:
            ConfigError: The model does not generate coordinates, or as in `forward`.
        """
        coords, scores = self._position_scores(x, standardize, named)
        pairs, probabilities = scores.likeliest(count)
        latitudes, longitudes = coords.latitudes, coords.longitudes
        degrees = [[(longitudes[lon], latitudes[lat]) for lat, lon in row] for row in pairs.tolist()]
        return LikelyLocations(torch.tensor(degrees, dtype=torch.float64), probabilities, 1 / coords.steps_per_degree)

    @torch.no_grad()
    def map_locations(
        self,
        x: Tensor | Mapping[str, Tensor] | None = None,
        mass: float = 1.0,
        *,
        standardize: bool | None = None,
        on_latitude: Callable[[int, int], object] = lambda done, total: None,
        **named: Tensor,
    ) -> LocationMap:
        """Return the probability of each position of the vocabulary's grid.

        Args:
            x: As in `forward`.
            mass: If below 1, latitudes with a joint probability of less than 1 - mass are left out. The model runs once
                for each other latitude; the published vocabulary has 721.
            standardize: As in `forward`.
            on_latitude: Called after each latitude with the numbers of finished latitudes and of all latitudes.
            named: As in `forward`.

        Raises:
            ConfigError: As in `locate`.
        """
        coords, scores = self._position_scores(x, standardize, named)
        pairs = scores.probabilities(mass, on_latitude).cpu()
        (north, rows), (east, columns) = (
            torch.unique(torch.tensor(list(axis.values()), dtype=torch.float64), return_inverse=True)
            for axis in (coords.latitudes, coords.longitudes)
        )
        # A vocabulary may hold two words for one position, such as 0.00 and -0.00.
        grid = pairs.new_zeros(len(pairs), len(north), len(columns)).index_add_(1, rows, pairs)
        grid = pairs.new_zeros(len(pairs), len(north), len(east)).index_add_(2, columns, grid)
        return LocationMap(east, north.flip(0), grid.flip(1))

    def _position_scores(
        self, x: Tensor | Mapping[str, Tensor] | None, standardize: bool | None, named: Mapping[str, Tensor]
    ) -> tuple[CoordsTokenizer, PairScores]:
        """Return the tokenizer of coordinates, and scores of its latitudes and longitudes."""
        coords = self.coords
        names = [name for name, modality in self.sampler.targets.items() if modality.kind == "sequence"]
        if not names or coords is None:
            raise ConfigError(f"locate needs coords among output_modalities, which are {self.output_modalities}.")
        inputs = self._tokenize(x, named, self.standardize if standardize is None else standardize)
        return coords, PairScores(self.sampler, names[0], inputs, list(coords.latitudes), list(coords.longitudes))

    def _tokenize(
        self, x: Tensor | Mapping[str, Tensor] | None, named: Mapping[str, Tensor], standardize: bool
    ) -> dict[str, Tensor]:
        """Return standardised images and token ids by the model's names."""
        specs: Sequence[InputSpec] = self.sampler.inputs
        raw = collect_inputs(specs, x, named, GENERATOR)
        images = [spec for spec in specs if not spec.is_tokens]
        patch = self.sampler.model.patch_size
        pixels = {spec.name: raw[spec.name] for spec in images if spec.name in raw}
        if pixels:
            check_shapes(images, pixels, patch, same_size=True, advice=GENERATOR)
        device = self.sampler.model.mask_token.device
        inputs: dict[str, Tensor] = {}
        for spec in specs:
            if spec.name not in raw:
                continue
            value = raw[spec.name]
            if spec.is_tokens and spec.pretrained is not None and spec.pretrained.kind == "sequence":
                assert self.coords is not None  # checked at construction
                inputs[spec.name] = self.coords.encode(value).ids.to(device)
                continue
            if standardize and spec.name in self.standardisation:
                value = self.standardisation[spec.name](value)
            tokenizer: Any = self.tokenizer[spec.key] if spec.is_tokens else None
            inputs[spec.name] = value if tokenizer is None else tokenizer.tokenize(value)
        return inputs


def _standardisation(
    inputs: Sequence[InputSpec], targets: Mapping[str, Modality], offset: Mapping[str, float]
) -> nn.ModuleDict:
    """Return the standardisation of each image modality by name, for the bands that an input has."""
    numbers: dict[str, tuple[Sequence[float], Sequence[float]]] = {
        spec.name: _numbers(spec) for spec in inputs if spec.pretrained is not None and _is_image(spec.pretrained)
    }
    # A name that is an input and an output has all bands as an output.
    numbers |= {name: (entry.mean, entry.std) for name, entry in targets.items() if _is_image(entry)}
    for name in offset:
        if name not in numbers:
            raise ConfigError(
                f"offset names '{name}', which is not an image modality of this model. It has {list(numbers)}."
            )
    return nn.ModuleDict(
        {name: Standardisation(mean, std, offset.get(name, 0.0)) for name, (mean, std) in numbers.items()}
    )


def _is_image(modality: Modality) -> bool:
    return modality.kind == "image"


def _numbers(spec: InputSpec) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of each channel of an input; 0 and 1 for a new band."""
    entry = spec.pretrained
    assert entry is not None
    sources = range(len(entry.bands)) if spec.band_sources is None else spec.band_sources
    bands = [None if source is None else entry.bands[source] for source in sources]
    return [band.mean if band else 0.0 for band in bands], [band.std if band else 1.0 for band in bands]


def _drop_unbuilt_parts(module: TerraMindGenerator, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Remove weights of tokenizer parts that this model does not build; TerraTorch's model has both parts of each."""
    for key, tokenizer in module.tokenizer.items():
        drop_unbuilt(tokenizer, state_dict, f"{prefix}tokenizer.{key}.")
