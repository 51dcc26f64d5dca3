"""Land cover that the small model generates from radar alone: `python -m bench.thinking --help`; `make thinking`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jsonargparse import auto_cli
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torchmetrics.functional.classification import multiclass_confusion_matrix

from bench.small_model import World, generate_land_cover, majority_land_cover, mean_class_iou, read_world
from terramind_plugin.evaluate.output import markdown
from terramind_plugin.evaluate.testset import Labels
from terramind_plugin.evaluate.zero_shot import LAND_COVER, build_land_cover_generator
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.plotting.panels import draw_panels
from terramind_plugin.plotting.pictures import RADAR_KEY, class_picture, modality_picture
from terramind_plugin.simulation.dataset import chip_files
from terramind_plugin.simulation.labels import LABEL_TASKS, NOT_SEEN
from terramind_plugin.simulation.materials import WATER
from terramind_plugin.system.files import write_figure, write_text

RADAR = "S1GRD"
FLOODED = (2, 3)
"""Classes of the task flooded_cover whose ground the radar does not see."""
WATERS = (1, 2)
"""Classes of that task that are open water to the radar: permanent water and flooded open land."""
CHIPS = 5
"""Chips that are drawn: those with most flooded land."""
COLORS = ("#e8e4d8", "#1f4e99", "#7ec8e3", "#2e7d5b")
"""Colours of the classes of the task flooded_cover."""


def measure_thoughts(data: Path, out: Path, model: str = "terramind_sim_nano") -> None:
    """Compare land cover generated from radar with the true one, and write a table and a picture.

    Args:
        data: Folder of `terramind simulate --task flooded_cover`.
        out: Folder for generated_cover.md and generated_cover.png.
        model: Name of the model.

    Raises:
        DataError: The folder holds no simulated chips, or they are too small.
        WeightsError: The weights are not there.
    """
    world = read_world(data, model)
    labels = np.stack([_read_label(data, name, world.water.shape[-1]) for name in world.names])
    maps: dict[str, NDArray[np.int64]] = {}
    for name, pretrained, temperature in (
        ("likeliest tokens", True, 0.0),
        ("sampled tokens, as a TiM backbone draws them", True, 1.0),
        ("random weights", False, 0.0),
    ):
        generator = build_land_cover_generator(model, [RADAR], pretrained=pretrained, temperature=temperature)
        maps[name] = generate_land_cover(generator, world, [RADAR])
    maps["most frequent class"] = majority_land_cover(world).maps
    true = world.stack(LAND_COVER)[:, 0].astype(np.int64)
    rows = [["land cover from radar", "pixels right", "mean IoU", "right below the flood", *map(_share_name, WATERS)]]
    for name, one in {**maps, "true land cover": true}.items():
        scores = [*_agree(one, true, true > 0), _agree(one, true, np.isin(labels, FLOODED))[0]]
        scores += [float((one[labels == number] == WATER).mean()) for number in WATERS]
        rows.append([name, *(f"{score:.3f}" for score in scores)])
    write_text(out / "generated_cover.md", markdown(rows))
    write_figure(out / "generated_cover.png", _draw(world, labels, true, maps))
    print((out / "generated_cover.md").read_text())
    print(out / "generated_cover.png")


def _share_name(number: int) -> str:
    return f"called water, of {LABEL_TASKS['flooded_cover'].class_names[number]}"


def _read_label(data: Path, name: str, size: int) -> NDArray[np.int64]:
    """Return the middle of a chip's label, class ids [size, size], `NOT_SEEN` where it is unknown."""
    ids, known = Labels(NOT_SEEN, False, len(LABEL_TASKS["flooded_cover"].class_names)).read(
        chip_files(data, name)["label"]
    )
    rows, columns = (slice((side - size) // 2, (side - size) // 2 + size) for side in ids.shape)
    return np.where(known, ids, NOT_SEEN)[rows, columns].astype(np.int64)


def _agree(found: NDArray[np.int64], true: NDArray[np.int64], where: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the share of right pixels and the mean IoU of the classes that occur, among some pixels."""
    known = where & (true > 0)
    pair = (torch.from_numpy(found[known]), torch.from_numpy(true[known]))
    confusion = multiclass_confusion_matrix(*pair, len(MODALITIES[LAND_COVER].class_names)).numpy()
    return float(np.trace(confusion) / confusion.sum()), mean_class_iou(confusion)


def _draw(
    world: World, labels: NDArray[np.int64], true: NDArray[np.int64], maps: dict[str, NDArray[np.int64]]
) -> Figure:
    """Return a figure of the chips with most flooded land: radar, true and generated land cover, label."""
    colors, names = MODALITIES[LAND_COVER].class_colors, MODALITIES[LAND_COVER].class_names
    chosen = np.argsort(-np.isin(labels, FLOODED).mean(axis=(1, 2)), kind="stable")[:CHIPS]
    rows = []
    for number in map(int, chosen):
        pictures = {RADAR: modality_picture(world.images[RADAR][number].measured(), RADAR)}
        pictures["true land cover"] = class_picture(true[number], colors)
        pictures["from radar, likeliest"] = class_picture(maps["likeliest tokens"][number], colors)
        sampled = maps["sampled tokens, as a TiM backbone draws them"]
        pictures["from radar, sampled"] = class_picture(sampled[number], colors)
        pictures["label"] = class_picture(np.maximum(labels[number], 0), COLORS)
        rows.append((world.names[number], pictures))
    legend = list(zip(names, colors, strict=True))[1:]
    legend += zip((f"label: {name}" for name in LABEL_TASKS["flooded_cover"].class_names), COLORS, strict=True)
    legend += RADAR_KEY
    return draw_panels(rows, legend, "Land cover that the small model generates from radar alone", side=2.1)


if __name__ == "__main__":
    auto_cli(measure_thoughts, as_positional=False)
