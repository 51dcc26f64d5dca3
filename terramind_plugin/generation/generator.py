"""The any-to-any model: images and places in, images and places out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from terramind_plugin.errors import ConfigError
from terramind_plugin.generation.locations import most_likely_pairs, pair_probabilities
from terramind_plugin.generation.sampling import Noise
from terramind_plugin.generation.schedules import Decoding
from terramind_plugin.generation.token_generator import TokenGenerator
from terramind_plugin.model.inputs import GENERATOR, InputSpec, check_shapes, check_size, collect_inputs
from terramind_plugin.model.modalities import Modality, token_key
from terramind_plugin.model.standardisation import Standardisation
from terramind_plugin.tokenizers.coordinates import CoordsTokenizer
from terramind_plugin.tokenizers.image import ImageTokenizer

TOKENIZER_PARTS = ("encoder", "quant_proj", "decoder", "post_quant_proj")


class Places(NamedTuple):
    """Likely positions of a batch of samples, the likeliest first."""

    positions: Tensor
    """[B, K, 2] as (longitude, latitude) in degrees, float64."""
    probabilities: Tensor
    """[B, K] in [0, 1], among all positions of the model's grid."""
    step: float
    """Of the grid, in degrees: 0.25 for the published models."""


class PlaceMap(NamedTuple):
    """How likely each position is for a batch of samples."""

    longitudes: Tensor
    """[columns] in degrees, ascending, float64."""
    latitudes: Tensor
    """[rows] in degrees, descending, float64."""
    probabilities: Tensor
    """[B, rows, columns]."""


class TerraMindGenerator(nn.Module):
    """Images of some modalities, imagined from images of others or from a place.

    Source: TerraMind (arXiv:2504.11171) section 3; arguments are those of TerraTorch's implementation.

    Args:
        sampler: Draws token ids; its targets are the outputs.
        tokenizers: By checkpoint key. An input that enters as token ids needs the encoder, an image output the decoder.
        coords: Tokenizer of coordinates, if they are an input or output.
        standardize: Whether images come and go in the units of their modality, not standardised.
        offset: Added to the pre-training mean of a modality, by its name, as input and as output.
        timesteps: Denoising steps of an image.
        decoding: How to draw the tokens of each output, by its name.

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
        known = {spec.name: spec.pretrained for spec in sampler.inputs if spec.pretrained is not None}
        known |= sampler.targets
        self.standardisation = _standardisation(known, offset or {})
        self.register_load_state_dict_pre_hook(_leave_out_what_is_not_built)
        self.eval()

    def _check_tokenizers(self) -> None:
        """Raise a ConfigError if something that `forward` will need is not there."""
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

        Positions are (longitude, latitude) in degrees, NaN where the drawn text is none; `locate` has the likeliest.

        Args:
            x: By modality, images [B, bands, H, W], class ids [B, H, W], or positions [B, 2] as (longitude, latitude)
                in degrees; or the tensor of the first modality. Never changed.
            standardize: In place of the model's own setting.
            timesteps: In place of the model's own setting.
            verbose: Show a progress bar for each image.
            image_size: Height and width in pixels of the outputs, if no input is an image; by default the model's.
            seed: One that each sample starts from, so that its result does not depend on the batch it is in; or one for
                each sample; None for new ones in each call.
            noise: Random numbers in place of `seed`.
            named: Inputs by modality, as keywords.

        Raises:
            ConfigError: An input is unknown, also an output, or its shape does not fit.
            DataError: A position or class id is not possible.
        """
        standardize = self.standardize if standardize is None else standardize
        inputs = self._tokenised(x, named, standardize)
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
            # A decoder of classes starts from no noise.
            rows, columns = (side * tokenizer.patch_size for side in ids.shape[1:])
            start = None if modality.kind == "classes" else noise.normal(tokenizer.channels, rows, columns)
            image = tokenizer.decode_tokens(ids, timesteps, noise=start, verbose=verbose)
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
    ) -> Places:
        """Return where the images most likely are, with probabilities.

        Args:
            x: As in `forward`.
            count: Number of positions for each sample.
            standardize: As in `forward`.
            named: As in `forward`.

        Raises:
            ConfigError: Coordinates are no output of the model, or as in `forward`.
        """
        target, coords = self._place_target()
        inputs = self._tokenised(x, named, self.standardize if standardize is None else standardize)
        latitudes, longitudes = coords.latitudes, coords.longitudes
        pairs, probabilities = most_likely_pairs(self.sampler, target, inputs, list(latitudes), list(longitudes), count)
        degrees = [[(longitudes[lon], latitudes[lat]) for lat, lon in row] for row in pairs.tolist()]
        return Places(torch.tensor(degrees, dtype=torch.float64), probabilities, 1 / coords.steps_per_degree)

    @torch.no_grad()
    def map_places(
        self,
        x: Tensor | Mapping[str, Tensor] | None = None,
        mass: float = 1.0,
        *,
        standardize: bool | None = None,
        on_latitude: Callable[[int, int], object] = lambda done, total: None,
        **named: Tensor,
    ) -> PlaceMap:
        """Return how likely each position of the vocabulary's grid is.

        Args:
            x: As in `forward`.
            mass: Less than 1 leaves out latitudes that together are less likely than the rest, to be quicker; the model
                runs once for each that stays, and the published vocabulary has 721.
            standardize: As in `forward`.
            on_latitude: Called after each latitude with the number of those done and of all.
            named: As in `forward`.

        Raises:
            ConfigError: As in `locate`.
        """
        target, coords = self._place_target()
        inputs = self._tokenised(x, named, self.standardize if standardize is None else standardize)
        latitudes, longitudes = coords.latitudes, coords.longitudes
        pairs = pair_probabilities(
            self.sampler, target, inputs, list(latitudes), list(longitudes), mass, on_latitude
        ).cpu()
        north, rows = torch.tensor(list(latitudes.values()), dtype=torch.float64).unique(return_inverse=True)
        east, columns = torch.tensor(list(longitudes.values()), dtype=torch.float64).unique(return_inverse=True)
        # A vocabulary may hold two words for one place, such as 0.00 and -0.00.
        grid = pairs.new_zeros(len(pairs), len(north), len(columns)).index_add_(1, rows, pairs)
        grid = pairs.new_zeros(len(pairs), len(north), len(east)).index_add_(2, columns, grid)
        return PlaceMap(east, north.flip(0), grid.flip(1))

    def _place_target(self) -> tuple[str, CoordsTokenizer]:
        names = [name for name, modality in self.sampler.targets.items() if modality.kind == "sequence"]
        if not names or self.coords is None:
            raise ConfigError(f"locate needs coords among output_modalities, which are {self.output_modalities}.")
        return names[0], self.coords

    def _tokenised(
        self, x: Tensor | Mapping[str, Tensor] | None, named: Mapping[str, Tensor], standardize: bool
    ) -> dict[str, Tensor]:
        """Return standardised images and token ids by the model's names."""
        specs: Sequence[InputSpec] = self.sampler.inputs
        given = collect_inputs(specs, x, named, GENERATOR)
        images = [spec for spec in specs if not spec.is_tokens]
        patch = self.sampler.model.patch_size
        pixels = {spec.name: given[spec.name] for spec in images if spec.name in given}
        if pixels:
            check_shapes(images, pixels, patch, same_size=True, advice=GENERATOR)
        device = self.sampler.model.mask_token.device
        inputs: dict[str, Tensor] = {}
        for spec in specs:
            if spec.name not in given:
                continue
            value = given[spec.name]
            if spec.is_tokens and spec.pretrained is not None and spec.pretrained.kind == "sequence":
                assert self.coords is not None  # checked at construction
                inputs[spec.name] = self.coords.encode(value).ids.to(device)
                continue
            if standardize and spec.name in self.standardisation:
                value = self.standardisation[spec.name](value)
            tokenizer: Any = self.tokenizer[spec.key] if spec.is_tokens else None
            inputs[spec.name] = value if tokenizer is None else tokenizer.tokenize(value)
        return inputs


def _standardisation(known: Mapping[str, Modality], offset: Mapping[str, float]) -> nn.ModuleDict:
    """Return the standardisation of each image modality, by name."""
    for name in offset:
        if name not in known or known[name].kind != "image":
            raise ConfigError(
                f"offset names '{name}', which is no image modality of this model. It has "
                f"{[name for name, modality in known.items() if modality.kind == 'image']}."
            )
    return nn.ModuleDict(
        {
            name: Standardisation(modality.mean, modality.std, offset.get(name, 0.0))
            for name, modality in known.items()
            if modality.kind == "image"
        }
    )


def _leave_out_what_is_not_built(module: TerraMindGenerator, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Remove weights of tokenizer parts that this model holds no copy of: TerraTorch's holds both parts of each."""
    for key, tokenizer in module.tokenizer.items():
        for part in TOKENIZER_PARTS:
            if getattr(tokenizer, part, None) is None:
                start = f"{prefix}tokenizer.{key}.{part}."
                for name in [name for name in state_dict if name.startswith(start)]:
                    del state_dict[name]
