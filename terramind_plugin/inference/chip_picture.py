"""One picture of a chip: what went in, what came out, and how sure the model is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from terramind_plugin.model.modalities import Modality
from terramind_plugin.plotting import draw_values, make_axes, plot_modality

MOST_ROWS = 4
"""Samples that are drawn."""


@dataclass(frozen=True)
class Output:
    """What was made of one modality."""

    modality: Modality
    samples: Sequence[NDArray]
    """Images [bands, H, W], class ids [1, H, W], or likely positions [N, 2] as one; at least one."""
    spread: NDArray | None = None
    """[bands or 1, H, W], if there are several samples."""


def draw_results(inputs: Sequence[tuple[Modality, NDArray]], outputs: Sequence[Output], title: str) -> Figure:
    """Return a figure: inputs and outputs in one row, further samples below, their spread in the last row.

    Args:
        inputs: Modality and image [bands, H, W] or positions [2].
        outputs: At least one.
        title: Above all.
    """
    shown = min(MOST_ROWS, max(len(output.samples) for output in outputs))
    spread = any(output.spread is not None for output in outputs)
    columns = len(inputs) + len(outputs)
    rows = shown + spread
    figure, axes = make_axes(rows, columns, (3.4 * columns + 0.6, 3.6 * rows + 0.6), title)
    for axis, (modality, values) in zip(axes[0], inputs, strict=False):
        plot_modality(modality.name, values, axis).set_title(f"{modality.name} (input)", fontsize=10)
    for column, output in enumerate(outputs, start=len(inputs)):
        for row, values in enumerate(output.samples[:shown]):
            of = f", sample {row + 1} of {len(output.samples)}" if len(output.samples) > 1 else ""
            axis = plot_modality(output.modality.name, values, axes[row, column])
            axis.set_title(f"{output.modality.name} (model{of})", fontsize=10)
        if output.spread is not None:
            _draw_spread(axes[shown, column], output)
    return figure


def _draw_spread(axis: Any, output: Output) -> None:
    modality, spread = output.modality, output.spread
    assert spread is not None  # seen by the caller
    classes = modality.kind == "classes"
    bands = " of the bands, mean" if len(spread) > 1 else ""
    label = "share of samples that disagree" if classes else f"standard deviation{bands} ({modality.units})"
    mean = np.asarray(spread).mean(axis=0)
    draw_values(axis, mean, label, (0.0, 1.0 if classes else float(np.nanmax(mean, initial=1e-6))))
    axis.set_title(f"{modality.name} (spread of {len(output.samples)} samples)", fontsize=10)
