"""The model to export, with all information that its file must contain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from terramind_plugin._version import __version__
from terramind_plugin.model.standardisation import Standardised

PROBABILITIES = {
    "segmentation": "softmax over the classes",
    "classification": "softmax over the classes",
    "multilabel classification": "sigmoid",
}
"""Function that turns scores into probabilities, by kind of task."""


@dataclass(frozen=True)
class Input:
    """One input of an exported model."""

    name: str
    shape: tuple[int, ...]
    """Bands, dates if there are several, height and width."""
    bands: tuple[str, ...]
    units: str
    """Units of the values before they are standardised."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    offset: float = 0.0
    """Number that is first added to the values of a file."""
    scale: float = 1.0
    """Factor of the shifted values."""


@dataclass
class Subject:
    """A model to export."""

    name: str
    network: nn.Module
    """Model that takes images by modality: a backbone, or the attribute `model` of a task."""
    kind: str
    """'features', or the kind of output of the task."""
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    weights: str
    """Name and hash of the weights."""
    class_names: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    """Parts 'model' and 'data' of a configuration that builds it."""
    positions: str | None = None
    """Name of an input that the data module computes from the position of a scene; None without one."""
    base: str | None = None
    """Repository of the published weights with the backbone's architecture."""

    def describe(self, standardize: bool = False) -> dict[str, Any]:
        """Return the description of the file as plain values.

        Args:
            standardize: Whether the file standardises its inputs itself.
        """
        return {
            "model": self.name,
            "task": self.kind,
            "inputs": [
                {
                    "name": one.name,
                    "shape": ["batch", *one.shape],
                    "axes": "batch, bands, dates, height, width"
                    if len(one.shape) == 4
                    else "batch, bands, height, width",
                    "dtype": "float32",
                    "expects": _expects(one, standardize),
                    "bands": list(one.bands),
                    "units": one.units,
                    "mean": list(one.mean),
                    "std": list(one.std),
                    "offset": one.offset,
                    "scale": one.scale,
                }
                for one in self.inputs
            ],
            "outputs": [{"name": name, "meaning": self._meaning(name)} for name in self.outputs],
            "class_names": list(self.class_names),
            "weights": self.weights,
            "made_by": f"terramind_plugin {__version__}",
        }

    def _meaning(self, output: str) -> str:
        if self.kind == "features":
            merged = "" if len(self.inputs) == 1 else ", modalities merged according to merge_method"
            return f"tokens [batch, patches in row order, width] of encoder layer {output.rpartition('_')[2]}{merged}"
        if self.kind in PROBABILITIES:
            return f"scores of the classes; {PROBABILITIES[self.kind]} gives probabilities"
        return "values in the units of the labels"

    def example(self, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Return standardised images of random numbers, one tensor [batch, *shape] for each input."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randn(batch, *one.shape, generator=generator) for one in self.inputs)


class Positional(nn.Module):
    """A model that takes images as positional arguments and returns tensors.

    Args:
        subject: Model and its inputs.
        standardize: Whether to take images in the units of their files and standardise them.
    """

    def __init__(self, subject: Subject, standardize: bool = False) -> None:
        super().__init__()
        self.network = subject.network
        self.names = [one.name for one in subject.inputs]
        self.scales = nn.ModuleList(Standardised(one.mean, one.std, one.scale, one.offset) for one in subject.inputs)
        self.standardize = standardize

    def forward(self, *images: Tensor) -> Any:
        """Return the features of each layer, or the output of the task's model."""
        if self.standardize:
            images = tuple(scale(image) for scale, image in zip(self.scales, images, strict=True))
        output = self.network(dict(zip(self.names, images, strict=True)))
        return tuple(output) if isinstance(output, list) else output.output


def _expects(one: Input, standardize: bool) -> str:
    steps = "x" if not one.offset else f"(x {one.offset:+g})"
    steps = steps if one.scale == 1 else f"{steps} * {one.scale:g}"
    if standardize:
        return "values as in the files; pixels without data set to the mean"
    return f"standardised: ({steps} - mean) / std for each band; pixels without data set to 0"
