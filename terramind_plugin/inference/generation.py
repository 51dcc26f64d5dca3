"""Other modalities of a scene, imagined window by window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from terramind_plugin.generation.generator import TerraMindGenerator
from terramind_plugin.inference.classes import choose_classes
from terramind_plugin.inference.noise import SceneNoise
from terramind_plugin.model.modalities import Modality
from terramind_plugin.raster.writer import Layer, parse_color

NO_CLASS = 0
"""The land cover class for no data."""


class SceneGenerator(nn.Module):
    """A generator as the model of a scene: continuous outputs in their units, classes as probabilities.

    Args:
        generator: With standardize, whose outputs are images or classes.
        seed: Of the first sample.
        samples: How many, from seeds one after the other.
        positions: Inputs that are the same for all windows, [1, 2] as (longitude, latitude).
        probabilities: Also make a file with the probability of the class.
    """

    def __init__(
        self,
        generator: TerraMindGenerator,
        *,
        seed: int = 0,
        samples: int = 1,
        positions: Mapping[str, Tensor] | None = None,
        probabilities: bool = False,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.seed = seed
        self.samples = samples
        self.positions = dict(positions or {})
        self.probabilities = probabilities
        self.targets = dict(generator.sampler.targets)
        self.classes = {
            spec.name for spec in generator.sampler.inputs if spec.pretrained and spec.pretrained.class_names
        }
        self.layers = plan_layers(list(self.targets.values()), seed, samples, probabilities)
        self.channels = samples * sum(map(_channels, self.targets.values()))

    def forward(self, images: Mapping[str, Tensor], corners: Sequence[tuple[int, int]]) -> Tensor:
        """Return all samples of all outputs one after the other, [B, channels, h, w]."""
        first = next(iter(images.values()))
        x = {name: image[:, 0].long() if name in self.classes else image for name, image in images.items()}
        x |= {name: position.expand(len(first), -1) for name, position in self.positions.items()}
        patch = self.generator.sampler.model.patch_size
        made = []
        for number in range(self.samples):
            noise = SceneNoise(self.seed + number, corners, (first.shape[-2], first.shape[-1]), patch)
            outputs = self.generator(x, noise=noise)
            for name, modality in self.targets.items():
                values = outputs[name].float()
                # The decoder knows one standard deviation around the mean, whose lower end is no reflectance for some.
                classes = modality.kind == "classes"
                if classes:
                    made.append(values.softmax(dim=1))
                else:
                    finite = values.isfinite()
                    made.append(values.clamp(*modality.valid_range).masked_fill(~finite, torch.nan))
        return torch.cat(made, dim=1)

    def finish(self, blended: Tensor) -> list[Tensor]:
        """Return for each layer [bands, rows, W]."""
        by_sample = blended.unflatten(0, (self.samples, -1)).split(
            [_channels(modality) for modality in self.targets.values()], dim=1
        )
        results: list[Tensor] = []
        for modality, samples in zip(self.targets.values(), by_sample, strict=True):
            if modality.kind != "classes":
                results += list(samples)
                results += [samples.std(dim=0, correction=0)] if self.samples > 1 else []
                continue
            best = [choose_classes(sample, NO_CLASS) for sample in samples]
            for classes, probabilities in best:
                results.append(classes)
                results += [probabilities] if self.probabilities else []
            if self.samples > 1:
                every = torch.stack([classes[0].long() for classes, _ in best])
                votes = nn.functional.one_hot(every, samples.shape[1]).sum(dim=0).amax(dim=-1)
                known = torch.stack([probabilities for _, probabilities in best]).isfinite().all(dim=0)
                results.append((1 - votes[None] / self.samples).float().masked_fill(~known, torch.nan))
        return results


def plan_layers(targets: Sequence[Modality], seed: int, samples: int, probabilities: bool) -> tuple[Layer, ...]:
    """Return the files of a generation.

    Args:
        targets: Outputs.
        seed: Of the first sample.
        samples: How many.
        probabilities: Also files with the probability of a class.
    """
    layers = []
    for modality in targets:
        classes = modality.kind == "classes"
        for number in range(samples):
            ending = modality.name if number == 0 else f"{modality.name}_sample{number + 1}"
            tags = {"seed": str(seed + number)}
            layers.append(_layer(modality, ending, tags))
            if classes and probabilities:
                meaning = {"probability": "of the class, among all classes"}
                layers.append(_further(modality, f"{ending}_probability", "probability", "1", tags | meaning))
        if samples > 1:
            what = "disagreement" if classes else "std"
            spread = "share of samples with another than the most frequent class" if classes else "standard deviation"
            layers.append(
                _further(
                    modality,
                    f"{modality.name}_spread",
                    what,
                    "1" if classes else modality.units,
                    {"spread": f"{spread}, of {samples} samples"},
                )
            )
    return tuple(layers)


def _layer(modality: Modality, ending: str, tags: Mapping[str, str]) -> Layer:
    common: dict[str, Any] = {"descriptions": modality.band_names, "units": modality.units, "modality": modality.name}
    if modality.kind != "classes":
        return Layer(ending, "float32", nodata=float("nan"), tags=tags, **common)
    names = ", ".join(f"{number} = {name}" for number, name in enumerate(modality.class_names))
    return Layer(
        ending,
        "uint8",
        nodata=NO_CLASS,
        colormap={number: parse_color(color) for number, color in enumerate(modality.class_colors)},
        class_names=modality.class_names,
        tags={**tags, "class_names": names},
        **common,
    )


def _further(modality: Modality, ending: str, what: str, units: str, tags: Mapping[str, str]) -> Layer:
    names = tuple(f"{name}_{what}" for name in modality.band_names)
    return Layer(ending, "float32", names, units, float("nan"), tags=tags)


def _channels(modality: Modality) -> int:
    return len(modality.class_names) or len(modality.bands)
