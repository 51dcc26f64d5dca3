"""Models of scenes that produce modalities: a generator, and a tokenizer that encodes and decodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from terramind_plugin.generation.generator import TerraMindGenerator
from terramind_plugin.inference.noise import SceneNoise
from terramind_plugin.inference.outputs import count_channels, finish_modality, modality_layers
from terramind_plugin.model.modalities import Modality, find
from terramind_plugin.model.standardisation import Standardisation
from terramind_plugin.tokenizers.image import ImageTokenizer
from terramind_plugin.tokenizers.noise import Noise

LIKELY_POSITIONS = 5
"""Number of most likely positions that are written."""


class SceneImages(nn.Module):
    """A model of a scene that produces modalities: images in their units, and classes as probabilities.

    Args:
        targets: Modalities that the model produces; those without pixels get no layer.
        patch: Patch size of the model in pixels.
        names: First part of the endings of a modality's files.
        seed: Seed of the first sample.
        samples: Number of samples, from consecutive seeds.
        probabilities: Also make layers with the probability of the class.
    """

    def __init__(
        self,
        targets: Sequence[Modality],
        patch: int,
        names: Mapping[str, str],
        *,
        seed: int = 0,
        samples: int = 1,
        probabilities: bool = False,
    ) -> None:
        super().__init__()
        self.targets = [modality for modality in targets if modality.bands]
        self.patch = patch
        self.seed = seed
        self.samples = samples
        self.probabilities = probabilities
        self.layers = tuple(
            layer
            for modality in self.targets
            for layer in modality_layers(modality, names[modality.name], seed, samples, probabilities)
        )
        self.channels = samples * sum(map(count_channels, self.targets))

    @property
    def mixes_scenes(self) -> bool:
        """Return whether windows of several scenes may be in one batch."""
        return bool(self.layers)

    def prepare(self, mode: str) -> None:
        """Prepare for windows of one size, see `SceneModel`."""
        for module in self.children():
            if isinstance(module, TerraMindGenerator | ImageTokenizer):
                module.for_inference(mode)

    def make(self, images: Mapping[str, Tensor], noise: Noise) -> Mapping[str, Tensor]:
        """Return the model's results for windows, by modality: images [B, bands, h, w], or class scores.

        Args:
            images: Images by modality, [B, bands, h, w] in their units, or class ids [B, h, w].
            noise: Random numbers of the windows.
        """
        raise NotImplementedError

    def forward(self, images: Mapping[str, Tensor], corners: Sequence[tuple[int, int]]) -> Tensor:
        """Return all samples of all modalities, concatenated to [B, channels, h, w]."""
        x = {name: image[:, 0].long() if _has_classes(name) else image for name, image in images.items()}
        first = next(iter(images.values()))
        count, _, height, width = first.shape
        made = []
        for number in range(self.samples):
            outputs = self.make(x, SceneNoise(self.seed + number, corners, (height, width), self.patch, first.device))
            for modality in self.targets:
                values = outputs[modality.name].float()
                if modality.kind == "classes":
                    made.append(values.softmax(dim=1))
                    continue
                # The decoder's range extends below the smallest reflectance of some bands.
                finite = values.isfinite()
                made.append(values.clamp(*modality.valid_range).masked_fill(~finite, torch.nan))
        return torch.cat(made, dim=1) if made else first.new_empty(count, 0, height, width)

    def finish(self, blended: Tensor) -> list[Tensor]:
        """Return the values of each layer, [bands, rows, W]."""
        if not self.targets:
            return []
        all_samples = blended.reshape(self.samples, -1, *blended.shape[1:])
        by_target = torch.split(all_samples, list(map(count_channels, self.targets)), dim=1)
        return [
            result
            for modality, samples in zip(self.targets, by_target, strict=True)
            for result in finish_modality(modality, samples, self.probabilities)
        ]


def _has_classes(name: str) -> bool:
    modality = find(name)
    return modality is not None and modality.kind == "classes"


class SceneGenerator(SceneImages):
    """A generator as the model of a scene.

    Args:
        generator: Generator with `standardize`.
        positions: Inputs that are the same for all windows, [1, 2] as (longitude, latitude).
        sampling: As in `SceneImages`: seed, samples, probabilities.
    """

    def __init__(
        self, generator: TerraMindGenerator, *, positions: Mapping[str, Tensor] | None = None, **sampling: Any
    ) -> None:
        targets = generator.sampler.targets
        names = {name: name for name in targets}
        super().__init__(list(targets.values()), generator.sampler.model.patch_size, names, **sampling)
        self.generator = generator
        self.positions = dict(positions or {})
        self.sequences = [name for name, modality in targets.items() if modality.kind == "sequence"]
        self.found: dict[str, dict[str, Any]] = {}
        """Positions of the last window, by the ending of the file that they are written to."""
        self._drawn: list[Mapping[str, Tensor]] = []

    @property
    def mixes_scenes(self) -> bool:
        """Return whether windows of several scenes may be in one batch; not if positions are generated."""
        return bool(self.layers) and not self.sequences

    def make(self, images: Mapping[str, Tensor], noise: Noise) -> Mapping[str, Tensor]:
        """Return generated modalities, see `SceneImages.make`."""
        outputs: dict[str, Tensor] = self.generator(self._add_positions(images), noise=noise)
        self._drawn.append({name: outputs[name][0] for name in self.sequences})
        return outputs

    def forward(self, images: Mapping[str, Tensor], corners: Sequence[tuple[int, int]]) -> Tensor:
        """Return all samples of all images, see `SceneImages.forward`, and keep positions in `found`."""
        self._drawn = []
        made = super().forward(images, corners)
        if self.sequences:
            places = self.generator.locate(self._add_positions(images), LIKELY_POSITIONS)
            pairs = zip(places.positions[0].tolist(), places.probabilities[0].tolist(), strict=True)
            likely = [
                {"longitude": longitude, "latitude": latitude, "probability": float(f"{share:.6g}")}
                for (longitude, latitude), share in pairs
            ]
            for name in self.sequences:
                drawn = [_position(*outputs[name].tolist()) for outputs in self._drawn]
                self.found[name] = {"positions": likely, "samples": drawn, "grid": f"{places.step:g} degrees"}
        return made

    def _add_positions(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        count = len(next(iter(images.values())))
        return {**images, **{name: position.expand(count, -1) for name, position in self.positions.items()}}


def _position(longitude: float, latitude: float) -> dict[str, float] | None:
    """Return a position for JSON; None for NaN, where the drawn text is not a position."""
    return None if math.isnan(longitude) else {"longitude": longitude, "latitude": latitude}


class SceneTokenizer(SceneImages):
    """A tokenizer as the model of a scene: images encoded to tokens and decoded again.

    Args:
        tokenizer: Tokenizer of one modality.
        steps: Number of denoising steps of an image.
        seed: Seed of the random numbers.
        probabilities: As in `SceneImages`.
    """

    def __init__(self, tokenizer: ImageTokenizer, steps: int, seed: int, probabilities: bool = False) -> None:
        modality = tokenizer.variant.modality
        names = {modality.name: f"{modality.name}_reconstructed"}
        super().__init__([modality], tokenizer.patch_size, names, seed=seed, probabilities=probabilities)
        self.tokenizer = tokenizer
        self.steps = steps
        self.scale = None if modality.kind == "classes" else Standardisation(modality.mean, modality.std)

    def make(self, images: Mapping[str, Tensor], noise: Noise) -> Mapping[str, Tensor]:
        """Return the reconstruction, see `SceneImages.make`."""
        ((name, image),) = images.items()
        if self.scale is None:  # a decoder of classes needs no noise
            return {name: self.tokenizer(image)}
        start = noise.normal(self.tokenizer.channels, *image.shape[-2:])
        return {name: self.scale.undo(self.tokenizer(self.scale(image), self.steps, noise=start))}
