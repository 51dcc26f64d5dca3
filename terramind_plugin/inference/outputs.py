"""Files of a model's results: class maps and images, with one rule for missing values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from terramind_plugin.model.modalities import Modality
from terramind_plugin.raster.writer import Layer, parse_color

NO_DATA = 255
"""Value of a class map where no input has data or the model's result is not finite."""
NO_LAND_COVER = 0
"""Class id of land cover that means no data."""


def class_layer(
    ending: str, names: Sequence[str], colors: Sequence[str], *, nodata: int = NO_DATA, tags: Any = None, **more: Any
) -> Layer:
    """Return the layer of a class map.

    Args:
        ending: End of the file's name.
        names: Names of the classes.
        colors: Colours of the classes as '#rrggbb', repeated if there are fewer.
        nodata: Value where the class is unknown.
        tags: Further tags.
        more: Further fields of `Layer`.
    """
    table = {number: parse_color(colors[number % len(colors)]) for number in range(len(names))}
    listed = ", ".join(f"{number} = {name}" for number, name in enumerate(names))
    fields = {"descriptions": ("class",), "units": "class id", **more}
    return Layer(
        ending, "uint8", nodata=nodata, colormap=table, class_names=tuple(names),
        tags={**(tags or {}), "class_names": listed}, **fields,
    )  # fmt: skip


def value_layer(ending: str, bands: Sequence[str], units: str, **more: Any) -> Layer:
    """Return the layer of continuous values, with NaN where they are unknown.

    Args:
        ending: End of the file's name.
        bands: Names of the bands.
        units: Unit of the values.
        more: Further fields of `Layer`.
    """
    return Layer(ending, "float32", tuple(bands), units, float("nan"), **more)


def modality_layers(
    modality: Modality, name: str, seed: int = 0, samples: int = 1, probabilities: bool = False
) -> list[Layer]:
    """Return the layers of one modality: for each sample an image and, if asked for, probabilities; then the spread.

    Args:
        modality: Modality that the model produces.
        name: Beginning of the files' endings.
        seed: Seed of the first sample.
        samples: Number of samples.
        probabilities: Add a layer with the probability of the class, for a modality of classes.
    """
    layers = []
    for number in range(samples):
        ending = name if number == 0 else f"{name}_sample{number + 1}"
        tags = {"seed": str(seed + number)}
        layers.append(_modality_layer(modality, ending, tags))
        if modality.kind == "classes" and probabilities:
            meaning = {"probability": "of the class, among all classes"}
            layers.append(_derived(modality, f"{ending}_probability", "probability", "1", tags | meaning))
    if samples > 1:
        what, units, spread = "std", modality.units, "standard deviation"
        if modality.kind == "classes":
            what, units, spread = "disagreement", "1", "share of samples with another than the most frequent class"
        layers.append(_derived(modality, f"{name}_spread", what, units, {"spread": f"{spread}, of {samples} samples"}))
    return layers


def _modality_layer(modality: Modality, ending: str, tags: Mapping[str, str]) -> Layer:
    common: dict[str, Any] = {"units": modality.units, "modality": modality.name, "tags": tags}
    if modality.kind != "classes":
        return value_layer(ending, modality.band_names, **common)
    names, colors = modality.class_names, modality.class_colors
    return class_layer(ending, names, colors, nodata=NO_LAND_COVER, descriptions=modality.band_names, **common)


def _derived(modality: Modality, ending: str, what: str, units: str, tags: Mapping[str, str]) -> Layer:
    return value_layer(ending, [f"{name}_{what}" for name in modality.band_names], units, tags=tags)


def count_channels(modality: Modality) -> int:
    """Return the number of values per pixel that a model produces: the number of classes, or of bands."""
    return len(modality.class_names) or len(modality.bands)


def finish_modality(modality: Modality, samples: Tensor, probabilities: bool = False) -> list[Tensor]:
    """Return the values of `modality_layers`, each [bands, rows, W].

    Args:
        modality: Modality that the model produces.
        samples: Blended images or class probabilities, [samples, channels, rows, W].
        probabilities: As in `modality_layers`.
    """
    if modality.kind != "classes":
        return [*samples, samples.std(dim=0, correction=0)] if len(samples) > 1 else list(samples)
    results = []
    best = [choose_classes(sample, NO_LAND_COVER) for sample in samples]
    for classes, shares in best:
        results += [classes, shares] if probabilities else [classes]
    if len(samples) > 1:
        every = torch.stack([classes[0].long() for classes, _ in best])
        votes = nn.functional.one_hot(every, samples.shape[1]).sum(dim=0).amax(dim=-1)
        known = torch.stack([shares for _, shares in best]).isfinite().all(dim=0)
        results.append((1 - votes[None] / len(samples)).float().masked_fill(~known, torch.nan))
    return results


def choose_classes(probabilities: Tensor, nodata: int) -> tuple[Tensor, Tensor]:
    """Return class ids [1, ...], uint8, and their probabilities [1, ...].

    Args:
        probabilities: Probabilities [classes, ...].
        nodata: Id for pixels with a probability that is not finite, where no class can be chosen.
    """
    # Several times as fast as argmax along the first dimension. NaN counts as the largest number.
    best = probabilities.max(dim=0, keepdim=True)
    return best.indices.to(torch.uint8).masked_fill_(~best.values.isfinite(), nodata), best.values
