"""Labels of simulated chips: which question the label of a data set answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.simulation import materials as table
from terramind_plugin.simulation.landcover import Cover
from terramind_plugin.simulation.terrain import Terrain

NOT_SEEN = -1
"""Label of pixels without radar."""


@dataclass(frozen=True)
class LabelTask:
    """One question about simulated chips."""

    quantity: str
    """Name of the label band."""
    class_names: tuple[str, ...]
    """Name of each class, from class 0."""
    classify: Callable[[Cover, Terrain], NDArray[np.uint8]]
    """Function that returns the class of each pixel, [H, W]."""

    def describe(self) -> str:
        """Return the meaning of all label values, e.g. '-1 = unknown, 0 = land, 1 = water'."""
        return ", ".join(f"{value} = {name}" for value, name in enumerate(("unknown", *self.class_names), NOT_SEEN))


def _find_water(cover: Cover, terrain: Terrain) -> NDArray[np.uint8]:
    """Return 1 where water covers the ground and 0 elsewhere, [H, W]."""
    return cover.water.astype(np.uint8)


def _find_flooded_cover(cover: Cover, terrain: Terrain) -> NDArray[np.uint8]:
    """Return what the water covers, [H, W].

    0 is dry land, 1 permanent water, 2 flooded fields, grass and other open land, 3 flooded woods. The cover under the
    water is the true one, without the errors of the annual land-cover map.
    """
    flooded = np.where(table.LULC_OF[cover.dry] == table.TREES, 3, 2)
    return np.where(cover.water, np.where(terrain.river, 1, flooded), 0).astype(np.uint8)


LABEL_TASKS: dict[str, LabelTask] = {
    "water": LabelTask("water", ("land", "water"), _find_water),
    "flooded_cover": LabelTask(
        "flooded cover",
        ("dry land", "permanent water", "flooded open land", "flooded woods"),
        _find_flooded_cover,
    ),
}
"""Questions by name: where water is, or what lies below the water, which the images of the flood alone do not show."""
