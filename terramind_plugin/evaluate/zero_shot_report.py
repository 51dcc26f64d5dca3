"""Results of zero-shot mapping as a table, a file and a figure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from terramind_plugin.evaluate.output import write_json
from terramind_plugin.evaluate.overlap import intersection_over_union
from terramind_plugin.evaluate.testset import LabelledChip, LabelledSet
from terramind_plugin.evaluate.zero_shot import LAND_COVER, TARGET, SetScore, Target, read_map
from terramind_plugin.inference.job import Job
from terramind_plugin.inference.outputs import NO_DATA
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.plotting.panels import draw_panels
from terramind_plugin.plotting.pictures import (
    AGREEMENT_COLORS,
    NO_LABEL,
    agreement_picture,
    class_picture,
    modality_picture,
    radar_key,
)
from terramind_plugin.raster.reader import Source
from terramind_plugin.system.files import write_figure

PAPER = (
    "For comparison, the paper's IoU on Sen1Floods11 (arXiv:2504.11171): TerraMind v1 base, zero-shot 0.454; a model "
    "pre-trained to generate land cover alone 0.698; fine-tuned 0.844."
)
SEN1FLOODS11 = re.compile("(Bolivia|Ghana|India|Mekong|Nigeria|Pakistan|Paraguay|Somalia|Spain|Sri-Lanka|USA)_[0-9]+")
"""Names of the hand-labelled chips of Sen1Floods11."""
CHIPS = 4
"""Number of chips in the figure."""


def is_sen1floods11(test: LabelledSet, target: Target) -> bool:
    """Return whether the paper has results to compare with: water as target, and the chips of Sen1Floods11."""
    return target.name.lower() == "water" and all(SEN1FLOODS11.fullmatch(chip.name) for chip in test.chips)


def table(rows: Sequence[SetScore]) -> list[list[str]]:
    """Return head and rows."""
    head = ["inputs", "chips", "IoU", "95 % interval", "precision", "recall"]
    return [head, *([" + ".join(row.inputs), str(len(row.chips)), *_cells(row)] for row in rows)]


def _cells(row: SetScore) -> list[str]:
    low, high = row.iou.interval
    interval = f"{low:.3f} to {high:.3f}" if len(row.chips) > 1 else "-"
    return [f"{row.iou.value:.3f}", interval, f"{row.precision.value:.3f}", f"{row.recall.value:.3f}"]


def record(rows: Sequence[SetScore], target: Target, described: Mapping[str, Any]) -> dict[str, Any]:
    """Return all numbers for a JSON file; None where a number cannot be computed.

    Args:
        rows: Results.
        target: Target of the maps.
        described: Model and settings that made the maps.
    """
    return {
        **described,
        "target": target.name,
        "positive_label_ids": list(target.positive),
        "rows": [
            {
                "inputs": list(row.inputs),
                **{what: getattr(row, what).record() for what in ("iou", "precision", "recall")},
                "chips": {
                    name: dict(zip(("hits", "false", "missed"), overlap, strict=True))
                    for name, overlap in zip(row.chips, row.overlaps, strict=True)
                },
            }
            for row in rows
        ],
    }


def write(
    out: Path,
    test: LabelledSet,
    target: Target,
    rows: Sequence[SetScore],
    done: Mapping[tuple[str, ...], Sequence[tuple[LabelledChip, Job]]],
    described: Mapping[str, str],
) -> None:
    """Write all numbers and the figure of the largest set of inputs.

    Args:
        out: Folder.
        test: Test set.
        target: Target of the maps.
        rows: Results.
        done: Chips and their maps, by set of inputs.
        described: Model and settings that made the maps.
    """
    write_json(out / "zero_shot.json", record(rows, target, described))
    best = max(rows, key=lambda row: len(row.inputs))
    made_by = f"{described['model']}, {described['weights']}"
    title = f"{target.name} from {' and '.join(best.inputs)}, zero-shot: {made_by}"
    write_figure(out / "zero_shot.png", draw(test, target, best, done[best.inputs], title))


def draw(
    test: LabelledSet, target: Target, row: SetScore, pairs: Sequence[tuple[LabelledChip, Job]], title: str
) -> Figure:
    """Return a figure of some chips from the best to the worst: inputs, land cover, target, label.

    Args:
        test: Test set of the chips.
        target: Target of the maps.
        row: Results of one set of inputs.
        pairs: Chips of the set and their maps.
        title: Title of the figure.
    """
    cover = MODALITIES[LAND_COVER]
    panels = []
    seen: set[int] = set()
    for number in pick_panels(row):
        chip, job = pairs[number]
        land = read_map(job, LAND_COVER)
        seen |= set(np.unique(land).tolist())
        ids, known = test.labels.read(chip.label)
        wanted, found = np.isin(ids, target.positive), read_map(job, TARGET)
        pictures = {name: _picture(test, chip, name, job) for name in row.inputs}
        pictures[f"{LAND_COVER} (model)"] = class_picture(land, cover.class_colors)
        pictures[f"{target.name} (model)"] = agreement_picture(found == 1, wanted, known & (found != NO_DATA))
        pictures["label"] = agreement_picture(wanted, wanted, known)
        iou = float(intersection_over_union(row.overlaps[number]))
        said = f"IoU {iou:.2f}" if np.isfinite(iou) else "nothing to find"
        panels.append((f"{chip.name}: {said}", pictures))
    legend = [(f"map: {name}", color) for name, color in AGREEMENT_COLORS.items()] + [("no label or no data", NO_LABEL)]
    legend += [(f"{LAND_COVER}: {cover.class_names[n]}", cover.class_colors[n]) for n in sorted(seen - {0})]
    legend += radar_key(row.inputs)
    figure: Figure = draw_panels(panels, legend, title, side=2.9)
    return figure


def pick_panels(row: SetScore) -> list[int]:
    """Return the indices of some chips from the best IoU to the worst, at equal steps."""
    each = intersection_over_union(row.overlaps)
    judged = [int(number) for number in np.argsort(-each, kind="stable") if np.isfinite(each[number])]
    ranked = judged or list(range(len(each)))
    places = np.linspace(0, len(ranked) - 1, min(CHIPS, len(ranked))).round().astype(int)
    return [ranked[place] for place in places]


def _picture(test: LabelledSet, chip: LabelledChip, name: str, job: Job) -> NDArray[Any]:
    expected = test.expected[name]
    source = Source(chip.files[name], expected, job.grid)
    part = source.read(0, 0, *job.grid.shape)
    source.close()
    shift, scale = test.scales[name]
    return modality_picture((np.where(part.valid, part.values, np.nan) + shift) * scale, expected.name)
